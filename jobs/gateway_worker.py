"""One of the processes of a gateway: passes requests on until TERM, or until its input ends with the gateway.

`python -m jobs.gateway_worker --spec FILE --worker K --port P --memory D`: the K-th, on a port that all share, with
the memory behind the inherited descriptor D. Only `jobs.gateway` starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from erhpc.gateway.server import serve
from erhpc.gateway.shared import Shared
from erhpc.key_file import read_key_file
from erhpc.plan.specs import GatewaySpec
from erhpc.routing.artefact import read_artefact
from jobs.process import read_spec, report_errors, run_until_stopped

GC_THRESHOLD = 20_000
"""Objects made between two looks for cycles, of which requests make none: with Python's 700 a look comes every few
requests, and one in a hundred goes through all that was loaded at the start and holds up every stream meanwhile."""


async def run(arguments: argparse.Namespace, stop: asyncio.Event) -> None:
    """Serve until `stop`, or until the process that started this one is gone."""
    spec = replace(read_spec(arguments.spec, GatewaySpec), port=arguments.port)
    shared = Shared(spec.endpoints, num_workers=spec.limits.processes, descriptor=arguments.memory)
    classifier = read_artefact(Path(spec.artefact)) if spec.artefact else None
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _read_end, stop)
    key = read_key_file("key_file", spec.key_file)
    expert_key = key if spec.expert_key_file is None else read_key_file("expert_key_file", spec.expert_key_file or None)
    async with serve(spec, classifier=classifier, key=key, expert_key=expert_key, shared=shared, row=arguments.worker):
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        await stop.wait()


def _read_end(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def main(arguments: list[str] | None = None) -> int:
    """Serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.gateway_worker")
    parser.add_argument("--spec", type=Path, required=True)
    for name in ("--worker", "--port", "--memory"):
        parser.add_argument(name, type=int, required=True)
    return report_errors("gateway", lambda: run_until_stopped(partial(run, parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())
