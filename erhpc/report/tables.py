"""Levels as a table for the terminal: one row per level, and below it why a level is not to be trusted.

Pure: a data frame in, a rich table out. It knows no file and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from erhpc.report.runs import MARK, is_all_emulated, is_emulated, name_series

MISSING = "-"
STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True, "title_style": "bold"}
LATENCY_COLUMNS = (
    ("TTFT\np50", "ttft_p50_s"),
    ("TTFT\np99", "ttft_p99_s"),
    ("TPOT\np50", "tpot_p50_s"),
    ("TPOT\np99", "tpot_p99_s"),
    ("E2E\np50", "e2e_p50_s"),
)


def summary_table(levels: pd.DataFrame) -> RenderableType:
    """One row per level of `levels` (LEVEL_COLUMNS), in the given order, a section per run.

    Rates are per second, latencies carry their unit; below it stand the reasons of every invalid level.
    """
    table = Table(title=_make_title(levels), **STYLE)
    if several := levels["run_id"].nunique() > 1:
        table.add_column("run", overflow="fold")
    for name in ("users", "ok", "failed", "tok/s", *(name for name, _ in LATENCY_COLUMNS)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("valid", justify="center")
    for (experiment, run_id, engine), run in levels.groupby(["experiment", "run_id", "engine"], sort=False):
        names = chain([f"{name_series(experiment, engine)}\n{run_id}"], repeat(""))
        for name, level in zip(names, run.to_dict("records"), strict=False):
            cells = [name, *_make_cells(level)] if several else _make_cells(level)
            table.add_row(*cells, style=None if level["valid"] else "yellow")
        table.add_section()
    reasons = _list_invalid_levels(levels)
    return table if reasons is None else Group(table, reasons)


def format_seconds(value_s: float | None) -> str:
    """A duration with three significant digits in the unit that suits it: 85.2 ms, 1.23 s; `-` if there is none."""
    if value_s is None or pd.isna(value_s):
        return MISSING
    if value_s < 0.9995:
        return f"{_format_digits(value_s * 1000)} ms"
    return f"{_format_digits(value_s)} s"


def format_rate(value: float | None) -> str:
    """A rate with a separator between thousands, and decimals only where they matter; `-` if there is none."""
    if value is None or pd.isna(value):
        return MISSING
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def _format_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def _make_cells(level: dict[str, Any]) -> Iterator[str]:
    yield from (str(level[name]) for name in ("users", "requests_ok", "requests_failed"))
    yield format_rate(level["output_tokens_per_s"])
    yield from (format_seconds(level[column]) for _, column in LATENCY_COLUMNS)
    yield "yes" if level["valid"] else "NO"


def _make_title(levels: pd.DataFrame) -> Text:
    experiments = ", ".join(dict.fromkeys(levels["experiment"]))
    title = Text(experiments if levels["experiment"].nunique() == 1 else "summary of runs")
    if is_emulated(levels):
        mark = MARK if is_all_emulated(levels) else f"runs named (emulated) are {MARK}"
        title.append("\n").append(f" {mark} ", style="bold white on red")
    return title


def _list_invalid_levels(levels: pd.DataFrame) -> Text | None:
    invalid = levels[~levels["valid"].astype(bool)]
    lines = [
        f"{name_series(level['experiment'], level['engine'])}, {level['users']} users: {reason}"
        for level in invalid.to_dict("records")
        for reason in level["invalid_reasons"]
    ]
    return Text("Not to be trusted\n" + "\n".join(f"  {line}" for line in lines), style="yellow") if lines else None
