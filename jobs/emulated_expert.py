"""Emulated replicas: `python -m jobs.emulated_expert --spec FILE` serves one or more until TERM or INT."""

from __future__ import annotations

import asyncio
import sys

from erhpc.experts.emulated import EmulatedExpert
from erhpc.experts.emulated_serving import serve_as
from erhpc.key_file import read_key_file
from erhpc.plan.specs import EmulatedExpertsSpec
from jobs.process import run_job


async def run(spec: EmulatedExpertsSpec, stop: asyncio.Event) -> None:
    """Serve until `stop`; the end of one replica is the end of all."""
    experts = [EmulatedExpert(one, serve_as(one), key=read_key_file("key_file", one.key_file)) for one in spec.experts]
    try:
        for expert in experts:
            await expert.start()
        serving = [asyncio.create_task(expert.serve_until(stop)) for expert in experts]
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        for task in serving:
            if task.done():
                task.result()
            task.cancel()
    finally:
        await asyncio.gather(*(expert.stop() for expert in experts))


def main(arguments: list[str] | None = None) -> int:
    """Serve the replicas of the given spec; returns the exit code."""
    return run_job("emulated_expert", EmulatedExpertsSpec, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
