"""What each level was asked to carry: users in a closed loop, requests per second in an open one.

It knows neither tables nor figures. The two kinds share no axis: users wait for their answers, arrivals do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from erhpc.report.cells import is_known


def split_loops(levels: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The levels of closed loops (they have users) and those of open loops; either may be empty."""
    is_closed = levels["users"].notna()
    return levels[is_closed], levels[~is_closed]


def is_open(levels: pd.DataFrame) -> bool:
    """Whether `levels` are of open loops.

    Raises:
        ValueError: some are and some are not.
    """
    closed, opened = split_loops(levels)
    if len(closed) and len(opened):
        raise ValueError(f"{len(closed)} levels of closed loops and {len(opened)} of open ones have no common axis")
    return len(opened) > 0


def read_loads(levels: pd.DataFrame) -> pd.Series:
    """The load of each level as a number: users, or the rate asked for, or that of a trace replayed at its own.

    NaN where none is known.
    """
    columns = (levels[name].astype("Float64") for name in ("users", "rate_per_s", "due_per_s"))
    users, asked_per_s, due_per_s = columns
    return users.fillna(asked_per_s).fillna(due_per_s).astype("float64")


def describe_load(level: Mapping[str, Any]) -> str:
    """The load of a level (LEVEL_COLUMNS) in words: 100 users, 12.5/s, or trace 3.2/s for one at its own rate."""
    if is_known(level["users"]):
        return "1 user" if level["users"] == 1 else f"{level['users']:.0f} users"
    if is_known(level["rate_per_s"]):
        return f"{level['rate_per_s']:.6g}/s"
    return f"trace {level['due_per_s']:.3g}/s" if is_known(level["due_per_s"]) else "trace"
