"""Levels as tables for the terminal: how each went, and how the requests of open loops came.

Pure: a data frame in, a rich renderable out. It knows no file and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from erhpc.report.cells import (
    MISSING,
    format_change,
    format_margin,
    format_percent,
    format_rate,
    format_ratio,
    format_seconds,
    is_known,
)
from erhpc.report.layout import Level, LevelTable, TableColumn, make_title
from erhpc.report.loads import describe_load, split_loops
from erhpc.report.series import Series, split_series


def summary_table(levels: pd.DataFrame) -> RenderableType:
    """One row per level of `levels` (LEVEL_COLUMNS), in the given order; of several runs, each below its own name.

    Rates are per second, latencies carry their unit; below it stand the reasons of every invalid level. What no
    level knows (an SLO, the cost of the client) has no column.
    """
    series = split_series(levels)
    title = str(levels["experiment"].iat[0]) if levels["experiment"].nunique() == 1 else "summary of runs"
    table = LevelTable(make_title(title, levels), series, list(_choose_summary_columns(levels)))
    return Group(table, *_list_invalid_levels(series))


def arrivals_table(levels: pd.DataFrame) -> RenderableType | None:
    """How the requests of each open-loop level came, beside what was asked; None if `levels` has no open loop.

    The load is what was asked, due are requests per second, late is sent minus scheduled, backlog the change of the
    number of requests in flight over the window.
    """
    _, opened = split_loops(levels)
    if opened.empty:
        return None
    table = LevelTable(make_title("arrivals", opened), split_series(opened), ARRIVALS_COLUMNS)
    return Group(table, Text(ARRIVALS_LEGEND, style="dim"), Text())


def _show_seconds(heading: str, column: str, *, is_dispensable: bool = False) -> TableColumn:
    return TableColumn(heading, lambda level: format_seconds(level[column]), is_dispensable=is_dispensable)


def _show_client(level: Level) -> str:
    """CPU share of the busiest client process, and how much more the clients could take."""
    share, margin = level["client_cpu_share"], level["client_margin"]
    if not is_known(share) and not is_known(margin):
        return MISSING
    cpu = f"{100 * share:.0f} %" if is_known(share) else MISSING
    return f"{cpu}, {format_margin(margin)}"


def _show_backlog(level: Level) -> str:
    start, end = level["in_flight_start"], level["in_flight_end"]
    return format_change(int(end) - int(start)) if is_known(start) and is_known(end) else MISSING


LOAD = TableColumn("load", describe_load)
OUTCOME_COLUMNS = (
    LOAD,
    TableColumn("ok", lambda level: str(level["requests_ok"])),
    TableColumn("failed", lambda level: str(level["requests_failed"])),
    TableColumn("tok/s", lambda level: format_rate(level["output_tokens_per_s"])),
    _show_seconds("TTFT\np50", "ttft_p50_s"),
    _show_seconds("TTFT\np99", "ttft_p99_s"),
    _show_seconds("TPOT\np50", "tpot_p50_s"),
    _show_seconds("TPOT\np99", "tpot_p99_s"),
    _show_seconds("E2E\np50", "e2e_p50_s", is_dispensable=True),
)
SLO = TableColumn("SLO\n%", lambda level: format_percent(level["slo_attainment"]))
CLIENT = TableColumn("client\nCPU, margin", _show_client, is_dispensable=True)
VALID = TableColumn("valid", lambda level: "yes" if level["valid"] else "NO")
ARRIVALS_COLUMNS = (
    LOAD,
    TableColumn("process", lambda level: level["arrivals"] or MISSING),
    TableColumn("due\n/s", lambda level: format_ratio(level["due_per_s"])),
    TableColumn("gap\nCV", lambda level: format_ratio(level["gap_cv"])),
    TableColumn("dispersion\nindex", lambda level: format_ratio(level["dispersion_index"])),
    TableColumn("KS\np", lambda level: format_ratio(level["arrival_ks_p"])),
    _show_seconds("late\np99", "send_late_p99_s"),
    TableColumn("backlog", _show_backlog),
)
ARRIVALS_LEGEND = (
    "Latencies of open loops count from the scheduled time. Poisson arrivals have a gap CV and a dispersion index "
    "of 1, constant ones of 0. A small p says that the gaps were not as asked."
)


def _choose_summary_columns(levels: pd.DataFrame) -> Iterator[TableColumn]:
    yield from OUTCOME_COLUMNS
    if levels["slo_attainment"].notna().any():
        yield SLO
    if levels[["client_cpu_share", "client_margin"]].notna().any(axis=None):
        yield CLIENT
    yield VALID


def _list_invalid_levels(series: Sequence[Series]) -> Iterator[RenderableType]:
    lines = [
        f"  {run.name}, {describe_load(level)}: {reason}"
        for run in series
        for level in run.levels.to_dict("records")
        if not level["valid"]
        for reason in level["invalid_reasons"]
    ]
    if lines:
        yield Text("\n".join(["Not to be trusted", *lines, ""]), style="yellow")
