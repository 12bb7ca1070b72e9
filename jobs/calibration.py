"""Measures the client before the first level: `python -m jobs.calibration --spec FILE` writes a Calibration."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from erhpc.load.calibrating import calibrate
from erhpc.plan.specs import CalibrationSpec
from erhpc.results.atomic import write_atomically
from jobs.process import run_job


async def run(spec: CalibrationSpec, stop: asyncio.Event) -> None:
    """Calibrate, and write what was found; nothing if told to stop meanwhile."""
    calibrating = asyncio.create_task(calibrate(spec.load))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([calibrating, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not calibrating.done():
        calibrating.cancel()
        await asyncio.gather(calibrating, return_exceptions=True)
        return
    found = msgspec.json.format(msgspec.json.encode(calibrating.result()), indent=2)
    write_atomically(Path(spec.output), found)


def main(arguments: list[str] | None = None) -> int:
    """Calibrate the client of the given spec; returns the exit code."""
    return run_job("calibration", CalibrationSpec, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
