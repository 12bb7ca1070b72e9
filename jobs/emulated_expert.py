"""One emulated replica as a process: `python -m jobs.emulated_expert --spec FILE`.

Reads its spec, serves until TERM or INT, exits 0; exits 2 with one line on stderr when the spec cannot be served.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from erhpc.errors import ErhpcError, InputError
from erhpc.experts.emulated import EmulatedExpert
from erhpc.plan.specs import EmulatedExpertSpec
from erhpc.twin.step_time import Roofline


def main() -> int:
    """Serve the replica that --spec describes; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.emulated_expert", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="EmulatedExpertSpec as JSON")
    try:
        uvloop.run(_serve(_read_spec(parser.parse_args().spec)))
    except ErhpcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read_spec(path: Path) -> EmulatedExpertSpec:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EmulatedExpertSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"--spec {path} is no readable EmulatedExpertSpec: {error}.") from error


def _read_key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"key_file {path} cannot be read: {error.strerror}.") from error
    if not key:
        raise InputError(f"key_file {path} is empty. It must hold the key of the run.")
    return key


async def _serve(spec: EmulatedExpertSpec) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    expert = EmulatedExpert(spec, _step_time(spec), key=_read_key(spec.key_file))
    await expert.start()
    try:
        await expert.serve_until(stopped)
    finally:
        await expert.stop()


def _step_time(spec: EmulatedExpertSpec) -> Roofline:
    return Roofline(
        spec.architecture,
        dtype=spec.dtype,
        quantization=spec.quantization,
        tensor_parallel=spec.tensor_parallel,
        gpu=spec.gpu,
    )


if __name__ == "__main__":
    sys.exit(main())
