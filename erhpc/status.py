"""The verb `python -m erhpc.status RUN...`: attach to runs, or cancel them. Ctrl-C leaves a run alone."""

from __future__ import annotations

import argparse
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
        cancelled = [_guard(_cancel, run, console) for run in runs] if options.cancel else []
        shown = [_guard(_show if options.once else _follow, run, console) for run in runs]
        return max(*cancelled, *shown, 0)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _guard(act: Callable[[RunPaths, Console], int], run: RunPaths, console: Console) -> int:
    """A run that cannot be looked at must not keep the others from it."""
    try:
        return act(run, console)
    except ErhpcError as error:
        print(f"{run.root}: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _cancel(run: RunPaths, _console: Console) -> int:
    cancel(read_job(run), run)
    return 0


def _show(run: RunPaths, console: Console) -> int:
    job = read_job(run)
    console.print(f"run: {run.root}")
    LineView(console).show(read_status(run.status), query_state(job, run))
    return 0


def _follow(run: RunPaths, console: Console) -> int:
    job = read_job(run)
    console.print(f"run: {run.root}")
    return conclude(follow(job, run, console), run, console)


if __name__ == "__main__":
    sys.exit(main())
