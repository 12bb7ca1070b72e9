"""When a sweep ends before its last level: the SLO missed too often, too many failures, no time left.

Pure: it judges rows of `levels.parquet` and seconds it is given, and ends nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erhpc.config import SloConfig, StopConfig
from erhpc.results.validity import OVERLOAD_SIGNS


def meets_slo_level(row: Mapping[str, Any], slo: SloConfig) -> bool | None:
    """Whether enough requests of a level met the SLO; None if the level is invalid or nothing was attained or missed.

    A level that is invalid for no other reason than that the server could not take it has missed the SLO. `row`
    needs `valid`, `invalid_reasons` and `slo_attainment` of LEVEL_COLUMNS.
    """
    if row["slo_attainment"] is None:
        return None
    is_met = bool(row["slo_attainment"] >= slo.attainment)
    if row["valid"]:
        return is_met
    is_overloaded = all(reason.startswith(OVERLOAD_SIGNS) for reason in row["invalid_reasons"])
    return False if is_overloaded and not is_met else None


class StopRules:
    """Judges the levels of one sweep in the order in which they were measured."""

    def __init__(self, config: StopConfig, slo: SloConfig) -> None:
        self._config = config
        self._slo = slo
        self._num_misses = 0

    def judge(self, row: Mapping[str, Any]) -> str | None:
        """Why the sweep ends after the level of `row` (with LEVEL_COLUMNS), None if it goes on.

        A level that says nothing about the SLO (`meets_slo_level`) neither counts as a miss nor ends a series of
        them. Failures count in invalid levels too.
        """
        met = meets_slo_level(row, self._slo)
        if met is not None:
            self._num_misses = 0 if met else self._num_misses + 1
        return self._judge_failures(row) or (self._judge_misses(row) if met is False else None)

    def allows(self, expected_level_s: float, elapsed_s: float) -> str | None:
        """Why no further level of `expected_level_s` begins, `elapsed_s` after the first one did; None if it may."""
        budget_s = self._config.time_budget_s
        if budget_s is None or elapsed_s + expected_level_s <= budget_s:
            return None
        return (
            f"a level of {expected_level_s:.0f} s would end {elapsed_s + expected_level_s:.0f} s after the sweep "
            f"began, over stop.time_budget_s={budget_s:g}"
        )

    def _judge_failures(self, row: Mapping[str, Any]) -> str | None:
        limit = self._config.failed_share
        num_failed = row["requests_failed"]
        num_sent = row["requests_ok"] + num_failed + row["requests_cancelled"]
        if limit is None or num_failed <= limit * num_sent:
            return None
        return f"{num_failed} of {num_sent} requests failed, over stop.failed_share={limit:g}"

    def _judge_misses(self, row: Mapping[str, Any]) -> str | None:
        limit = self._config.slo_misses
        if limit is None or self._num_misses < limit:
            return None
        levels = "1 level" if limit == 1 else f"{limit} levels in a row"
        return (
            f"{levels} missed the SLO (stop.slo_misses={limit}); in the last one {row['slo_attainment']:.1%} of the "
            f"requests met it, slo.attainment={self._slo.attainment:g} must"
        )
