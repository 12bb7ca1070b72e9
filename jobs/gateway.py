"""The gateway of a run: `python -m jobs.gateway --spec FILE` serves until TERM or INT."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from erhpc.gateway.server import serve
from erhpc.plan.specs import GatewaySpec
from erhpc.routing.artefact import read_artefact
from jobs.process import read_key, run_job


async def run(spec: GatewaySpec, stop: asyncio.Event) -> None:
    """Serve until `stop`."""
    classifier = read_artefact(Path(spec.artefact)) if spec.artefact else None
    async with serve(spec, classifier=classifier, key=read_key(spec.key_file)) as url:
        print(f"gateway: listening on {url}", flush=True)
        await stop.wait()


def main(arguments: list[str] | None = None) -> int:
    """Serve the gateway of the given spec; returns the exit code."""
    return run_job("gateway", GatewaySpec, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
