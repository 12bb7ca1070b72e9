"""`python -m erhpc.report RUN...`: print the table of some runs, write their figures, say where they are.

Thin assembly: what a run is, what the table says and how figures look belongs to the room's other modules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from erhpc.console import open_console
from erhpc.errors import ErhpcError
from erhpc.report.runs import find_runs
from erhpc.report.writing import write_report
from erhpc.results.paths import RunPaths

EXIT_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on the runs that `arguments` name; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        runs = find_runs(options.runs)
        write_report(runs, options.output or choose_output(runs), open_console())
    except ErhpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line of the verb."""
    parser = argparse.ArgumentParser(prog="python -m erhpc.report", description="Tables and figures of finished runs.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run, or a folder of runs")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="folder for the figures (one run: its report/; several: ./report)"
    )
    return parser


def choose_output(runs: Sequence[RunPaths]) -> Path:
    """Where figures go unless told: beside the results of a single run, else ./report."""
    return runs[0].report if len(runs) == 1 else Path("report")


if __name__ == "__main__":
    sys.exit(main())
