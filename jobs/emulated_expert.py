"""One emulated replica: `python -m jobs.emulated_expert --spec FILE` serves until TERM or INT."""

from __future__ import annotations

import asyncio
import sys

from erhpc.experts.emulated import EmulatedExpert
from erhpc.plan.specs import EmulatedExpertSpec
from erhpc.twin.step_time import Roofline
from jobs.process import read_key, run_job


async def run(spec: EmulatedExpertSpec, stop: asyncio.Event) -> None:
    """Serve until `stop`."""
    step_time = Roofline(
        spec.architecture,
        dtype=spec.dtype,
        quantization=spec.quantization,
        tensor_parallel=spec.tensor_parallel,
        gpu=spec.gpu,
    )
    expert = EmulatedExpert(spec, step_time, key=read_key(spec.key_file))
    await expert.start()
    try:
        await expert.serve_until(stop)
    finally:
        await expert.stop()


def main(arguments: list[str] | None = None) -> int:
    """Serve the replica of the given spec; returns the exit code."""
    return run_job("emulated_expert", EmulatedExpertSpec, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
