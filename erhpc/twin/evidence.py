"""A constant of the model and what is known of it: its value, the range that the evidence leaves, and the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from random import Random
from typing import Any

from erhpc.errors import ConfigError

NORMAL_95 = 1.645
"""Standard deviations that leave 5 % on either side."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One constant. `low` to `high` is read as a 90 % range; equal numbers mean that it is known."""

    value: float
    low: float
    high: float
    source: str

    def draw(self, rng: Random) -> float:
        """One value the evidence allows: lognormal on either side of `value`, uniform where it may be zero."""
        if self.low == self.high:
            return self.value
        if self.low <= 0:
            return rng.uniform(self.low, self.high)
        deviations = rng.gauss(0.0, 1.0) / NORMAL_95
        spread = log(self.high / self.value) if deviations > 0 else log(self.value / self.low)
        return self.value * exp(deviations * spread)


def read_evidence(where: str, raw: Any) -> Evidence:
    """Check one constant of a data file. Raises ConfigError, naming `where`, if it is none."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is missing. Give it as {{ value, low, high, source }}.")
    numbers = [raw.get(key) for key in ("value", "low", "high")]
    floats = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and isfinite(n)]
    if len(floats) != 3 or not 0 <= floats[1] <= floats[0] <= floats[2]:
        raise ConfigError(
            f"{where} has value, low, high = {', '.join(map(str, numbers))}. Allowed: numbers with 0 <= low <= value <= high."
        )
    source = raw.get("source")
    if not isinstance(source, str) or not source:
        raise ConfigError(f"{where} has no source. Say where the number comes from.")
    return Evidence(*floats, source)
