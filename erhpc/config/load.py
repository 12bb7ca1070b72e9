"""The client that makes the load, what an answer must fulfil, and when a sweep goes on, stops or searches."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.errors import ConfigError, require_choice, require_range

CLIENTS = ("native", "aiohttp")
STAMPS = ("auto", "kernel", "loop")
SEARCHES = ("none", "users", "rate")


@dataclass
class LoadConfig:
    """The client: how many processes share the users, where, and how answers are stamped."""

    processes: int = 1
    """Client processes per client node, one core each; users are spread over all of them."""
    nodes: int = 0
    """Nodes of their own for clients; 0: they run on the first node, beside the gateway."""
    client: str = "native"
    """native: erhpc's own streaming client; aiohttp: the reference it is tested against (slower)."""
    stamps: str = "auto"
    """Who stamps arrivals: kernel (plain HTTP over TCP on Linux), loop (the event loop), auto: kernel if possible."""
    calibrate: bool = True
    """Measure this client against a null expert before the first level: its cost per token and its own error."""

    def __post_init__(self) -> None:
        require_range("load.processes", self.processes, 1, 512)
        require_range("load.nodes", self.nodes, 0)
        require_choice("load.client", self.client, CLIENTS)
        require_choice("load.stamps", self.stamps, STAMPS)

    @property
    def num_workers(self) -> int:
        """Client processes in all."""
        return self.processes * max(1, self.nodes)


@dataclass
class SloConfig:
    """What an answer must fulfil to count as good, and what share of them must for a level to meet the SLO."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    attainment: float = 0.99
    """Share of the requests sent in the window (failed ones included) that must meet every bound given."""

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            if getattr(self, name) is not None:
                require_range(f"slo.{name}", getattr(self, name), 0)
        require_range("slo.attainment", self.attainment, 0, 1)

    @property
    def is_given(self) -> bool:
        """Whether any bound is set."""
        return any(bound is not None for bound in (self.ttft_s, self.tpot_s, self.e2e_s))


@dataclass
class StopConfig:
    """When a sweep ends before its last level; null: never."""

    slo_misses: int | None = None
    """Levels in a row that miss the SLO."""
    failed_share: float | None = None
    """Share of failed requests in one level."""
    time_budget_s: float | None = None
    """No level begins that would end later than this after the first one began."""

    def __post_init__(self) -> None:
        if self.slo_misses is not None:
            require_range("stop.slo_misses", self.slo_misses, 1)
        if self.failed_share is not None:
            require_range("stop.failed_share", self.failed_share, 0, 1)
        if self.time_budget_s is not None:
            require_range("stop.time_budget_s", self.time_budget_s, 1)


@dataclass
class SearchConfig:
    """Find the largest load that meets the SLO, by bisection, instead of measuring given levels."""

    kind: str = "none"
    """none: the levels of the workload; users: search the number of users; rate: search the request rate."""
    low: float = 1
    """Where the search begins; it doubles from there until the SLO is missed."""
    high: float = 4096
    """Largest load that is tried."""
    tolerance: float = 0.05
    """The search ends when the largest load that met the SLO and the smallest that missed it differ by this share."""
    max_levels: int = 20
    """Most levels to measure."""

    def __post_init__(self) -> None:
        require_choice("search.kind", self.kind, SEARCHES)
        require_range("search.low", self.low, 1 if self.kind == "users" else 0.001)
        require_range("search.high", self.high, self.low)
        require_range("search.tolerance", self.tolerance, 0.001, 1)
        require_range("search.max_levels", self.max_levels, 2, 1000)
        if self.kind == "users" and (self.low != int(self.low) or self.high != int(self.high)):
            raise ConfigError(f"search.low={self.low} and search.high={self.high} must be whole numbers of users.")
