"""Prints measurements: reported minus true per level, then the targets. Medians over the repeats, and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.bench.load.measurement import Measurement

Value = Callable[[Measurement], float | None]


@dataclass(frozen=True)
class Column:
    """One column of the tables."""

    title: str
    value: Value
    style: str


def _minus(reported: float | None, true: float | None) -> float | None:
    return None if reported is None or true is None else reported - true


def _percent(part: float | None, whole: float) -> float | None:
    return None if part is None else 100 * part / whole


COLUMNS = (
    Column("TTFT mean", lambda m: _minus(m.reported_ttft.mean_ms, m.true_ttft.mean_ms), "+.2f"),
    Column("TTFT p50", lambda m: _minus(m.reported_ttft.p50_ms, m.true_ttft.p50_ms), "+.2f"),
    Column("TTFT p99", lambda m: _minus(m.reported_ttft.p99_ms, m.true_ttft.p99_ms), "+.2f"),
    Column("gap mean", lambda m: _minus(m.reported_gap.mean_ms, m.true_gap.mean_ms), "+.2f"),
    Column("gap p50", lambda m: _minus(m.reported_gap.p50_ms, m.true_gap.p50_ms), "+.2f"),
    Column("gap p99", lambda m: _minus(m.reported_gap.p99_ms, m.true_gap.p99_ms), "+.2f"),
    Column("rate told %", lambda m: _percent(m.reported_tokens_per_s, m.true_tokens_per_s), ".1f"),
    Column("of possible %", lambda m: 100 * m.possible_share, ".1f"),
    Column("held", lambda m: m.held, ".1f"),
    Column("CPU us/token", lambda m: m.cpu_us_per_token, ".1f"),
    Column("RSS MiB", lambda m: m.peak_rss_bytes / 2**20, ".0f"),
)
TRUTH_COLUMNS = (
    Column("TTFT mean", lambda m: m.true_ttft.mean_ms, ".2f"),
    Column("TTFT p99", lambda m: m.true_ttft.p99_ms, ".2f"),
    Column("gap p50", lambda m: m.true_gap.p50_ms, ".2f"),
    Column("gap p99", lambda m: m.true_gap.p99_ms, ".2f"),
    Column("mock late p99", lambda m: m.mock_late_p99_ms, ".2f"),
    Column("requests", lambda m: m.true_requests, ".0f"),
    Column("reported on", lambda m: m.requests, ".0f"),
    Column("kernel stamps %", lambda m: 100 * m.kernel_arrivals, ".0f"),
    Column("seconds", lambda m: m.seconds, ".1f"),
)
HEADING = """
{users} users: reported minus true, ms; median of {repeats} repeats (least..most)
  rate told: token rate reported over the true one; of possible: true rate in steady state over that of a client that
  is never late; held: requests in flight in steady state; RSS: of all its processes, shared pages counted in each"""
TRUTH_HEADING = """
{users} users: the truth, ms (as the mock recorded it during each client's run)"""


def median_of(measurements: Iterable[Measurement], value: Value) -> float | None:
    """Median over those that know the value."""
    known = [found for measurement in measurements if (found := value(measurement)) is not None]
    return statistics.median(known) if known else None


def clients_of(measurements: Iterable[Measurement]) -> list[str]:
    """Names of the clients, erhpc's first."""
    names = list(dict.fromkeys(measurement.client for measurement in measurements))
    return sorted(names, key=lambda name: (not name.startswith("erhpc"), names.index(name)))


def level_tables(measurements: Sequence[Measurement], users: int) -> str:
    """Both tables of one level."""
    level = [measurement for measurement in measurements if measurement.users == users]
    repeats = max((measurement.repeat for measurement in level), default=-1) + 1
    headings = (HEADING.format(users=f"{users:,}", repeats=repeats), TRUTH_HEADING.format(users=f"{users:,}"))
    return "\n".join(
        f"{heading}\n{_table(level, columns)}"
        for heading, columns in zip(headings, (COLUMNS, TRUTH_COLUMNS), strict=True)
    )


def _table(level: Sequence[Measurement], columns: Sequence[Column]) -> str:
    rows = [
        [client, *(_cell([m for m in level if m.client == client], column) for column in columns)]
        for client in clients_of(level)
    ]
    return align([["", *(column.title for column in columns)], *rows])


def _cell(measurements: Sequence[Measurement], column: Column) -> str:
    known = [found for measurement in measurements if (found := column.value(measurement)) is not None]
    if not known:
        return "-"
    median = format(statistics.median(known), column.style)
    if len(known) == 1:
        return median
    return f"{median} ({format(min(known), column.style)}..{format(max(known), column.style)})"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
