"""What all of erhpc's own processes share: read the spec, run until done or told to stop, turn errors into exit codes.

Exit code 0: done, or stopped by TERM, INT or USR2; 1, with one line on stderr: the spec, or what it names, is unusable.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

from erhpc.errors import ErhpcError, InputError

Spec = TypeVar("Spec")


def run_job(
    name: str, kind: type[Spec], work: Callable[[Spec, asyncio.Event], Awaitable[None]], arguments: list[str] | None
) -> int:
    """Run `work(spec, stop)` for `python -m jobs.<name> --spec FILE`; signals set `stop`. The exit code."""
    path = parse_spec_path(name, kind, arguments)
    return report_errors(name, lambda: run_until_stopped(partial(work, read_spec(path, kind))))


def parse_spec_path(name: str, kind: type[Any], arguments: list[str] | None) -> Path:
    """The FILE of `python -m jobs.<name> --spec FILE`."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}")
    parser.add_argument("--spec", type=Path, required=True, help=f"{kind.__name__} as JSON, written by a plan")
    path: Path = parser.parse_args(arguments).spec
    return path


def report_errors(name: str, work: Callable[[], None]) -> int:
    """Do `work`; the exit code: 1, with one line on stderr, if it raises an ErhpcError."""
    try:
        work()
    except ErhpcError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_until_stopped(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `work(stop)` to its end on uvloop, with as many open files as allowed; TERM, INT and USR2 set `stop`."""
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work_until_stopped(work))


async def _work_until_stopped(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    # Slurm's warning before the time limit (USR2) reaches every process of a job, and would kill this one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await work(stop)


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """The spec in `path`.

    Raises:
        InputError: the file cannot be read or holds no such spec.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"--spec {path} is no readable {kind.__name__}: {error}. Give a file that a plan wrote."
        ) from error


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every stream takes a socket or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
