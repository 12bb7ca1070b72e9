"""Levels as a table for the terminal: one row per level, and below it why a level is not to be trusted.

Pure: a data frame in, a rich table out. It knows no file and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from erhpc.report.runs import MARK, is_all_emulated, is_emulated
from erhpc.report.series import Series, split_series

MISSING = "-"
STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "collapse_padding": True,
    "title_style": "bold",
}
SECTION_STYLE: dict[str, Any] = {"show_header": False, "title_justify": "left"}
BLANK_LINE = Text()
LATENCY_COLUMNS = (
    ("TTFT\np50", "ttft_p50_s"),
    ("TTFT\np99", "ttft_p99_s"),
    ("TPOT\np50", "tpot_p50_s"),
    ("TPOT\np99", "tpot_p99_s"),
    ("E2E\np50", "e2e_p50_s"),
)
HEADINGS = ("users", "ok", "failed", "tok/s", *(heading for heading, _ in LATENCY_COLUMNS), "valid")


def summary_table(levels: pd.DataFrame) -> RenderableType:
    """One row per level of `levels` (LEVEL_COLUMNS), in the given order; of several runs, each below its own name.

    Rates are per second, latencies carry their unit; below it stand the reasons of every invalid level.
    """
    series = split_series(levels)
    widths = _measure_columns(levels)
    alone = len(series) == 1
    table = _make_table(widths, levels if alone else levels[:0], title=_make_title(levels))
    sections = [BLANK_LINE] if alone else _make_sections(widths, series)
    return Group(table, *sections, *_list_invalid_levels(series))


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


def _measure_columns(levels: pd.DataFrame) -> list[int]:
    """Width in characters of each column, so that the sections of all runs line up."""
    rows = [HEADINGS, *(tuple(_make_cells(level)) for level in levels.to_dict("records"))]
    return [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]


def _make_sections(widths: Sequence[int], series: Sequence[Series]) -> Iterator[RenderableType]:
    for run in series:
        yield _make_table(widths, run.levels, title=run.full_name, **SECTION_STYLE)
        yield BLANK_LINE


def _make_table(widths: Sequence[int], levels: pd.DataFrame, **style: Any) -> Table:
    table = Table(**(STYLE | style))
    for heading, width in zip(HEADINGS, widths, strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for level in levels.to_dict("records"):
        table.add_row(*_make_cells(level), style=None if level["valid"] else "yellow")
    return table


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


def _list_invalid_levels(series: Sequence[Series]) -> Iterator[RenderableType]:
    lines = [
        f"  {run.name}, {level['users']} users: {reason}"
        for run in series
        for level in run.levels.to_dict("records")
        if not level["valid"]
        for reason in level["invalid_reasons"]
    ]
    if lines:
        yield Text("\n".join(["Not to be trusted", *lines, ""]), style="yellow")
