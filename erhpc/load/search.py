"""Finds the largest load that meets the SLO: doubling until it is missed, then halving what lies between.

Pure: it says what to measure next and is told how that went. It assumes that what a load misses, a larger one
misses too; where noise breaks that, it still ends, and its levels show the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from erhpc.config import SearchConfig
from erhpc.plan.levels import LoadPoint

SIGNIFICANT_DIGITS = 6
"""Rates are rounded to these, so that a result can be typed in again; fine enough for the smallest tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLevel:
    """One measured level; `met` is None where the level was invalid and says nothing."""

    value: float
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The largest load that met the SLO, the smallest that missed it, and the levels that say so."""

    kind: str
    """users or rate: what the values are."""
    largest_met: float | None
    smallest_missed: float | None
    levels: tuple[SearchLevel, ...]
    """Everything measured, in order."""
    reason: str
    """Why the search ended."""

    def describe(self) -> str:
        """One sentence: what was found, by how many levels, and why no more were measured."""
        levels = f"{len(self.levels)} level{'' if len(self.levels) == 1 else 's'}"
        missed = "" if self.smallest_missed is None else f", {self._in_words(self.smallest_missed)} missed it"
        if self.largest_met is None:
            return f"No load met the SLO{missed} ({levels}: {self.reason})."
        return f"{self._in_words(self.largest_met)} met the SLO{missed} ({levels}: {self.reason})."

    def _in_words(self, value: float) -> str:
        return LoadPoint.from_search(self.kind, value).describe()


class Search:
    """Asks for one value after the other; every answer narrows the range, so it always ends.

    Without noise a value within `tolerance` of the largest load that meets the SLO is found after at most
    ceil(log2(high / low)) + 1 levels of doubling and ceil(log2(log 2 / log(1 + tolerance))) of halving (for users,
    one more where rounding costs it).
    """

    def __init__(self, config: SearchConfig) -> None:
        self._config = config
        self._levels: list[SearchLevel] = []
        self._largest_met: float | None = None
        self._smallest_missed: float | None = None
        self._reason: str | None = None
        self._next: float = config.low

    def next_value(self) -> float | None:
        """The load to measure next (a whole number if users are searched), None once the search has ended."""
        return None if self._reason is not None else self._next

    def add(self, value: float, met: bool | None) -> None:
        """Note whether the level at `value`, which `next_value` asked for, met the SLO; None if it was invalid.

        Raises:
            ValueError: another value was asked for, or none.
        """
        if value != self.next_value():
            raise ValueError(f"the search asked for {self.next_value()}, not for {value}")
        is_repeat = bool(self._levels) and self._levels[-1] == SearchLevel(value=value, met=None)
        self._levels.append(SearchLevel(value=value, met=met))
        if met is None:
            if is_repeat:
                self.end(f"{LoadPoint.from_search(self._config.kind, value).describe()} gave an invalid level twice")
        else:
            self._narrow(value, met)
        if self._reason is None and len(self._levels) >= self._config.max_levels:
            self.end(f"search.max_levels={self._config.max_levels} reached")

    def end(self, reason: str) -> None:
        """End the search from outside, e.g. because time is up; the first reason is kept."""
        if self._reason is None:
            self._reason = reason

    def result(self) -> SearchResult:
        """What is known by now."""
        return SearchResult(
            kind=self._config.kind,
            largest_met=self._largest_met,
            smallest_missed=self._smallest_missed,
            levels=tuple(self._levels),
            reason=self._reason or "not ended",
        )

    def _narrow(self, value: float, met: bool) -> None:
        if met:
            self._largest_met = value
        else:
            self._smallest_missed = value
        low, high = self._largest_met, self._smallest_missed
        if low is None:
            self.end(f"search.low={self._config.low:g} missed already")
        elif high is None:
            self._double(low)
        elif self._is_narrow(low, high):
            self.end("the two are as near as asked")
        else:
            self._next = self._between(low, high)

    def _double(self, low: float) -> None:
        if low >= self._config.high:
            self.end(f"search.high={self._config.high:g} met")
        self._next = min(2 * low, self._config.high)

    def _is_narrow(self, low: float, high: float) -> bool:
        return high - low <= self._smallest_gap(low)

    def _smallest_gap(self, low: float) -> float:
        share = self._config.tolerance * low
        return max(share, 1) if self._config.kind == "users" else share

    def _between(self, low: float, high: float) -> float:
        """The geometric mean, as the tolerance is a share; the middle where single users decide."""
        if self._config.kind == "users":
            middle = sqrt(low * high) if self._config.tolerance * low >= 1 else (low + high) / 2
            return min(max(round(middle), low + 1), high - 1)
        middle = sqrt(low * high)
        rounded = float(f"{middle:.{SIGNIFICANT_DIGITS}g}")
        return rounded if low < rounded < high else middle
