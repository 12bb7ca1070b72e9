"""The load points of a sweep: how many users, or how many requests per second, each level asks for.

Pure. It does not know how a level is run, nor in which order a search comes to its points.
"""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.config import SearchConfig, WorkloadConfig


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """The load of one level: users in a closed loop, a rate in an open one, neither for a trace at its own rate."""

    users: int | None = None
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.users is not None and self.rate_per_s is not None:
            raise ValueError(f"a load point has users or a rate, not both: {self.users} users, {self.rate_per_s}/s")

    @classmethod
    def from_search(cls, kind: str, value: float) -> LoadPoint:
        """The point that a search of `kind` (users or rate) asks to be measured."""
        return cls(users=round(value)) if kind == "users" else cls(rate_per_s=value)

    def describe(self) -> str:
        """The point in words, e.g. "100 users" or "12.5 requests/s"."""
        if self.users is not None:
            return f"{self.users} user" if self.users == 1 else f"{self.users} users"
        if self.rate_per_s is not None:
            return f"{self.rate_per_s:.6g} requests/s"
        return "trace at its own rate"


def list_points(workload: WorkloadConfig, search: SearchConfig) -> tuple[LoadPoint, ...]:
    """The points of a sweep in the order they are measured; none if a search finds them one by one."""
    if search.kind != "none":
        return ()
    if not workload.arrivals.is_open:
        return tuple(LoadPoint(users=users) for users in workload.users)
    if workload.arrivals.kind == "trace" and not workload.rates_per_s:
        return (LoadPoint(),)
    return tuple(LoadPoint(rate_per_s=rate) for rate in workload.rates_per_s)
