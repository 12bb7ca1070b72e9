"""What one value looks like in a table: durations, rates, shares, and a dash for what was not measured.

Pure: it knows no table and no column.
"""

from __future__ import annotations

from math import floor
from typing import Any

import pandas as pd

MISSING = "-"


def is_known(value: Any) -> bool:
    """Whether a cell of a level holds a value: neither None nor pandas' NA or NaN."""
    return value is not None and not pd.isna(value)


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


def format_ratio(value: float | None) -> str:
    """A number without a unit, to three significant digits; `-` if there is none."""
    if value is None or pd.isna(value):
        return MISSING
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def format_margin(value: float | None) -> str:
    """How many times more something could take: 2.4x, 51x; `-` if that is not known."""
    if value is None or pd.isna(value):
        return MISSING
    return f"{value:.1f}x" if value < 9.95 else f"{value:,.0f}x"


def format_percent(share: float | None) -> str:
    """A share as a number of percent, cut after one decimal: 0.9996 is not yet 100; `-` if there is none."""
    if share is None or pd.isna(share):
        return MISSING
    # What was cut off before cutting: 0.57 * 1000 is a little less than 570.
    return f"{floor(round(share * 1000, 6)) / 10:g}"


def format_change(value: int | None) -> str:
    """A difference with its sign: +120, -3, 0; `-` if there is none."""
    if value is None or pd.isna(value):
        return MISSING
    return f"{value:+,d}" if value else "0"


def _format_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"
