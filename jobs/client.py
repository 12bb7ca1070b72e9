"""One client process at one level: `python -m jobs.client --spec FILE` prints progress and writes its part.

TERM and INT end the level at once; what was measured is written all the same, marked as interrupted. All libraries
are imported at the start, so that writing takes well under a second.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
from erhpc.load.level import run_level

from erhpc.corpus.prompts import Prompt, read_prompts
from erhpc.load.progress import Progress
from erhpc.load.requests import choose_prompts
from erhpc.load.streaming import AiohttpClient
from erhpc.plan.protocol import API_PATHS
from erhpc.plan.specs import ClientSpec
from erhpc.results.store import write_part
from jobs.process import read_key, run_job


async def run(spec: ClientSpec, stop: asyncio.Event) -> None:
    """Run the level of `spec`, ended early by `stop`, and write its part."""
    prompts, key = load_prompts(spec), read_key(spec.key_file)
    url = spec.url.rstrip("/") + API_PATHS[spec.workload.api]
    async with AiohttpClient(url, timeout_s=spec.workload.timeout_s, key=key) as client:
        part = await run_level(spec, client, prompts, stop=stop, on_progress=print_progress)
    # Here rather than after the loop: its signal handlers protect the writing from a second TERM.
    write_part(Path(spec.output), part)


def load_prompts(spec: ClientSpec) -> list[Prompt]:
    """The prompts of the workload and the domains asked for; none if the texts are synthetic."""
    if spec.workload.format == "synthetic":
        return []
    return choose_prompts(read_prompts(spec.workload.prompts, spec.workload.format), spec.domains)


def print_progress(progress: Progress) -> None:
    """One JSON line on stdout; a reader that has left must not cost the level its results."""
    try:
        os.write(sys.stdout.fileno(), msgspec.json.encode(progress) + b"\n")
    except BrokenPipeError:
        return


def main(arguments: list[str] | None = None) -> int:
    """Run the level of the given spec; returns the exit code."""
    return run_job("client", ClientSpec, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
