"""When requests come: closed loop or open loop, think time, and how the load changes within a level."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.errors import require_choice, require_range

ARRIVAL_KINDS = ("closed", "poisson", "gamma", "constant", "trace")
THINK_TIME_KINDS = ("constant", "exponential", "lognormal")
PROFILE_KINDS = ("flat", "steps", "spike")


@dataclass
class ArrivalConfig:
    """Who decides when a request is sent: users who wait for answers, or a schedule that does not."""

    kind: str = "closed"
    """closed: each user sends, waits for the answer, thinks, repeats. Open loop, which never waits: poisson, gamma
    (see burstiness), constant (equal gaps), trace (the times of workload.trace)."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of gaps: 1 is Poisson, below 1 burstier, above 1 more regular; the gaps have
    the coefficient of variation 1 / sqrt(burstiness)."""

    def __post_init__(self) -> None:
        require_choice("workload.arrivals.kind", self.kind, ARRIVAL_KINDS)
        require_range("workload.arrivals.burstiness", self.burstiness, 0.01, 10_000)

    @property
    def is_open(self) -> bool:
        """Whether requests follow a schedule instead of waiting for answers."""
        return self.kind != "closed"


@dataclass
class ThinkTimeConfig:
    """A distribution of the pause of a user between an answer and the next request (closed loop)."""

    kind: str = "constant"
    """constant (mean_s), exponential (mean_s) or lognormal (mean_s and sigma)."""
    mean_s: float = 0.0
    sigma: float = 0.5
    """Standard deviation of the logarithm (lognormal only)."""

    def __post_init__(self) -> None:
        require_choice("workload.think_time.kind", self.kind, THINK_TIME_KINDS)
        require_range("workload.think_time.mean_s", self.mean_s, 0)
        require_range("workload.think_time.sigma", self.sigma, 0)


@dataclass
class ProfileConfig:
    """How the load of a level changes within its measuring window; before the window it is as at its beginning."""

    kind: str = "flat"
    """flat: the level's users or rate throughout; steps: equal steps up to it; spike: `base` of it, but all of it
    from start_s on for length_s."""
    steps: int = 4
    """Number of steps (steps only): the window is divided into as many equal parts."""
    base: float = 0.1
    """Share of the load outside of the spike (spike only)."""
    start_s: float = 10.0
    """When the spike begins, after the window has begun."""
    length_s: float = 10.0
    """How long the spike lasts."""

    def __post_init__(self) -> None:
        require_choice("workload.profile.kind", self.kind, PROFILE_KINDS)
        require_range("workload.profile.steps", self.steps, 2)
        require_range("workload.profile.base", self.base, 0.001, 1)
        require_range("workload.profile.start_s", self.start_s, 0)
        require_range("workload.profile.length_s", self.length_s, 0.001)
