"""What the searches of some runs found: search.json, and the sentence that says it.

It searches nothing; which load comes next is decided where the load is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from erhpc.errors import InputError
from erhpc.report.loads import describe_load
from erhpc.report.series import Series
from erhpc.results.paths import RunPaths
from erhpc.results.store import read_levels


@dataclass(frozen=True)
class FoundLimit:
    """The result of a search, as search.json holds it."""

    kind: Literal["users", "rate"]
    largest_met: float | None
    """The largest load that met the SLO; None if none did."""
    smallest_missed: float | None
    levels: list[dict[str, Any]]
    """Every level that was measured, in order."""
    reason: str
    """Why the search ended."""

    def describe(self) -> str:
        """One sentence: what was found, by how many levels, and why no more were measured."""
        evidence = f"{len(self.levels)} level{'' if len(self.levels) == 1 else 's'}: {self.reason}"
        met = "no load" if self.largest_met is None else self._name(self.largest_met)
        missed = "" if self.smallest_missed is None else f", {self._name(self.smallest_missed)} missed it"
        return f"{met} met the SLO{missed} ({evidence})"

    def _name(self, value: float) -> str:
        is_rate = self.kind == "rate"
        return describe_load({"users": None if is_rate else value, "rate_per_s": value if is_rate else None})


def load_limits(runs: Sequence[RunPaths]) -> dict[str, FoundLimit]:
    """What the searches of `runs` found, by the run's id; nothing for a run without a search or without a level.

    Raises:
        InputError: a search.json is damaged.
        SchemaMismatch: another version of erhpc wrote a run.
    """
    limits: dict[str, FoundLimit] = {}
    for run in runs:
        if run.search.exists():
            # A copied folder may bear another name than the run.
            ids = read_levels(run.root)["run_id"]
            limits |= {run_id: _read_limit(run) for run_id in ids[:1]}
    return limits


def describe_limits(limits: Mapping[str, FoundLimit], series: Sequence[Series]) -> list[str]:
    """A line for each run of `series` that searched; it bears the run's name where there are several runs."""
    return [
        f"search{'' if len(series) == 1 else f' of {run.name}'}: {limits[run.run_id].describe()}"
        for run in series
        if run.run_id in limits
    ]


def list_largest_loads(limits: Mapping[str, FoundLimit]) -> dict[str, float]:
    """The largest load that met the SLO of each search that found one, by the run's id."""
    return {run_id: limit.largest_met for run_id, limit in limits.items() if limit.largest_met is not None}


def _read_limit(run: RunPaths) -> FoundLimit:
    try:
        return msgspec.json.decode(run.search.read_bytes(), type=FoundLimit)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{run.search} holds no result of a search: {error}. Delete it to report without.") from error
