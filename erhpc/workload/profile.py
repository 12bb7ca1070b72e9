"""How the load of a level changes over its measuring window, as a step function and its integral.

It is pure and knows neither users nor rates: a closed loop asks which share of the users is active, an open loop
sends its process through the inverse of the integral.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate, pairwise

from erhpc.config import ProfileConfig

ROUNDING = 1e-9
"""What users x share may exceed a whole number by and still count as it: in floats 25 x 0.28 is above 7."""


class Profile:
    """A step function of the time since the window began, seconds; before the window its first step holds.

    No share is 0, so that its integral rises everywhere and has an inverse. A spike that lies beyond the window of
    `measure_s` is kept where it is.
    """

    def __init__(self, config: ProfileConfig, measure_s: float) -> None:
        # Of two steps that begin together, as with a spike at 0, the later one holds.
        steps = dict(_list_steps(config, measure_s))
        self._starts_s = list(steps)
        self._shares = list(steps.values())
        parts_s = [
            share * (end_s - start_s)
            for (start_s, end_s), share in zip(pairwise(self._starts_s), self._shares, strict=False)
        ]
        self._cumulated_s = [0.0, *accumulate(parts_s)]

    def share(self, t_s: float) -> float:
        """Fraction of the level's load that is active `t_s` after the window began; a step holds from its start on."""
        return self._shares[_find(self._starts_s, t_s)]

    def cumulative(self, t_s: float) -> float:
        """Integral of the share from the beginning of the window to `t_s`, seconds at full load; below 0 before it."""
        step = _find(self._starts_s, t_s)
        return self._cumulated_s[step] + self._shares[step] * (t_s - self._starts_s[step])

    def time_at(self, cumulative_s: float) -> float:
        """The time at which `cumulative` reaches this value: its inverse, which exists because no share is 0."""
        step = _find(self._cumulated_s, cumulative_s)
        t_s = self._starts_s[step] + (cumulative_s - self._cumulated_s[step]) / self._shares[step]
        # Rounding must not carry it past what the next step begins with, or times in order would leave it.
        return min(t_s, self._starts_s[step + 1]) if step + 1 < len(self._starts_s) else t_s

    def changes(self) -> list[tuple[float, float]]:
        """When the share changes after the window has begun, and to what: (t_s, share) in order of time."""
        steps = zip(self._starts_s[1:], pairwise(self._shares), strict=True)
        return [(start_s, after) for start_s, (before, after) in steps if after != before]


def num_active(users: int, share: float) -> int:
    """How many of `users` are active at this share of the load: rounded up, at least 1."""
    return max(1, math.ceil(users * share - ROUNDING))


def _list_steps(config: ProfileConfig, measure_s: float) -> list[tuple[float, float]]:
    """(start_s, share) in order of time, from 0 on."""
    if config.kind == "steps":
        return [(step * measure_s / config.steps, (step + 1) / config.steps) for step in range(config.steps)]
    if config.kind == "spike":
        return [(0.0, config.base), (config.start_s, 1.0), (config.start_s + config.length_s, config.base)]
    return [(0.0, 1.0)]


def _find(bounds: list[float], value: float) -> int:
    """Index of the last of `bounds` that is not above `value`; 0 if all are."""
    return max(0, bisect_right(bounds, value) - 1)
