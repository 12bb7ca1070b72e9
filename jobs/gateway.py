"""The gateway of a run: `python -m jobs.gateway --spec FILE` serves until TERM or INT.

It watches over the processes that do the work (`jobs.gateway_worker`).
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

from erhpc.gateway.supervisor import supervise
from erhpc.key_file import read_key_file
from erhpc.plan.specs import GatewaySpec
from jobs.process import parse_spec_path, read_spec, report_errors, run_until_stopped


async def run(spec: GatewaySpec, path: Path, stop: asyncio.Event) -> None:
    """Serve until `stop`."""

    async with supervise(spec, path, key=read_key_file("key_file", spec.key_file)) as places:
        print(f"gateway: listening on {places.url}\ngateway: status on {places.status_url}/status", flush=True)
        await stop.wait()


def main(arguments: list[str] | None = None) -> int:
    """Serve the gateway of the given spec; returns the exit code."""
    path = parse_spec_path("gateway", GatewaySpec, arguments)
    return report_errors("gateway", lambda: run_until_stopped(partial(run, read_spec(path, GatewaySpec), path)))


if __name__ == "__main__":
    sys.exit(main())
