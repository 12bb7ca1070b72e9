"""Writes the report of some runs: tables and what goes with them on a console, the figures into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.text import Text

from erhpc.report.clients import describe_clients
from erhpc.report.figures import write_figures
from erhpc.report.predictions import comparison_table, load_predictions
from erhpc.report.runs import load_levels
from erhpc.report.searches import FoundLimit, describe_limits, list_largest_loads, load_limits
from erhpc.report.series import split_series
from erhpc.report.tables import arrivals_table, summary_table
from erhpc.results.paths import RunPaths


def write_report(runs: Sequence[RunPaths], output: Path, console: Console) -> list[Path]:
    """Print the tables of `runs`, write their figures to `output`, and name them; returns the figures' paths.

    Raises:
        InputError: a run has no level, or a damaged search.json.
        SchemaMismatch: results were written by another version of erhpc.
    """
    levels, limits, predictions = load_levels(runs), load_limits(runs), load_predictions(runs)
    console.print(compose_text(levels, limits, predictions))
    figures = write_figures(levels, output, list_largest_loads(limits), predictions)
    for figure in figures:
        console.print(f"figure: {figure}")
    return figures


def compose_text(
    levels: pd.DataFrame, limits: Mapping[str, FoundLimit], predictions: pd.DataFrame | None = None
) -> RenderableType:
    """All that is said of `levels`: the table, what searches found, the clients, the arrivals, what was predicted."""
    series = split_series(levels)
    lines = [*describe_limits(limits, series), *describe_clients(series)]
    tables = [arrivals_table(levels), comparison_table(levels, predictions)]
    shown = [table for table in tables if table is not None]
    return Group(summary_table(levels), *map(Text, lines), *([Text()] if lines else []), *shown)
