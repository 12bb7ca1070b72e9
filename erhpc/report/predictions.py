"""What was predicted of a run, beside what was measured: rows matched by load, and a table with their ratio.

Pure but for reading the files. A prediction never becomes a level: it stays in columns of its own, named so.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from erhpc.report.cells import MISSING, format_rate, format_ratio, format_seconds, is_known
from erhpc.report.layout import Level, LevelTable, TableColumn, make_title
from erhpc.report.loads import describe_load
from erhpc.report.runs import PREDICTED_MARK
from erhpc.report.series import split_series
from erhpc.results.paths import RunPaths
from erhpc.results.record import name_bound
from erhpc.results.store import read_prediction

PREFIX = "predicted_"
COMPARED = {"tok/s": "output_tokens_per_s", "TTFT p50": "ttft_p50_s", "TPOT p50": "tpot_p50_s"}
"""Headings and columns of the table."""
_KEYS = ("experiment", "run_id", "users", "rate_per_s")
"""What a measured level and its prediction have in common."""


def load_predictions(runs: Sequence[RunPaths]) -> pd.DataFrame | None:
    """The predicted levels of all runs, with PREDICTION_COLUMNS; None if none has a prediction.

    Raises:
        InputError: a file is damaged.
        SchemaMismatch: another version of erhpc wrote one.
    """
    frames = [frame for frame in (read_prediction(run.root) for run in runs) if frame is not None and len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else None


def match_predictions(levels: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The levels whose load was predicted, with what was predicted of each in columns that begin with PREFIX."""
    rows = predictions.to_dict("records")
    # A search may come to a load at another level than the prediction; a sweep may repeat one.
    known = {_key(row): row for row in rows} | {(*_key(row), row["level"]): row for row in rows}
    found = [known.get((*_key(row), row["level"]), known.get(_key(row))) for row in levels.to_dict("records")]
    names = [
        name for column in COMPARED.values() for name in (column, name_bound(column, "low"), name_bound(column, "high"))
    ]
    values = {PREFIX + name: [None if row is None else row[name] for row in found] for name in names}
    return levels.assign(**values)[[row is not None for row in found]]


def comparison_table(levels: pd.DataFrame, predictions: pd.DataFrame | None) -> RenderableType | None:
    """Measured, predicted and their ratio, a row per level; None if no level was predicted."""
    matched = None if predictions is None else match_predictions(levels, predictions)
    if matched is None or matched.empty:
        return None
    title = make_title("prediction beside measurement", matched)
    title.append("\n").append(f" columns named predicted are {PREDICTED_MARK} ", style="bold white on red")
    columns = [TableColumn("load", describe_load), *(column for heading in COMPARED for column in _compare(heading))]
    legend = "In brackets the 90 % interval of the constants' ranges; ratio: measured over predicted."
    return Group(LevelTable(title, split_series(matched), columns), Text(legend, style="dim"), Text())


def _compare(heading: str) -> tuple[TableColumn, TableColumn, TableColumn]:
    column = COMPARED[heading]
    show = format_rate if column.endswith("per_s") else format_seconds

    def show_predicted(level: Level) -> str:
        low, high = (level[PREFIX + name_bound(column, end)] for end in ("low", "high"))
        interval = f" [{show(low)}, {show(high)}]" if is_known(low) and is_known(high) else ""
        return show(level[PREFIX + column]) + interval

    def show_ratio(level: Level) -> str:
        measured, predicted = level[column], level[PREFIX + column]
        return (
            format_ratio(measured / predicted) if is_known(measured) and is_known(predicted) and predicted else MISSING
        )

    return (
        TableColumn(heading, lambda level: show(level[column])),
        TableColumn(f"predicted\n{heading}", show_predicted),
        TableColumn("ratio", show_ratio),
    )


def _key(row: Level) -> tuple[object, ...]:
    return tuple(row[name] if is_known(row[name]) else None for name in _KEYS)
