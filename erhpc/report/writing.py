"""Writes the report of some runs: the table on a console, the figures into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from erhpc.report.figures import write_figures
from erhpc.report.runs import load_levels
from erhpc.report.tables import summary_table
from erhpc.results.paths import RunPaths


def write_report(runs: Sequence[RunPaths], output: Path, console: Console) -> list[Path]:
    """Print the table of `runs`, write their figures to `output`, and name them; returns the figures' paths.

    Raises:
        InputError: a run has no level.
        SchemaMismatch: results were written by another version of erhpc.
    """
    levels = load_levels(runs)
    console.print(summary_table(levels))
    figures = write_figures(levels, output)
    for figure in figures:
        console.print(f"figure: {figure}")
    return figures
