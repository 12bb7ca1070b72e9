"""A constant of the model and what is known of it: its value, the range that the evidence leaves, and the source.

What kind of source it is, its `basis` says, so that a test can count what was set on the very measurements that the
model is judged by: at most one number per GPU, kernel and engine profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any

from erhpc.errors import ConfigError

NORMAL_95 = 1.645
"""Standard deviations that leave 5 % on either side."""
BASES = {
    "known": "a data sheet, or true by definition",
    "published": "others measured it, or it stands in their code",
    "derived": "arithmetic on other constants, or counted in code; the source says how",
    "judged": "set without measurements; the range says how little is known",
    "measured": "this project measured that very thing",
    "fitted": "set on measurements that the model is compared with; needs a reason",
    "calibrated": "fitted to a run of one's own by erhpc.calibrate",
}
"""Where a value may come from."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One constant. `low` to `high` is read as a 90 % range; equal numbers mean that it is known."""

    value: float
    low: float
    high: float
    source: str
    basis: str = "judged"
    """One of BASES."""
    reason: str = ""
    """Why a fitted number is needed, and why it is this one."""

    def at(self, deviations: float) -> float:
        """The value so many standard deviations away: lognormal on either side, linear in a range that begins at 0."""
        if self.low == self.high:
            return self.value
        share = deviations / NORMAL_95
        if self.low <= 0 or self.value <= 0:
            return max(0.0, self.value + share * ((self.high - self.value) if share > 0 else (self.value - self.low)))
        spread = log(self.high / self.value) if share > 0 else log(self.value / self.low)
        return self.value * exp(share * spread)


def read_evidence(where: str, raw: Any) -> Evidence:
    """Check one constant of a data file. Raises ConfigError, naming `where`, if it is none."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is missing. Give it as {{ value, low, high, source }}.")
    numbers = [raw.get(key) for key in ("value", "low", "high")]
    floats = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and isfinite(n)]
    if len(floats) != 3 or not 0 <= floats[1] <= floats[0] <= floats[2]:
        raise ConfigError(
            f"{where} has value, low, high = {', '.join(map(str, numbers))}. "
            "Allowed: numbers with 0 <= low <= value <= high."
        )
    source = raw.get("source")
    if not isinstance(source, str) or not source:
        raise ConfigError(f"{where} has no source. Say where the number comes from.")
    basis, reason = raw.get("basis", "judged"), raw.get("reason", "")
    if basis not in BASES:
        raise ConfigError(f"{where} has basis={basis!r}. Allowed: {', '.join(BASES)}.")
    if not isinstance(reason, str) or (basis == "fitted" and not reason):
        raise ConfigError(f"{where} is fitted and gives no reason. Say in `reason` why physics does not give it.")
    return Evidence(floats[0], floats[1], floats[2], source, basis, reason)
