"""The verb `python -m erhpc.status RUN...`: attach to runs, or cancel them. Ctrl-C leaves a run alone."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from erhpc.cluster.following import follow
from erhpc.cluster.queue import cancel, query_state
from erhpc.cluster.status import read_status
from erhpc.cluster.submission import read_job
from erhpc.cluster.view import LineView
from erhpc.console import open_console
from erhpc.errors import ErhpcError
from erhpc.outcome import conclude
from erhpc.results.paths import RunPaths

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Follow, show or cancel the given runs; returns the worst of their exit codes."""
    parser = argparse.ArgumentParser(prog="python -m erhpc.status", description=__doc__)
    parser.add_argument("run", nargs="+", type=Path, help="run folder that launch printed")
    parser.add_argument("--once", action="store_true", help="show where each run stands and return")
    parser.add_argument(
        "--cancel", action="store_true", help="cancel each run, then follow it to its end (unless --once)"
    )
    options = parser.parse_args(arguments)
    console = open_console()
    try:
        runs = [RunPaths(run.resolve()) for run in options.run]
        codes = [_guard(_cancel, run, console) for run in runs] if options.cancel else []
        attend = _show if options.once else functools.partial(_follow, cancelled=options.cancel)
        return max([*codes, *(_guard(attend, run, console) for run in runs)])
    except KeyboardInterrupt:
        console.print("not following any more; the run goes on")
        return EXIT_INTERRUPTED


def _guard(act: Callable[[RunPaths, Console], int], run: RunPaths, console: Console) -> int:
    """A run that cannot be looked at must not keep the others from it."""
    try:
        return act(run, console)
    except ErhpcError as error:
        print(f"{run.root}: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _cancel(run: RunPaths, console: Console) -> int:
    job = read_job(run)
    if query_state(job, run).is_over:
        console.print(f"{run.root}: has ended, nothing to cancel")
    else:
        cancel(job, run)
    return 0


def _show(run: RunPaths, console: Console) -> int:
    job = read_job(run)
    console.print(f"run: {run.root}")
    queue, status = query_state(job, run), read_status(run.status)
    LineView(console).show(status, queue)
    if queue.is_over and status is not None and not status.is_final:
        console.print("but its job is gone without a last word: killed, or its node failed")
        return EXIT_FAILED
    return 0


def _follow(run: RunPaths, console: Console, *, cancelled: bool) -> int:
    job = read_job(run)
    console.print(f"run: {run.root}")
    return conclude(follow(job, run, console, cancelled=cancelled), run, console)


if __name__ == "__main__":
    sys.exit(main())
