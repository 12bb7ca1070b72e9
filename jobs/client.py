"""One client process at one level: `python -m jobs.client --spec FILE` obeys the conductor and writes its part.

Commands come on stdin, reports go to stdout, a JSON line each (`erhpc.load.messages`). TERM and INT end the level at
once, and so does the end of stdin; what was measured is written all the same, marked as interrupted. All libraries
are imported at the start, so that writing takes well under a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import msgspec

from erhpc.client.selection import make_client
from erhpc.key_file import read_key_file
from erhpc.load.messages import Command, Report, encode_line, parse_command
from erhpc.load.worker import Worker
from erhpc.plan.protocol import API_PATHS
from erhpc.plan.specs import ClientSpec
from erhpc.results.store import write_part
from erhpc.workload.pool import build_pool
from erhpc.workload.traces import read_trace
from jobs.process import run_job


async def run(spec: ClientSpec, stop: asyncio.Event) -> None:
    """Run the level of `spec`, ended early by `stop`, and write its part."""
    workload = spec.workload
    trace = read_trace(workload.trace, workload.trace_format) if workload.trace is not None else None
    pool = build_pool(workload, spec.seed, trace.draw_lengths if trace is not None else None)
    url = spec.url.rstrip("/") + API_PATHS[workload.api]
    commands: asyncio.Queue[Command | None] = asyncio.Queue()
    reading = asyncio.create_task(read_commands(commands))
    async with make_client(url, workload, spec.load, read_key_file("key_file", spec.key_file)) as client:
        part = await Worker(spec, client, pool, trace, report=print_report).run(commands, stop)
    reading.cancel()
    # Here rather than after the loop: its signal handlers protect the writing from a second TERM.
    write_part(Path(spec.output), part)


async def read_commands(commands: asyncio.Queue[Command | None]) -> None:
    """Pass on the lines of stdin, and None at its end."""
    stream = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    try:
        while line := await stream.readline():
            commands.put_nowait(parse_command(line))
    except msgspec.DecodeError as error:
        print(f"client: a line on stdin is no command: {error}", file=sys.stderr)
    commands.put_nowait(None)


def print_report(report: Report) -> None:
    """One JSON line on stdout; a reader that has left must not cost the level its results."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), encode_line(report))


def main(arguments: list[str] | None = None) -> int:
    """Run the level of the given spec; returns the exit code."""
    return run_job("client", ClientSpec, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
