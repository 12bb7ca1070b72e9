"""How axes read: which values of a log axis bear a label, and what the label says.

Pure: it knows no figure and no library that draws.
"""

from __future__ import annotations

from collections.abc import Iterable

MIN_TICK_RATIO = 1.35
"""Levels nearer to each other than this share one tick label on the log axis, or labels would overlap."""
FINE_DIGITS = tuple(digit / 10 for digit in (*range(10, 20), *range(20, 50, 2), *range(50, 100, 5)))
"""From 1 to 10 in steps of 4 to 10 percent."""


def choose_ticks(loads: Iterable[float]) -> list[float]:
    """The levels to label on a log axis: all of them, less those that would touch a larger neighbour's label."""
    ticks: list[float] = []
    for load in sorted(set(loads), reverse=True):
        if not ticks or ticks[-1] / load >= MIN_TICK_RATIO:
            ticks.append(load)
    return ticks[::-1]


def choose_digits(span: float) -> tuple[float, ...]:
    """Which multiples of each power of ten to label on a log axis whose ends have the ratio `span`."""
    if span > 2000:
        return (1,)
    if span > 10:
        return (1, 2, 5)
    return (1, 1.5, 2, 3, 4, 5, 7) if span > 2 else FINE_DIGITS


def format_duration(value_s: float) -> str:
    """An axis label for a duration in seconds: 20 ms, 1.5 s."""
    return f"{value_s * 1000:.4g} ms" if value_s < 0.9995 else f"{value_s:.4g} s"


def format_load(value: float) -> str:
    """An axis label for a load: 1,000 users as they are, a rate to three digits."""
    return format_count(value if value == round(value) else float(f"{value:.3g}"))


def format_count(value: float) -> str:
    """An axis label for a rate: 50, 2,000."""
    return f"{value:,.10g}"
