"""Which level comes next: the planned ones in order, or those of a search, until a rule ends the sweep.

Pure: it is told how levels ended and how much time has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erhpc.config import SearchConfig, SloConfig, StopConfig
from erhpc.load.search import Search, SearchResult
from erhpc.load.stopping import StopRules, meets_slo_level
from erhpc.plan.levels import LoadPoint


class Sweep:
    """The levels of one run. `planned` has a point per level, or None where a search finds them."""

    def __init__(
        self, planned: Sequence[LoadPoint | None], search: SearchConfig, stop: StopConfig, slo: SloConfig
    ) -> None:
        self._planned = planned
        self._slo = slo
        self._rules = StopRules(stop, slo)
        self._search = Search(search) if search.kind != "none" else None
        self._kind = search.kind
        self._num_levels = 0
        self._value = 0.0
        self.reason = ""
        """Why the sweep ended before its last planned level; empty if it did not."""

    @property
    def result(self) -> SearchResult | None:
        """What the search has found so far, None without one."""
        return self._search.result() if self._search is not None else None

    def describe_end(self) -> str:
        """What the search found, or why levels are missing; empty if all planned ones were measured."""
        return self.result.describe() if self.result is not None else self.reason

    def next_point(self, expected_level_s: float, elapsed_s: float) -> LoadPoint | None:
        """The load of the next level, None if there is none; times in seconds since the first one began."""
        refusal = self._rules.allows(expected_level_s, elapsed_s) if self._num_levels else None
        if refusal is not None:
            self._stop(refusal)
        if self.reason or self._num_levels >= len(self._planned):
            return None
        if self._search is None:
            return self._planned[self._num_levels]
        value = self._search.next_value()
        if value is None:
            return None
        self._value = value
        return LoadPoint.from_search(self._kind, value)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the row of the level that has ended."""
        self._num_levels += 1
        if self._search is not None:
            self._search.add(self._value, meets_slo_level(row, self._slo))
        refusal = self._rules.judge(row)
        # A search goes beyond the SLO on purpose, that is how it finds the boundary.
        if refusal is not None:
            self._stop(refusal)

    def _stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        if self._search is not None:
            self._search.end(reason)
