"""Which plots an overview consists of: what each shows, how its axes read, and what is plotted along the load.

Pure: it knows no library that draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from erhpc.report.cells import format_percent
from erhpc.report.loads import is_open
from erhpc.report.scales import format_count, format_duration


@dataclass(frozen=True)
class Panel:
    """One plot of the overview: a title, the columns drawn (with line style), and how its axis reads."""

    title: str
    lines: tuple[tuple[str, str], ...]
    format_value: Callable[[float], str]
    is_share: bool = False
    """From 0 to 1 on a linear axis; all others are logarithmic."""


THROUGHPUT = Panel("Throughput: answer tokens per second", (("output_tokens_per_s", "-"),), format_count)
GOODPUT = Panel("Goodput: requests per second that met the SLO", (("goodput_per_s", "-"),), format_count)
ATTAINMENT = Panel(
    "SLO: share of requests that met it",
    (("slo_attainment", "-"),),
    lambda share: f"{format_percent(share)} %",
    is_share=True,
)
TTFT_LINES = (("ttft_p50_s", "-"), ("ttft_p99_s", "--"))
TPOT = Panel("TPOT: time per output token, p50 and p99", (("tpot_p50_s", "-"), ("tpot_p99_s", "--")), format_duration)
E2E_LINES = (("e2e_p50_s", "-"),)
CLOSED_LATENCIES = (
    Panel("TTFT: time to first token, p50 and p99", TTFT_LINES, format_duration),
    TPOT,
    Panel("E2E: end-to-end latency, p50", E2E_LINES, format_duration),
)
OPEN_LATENCIES = (
    Panel("TTFT from the scheduled time, p50 and p99", TTFT_LINES, format_duration),
    TPOT,
    Panel("E2E from the scheduled time, p50", E2E_LINES, format_duration),
)


def choose_panels(levels: pd.DataFrame) -> tuple[Panel, ...]:
    """The panels of an overview of `levels`, row by row in two columns; those of the SLO only where there is one.

    Raises:
        ValueError: some levels are of closed loops and some of open ones.
    """
    latencies = OPEN_LATENCIES if is_open(levels) else CLOSED_LATENCIES
    if levels["slo_attainment"].isna().all():
        return (THROUGHPUT, *latencies)
    return (THROUGHPUT, GOODPUT, *latencies, ATTAINMENT)


def name_load_axis(levels: pd.DataFrame) -> str:
    """What the axis of the load says."""
    return "offered load: requests per second" if is_open(levels) else "concurrent users"
