"""How the load of a level changes over its measuring window, as a step function and its integral.

It is pure and knows neither users nor rates: a closed loop asks which share of the users is active, an open loop
sends its process through the inverse of the integral.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from erhpc.config import ProfileConfig

ROUNDING = 1e-9
"""What users x share may exceed a whole number by and still count as it: 10 x (3 / 10) is not a fourth user."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A step function of the time since the window began, seconds: before its second step the first one holds.

    `starts_s` rise from 0, one for each of `shares`, all of which lie above 0 and at most at 1.
    """

    starts_s: tuple[float, ...]
    shares: tuple[float, ...]
    cumulated_s: tuple[float, ...]
    """Integral of the share from 0 to each of `starts_s`."""

    @classmethod
    def from_config(cls, config: ProfileConfig, measure_s: float) -> Profile:
        """The profile of a window of `measure_s`; a spike that lies beyond the window is kept where it is."""
        if config.kind == "steps":
            shares = [(step + 1) / config.steps for step in range(config.steps)]
            return cls.from_steps([(step * measure_s / config.steps, share) for step, share in enumerate(shares)])
        if config.kind == "spike":
            end_s = config.start_s + config.length_s
            return cls.from_steps([(0.0, config.base), (config.start_s, 1.0), (end_s, config.base)])
        return cls.from_steps([(0.0, 1.0)])

    @classmethod
    def from_steps(cls, steps: list[tuple[float, float]]) -> Profile:
        """The profile of (start, share) in order of time, from 0 on; of two that start together the later holds."""
        last_at_start = dict(steps)
        starts_s, shares = tuple(last_at_start), tuple(last_at_start.values())
        cumulated_s = [0.0]
        for (start_s, end_s), share in zip(pairwise(starts_s), shares, strict=False):
            cumulated_s.append(cumulated_s[-1] + share * (end_s - start_s))
        return cls(starts_s, shares, tuple(cumulated_s))

    def share(self, t_s: float) -> float:
        """Fraction of the level's load that is active `t_s` after the window began; a step holds from its start on."""
        return self.shares[self._find(self.starts_s, t_s)]

    def cumulative(self, t_s: float) -> float:
        """Integral of the share from the beginning of the window to `t_s`, seconds at full load; below 0 before it."""
        step = self._find(self.starts_s, t_s)
        return self.cumulated_s[step] + self.shares[step] * (t_s - self.starts_s[step])

    def time_at(self, cumulative_s: float) -> float:
        """The time at which `cumulative` reaches this value: its inverse, which exists because no share is 0."""
        step = self._find(self.cumulated_s, cumulative_s)
        t_s = self.starts_s[step] + (cumulative_s - self.cumulated_s[step]) / self.shares[step]
        # Rounding must not carry it past what the next step begins with, or times in order would leave it.
        return min(t_s, self.starts_s[step + 1]) if step + 1 < len(self.starts_s) else t_s

    def changes(self) -> list[tuple[float, float]]:
        """When the share changes after the window has begun, and to what: (t_s, share) in order of time."""
        steps = zip(self.starts_s[1:], pairwise(self.shares), strict=True)
        return [(start_s, after) for start_s, (before, after) in steps if after != before]

    @staticmethod
    def _find(bounds: tuple[float, ...], value: float) -> int:
        return max(0, bisect_right(bounds, value) - 1)


def num_active(users: int, share: float) -> int:
    """How many of `users` are active at this share of the load: rounded up, at least 1."""
    return max(1, math.ceil(users * share - ROUNDING))
