"""What goes wrong with an emulated replica on purpose, and when. Pure: it is told the time, and draws who is hit.

Times count in seconds from when the replica was loaded, in emulated time.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from random import Random

from erhpc.config import FaultConfig

STATUSES = {"error_500": 500, "error_503": 503}


class Faults:
    """The faults of one replica."""

    def __init__(self, faults: Iterable[FaultConfig], replica: str, randomness: Random) -> None:
        self._faults = [fault for fault in faults if fault.hits(replica)]
        self._randomness = randomness

    @property
    def extra_load_s(self) -> float:
        """How much longer loading takes."""
        return sum(fault.duration_s or 0.0 for fault in self._faults if fault.kind == "slow_start")

    @property
    def crash_s(self) -> float:
        """When the replica ends; inf: never."""
        return min((fault.after_s for fault in self._faults if fault.kind == "crash"), default=inf)

    def draw_status(self, now_s: float) -> int | None:
        """The HTTP status that a request which comes now is refused with; None: it is served."""
        for fault in self._faults:
            if fault.kind in STATUSES and _lasts(fault, now_s) and self._randomness.random() < fault.share:
                return STATUSES[fault.kind]
        return None

    def slowdown(self, now_s: float) -> float:
        """How many times as long a step that begins now takes."""
        slowdown = 1.0
        for fault in self._faults:
            if fault.kind == "slow" and _lasts(fault, now_s):
                slowdown *= fault.factor
        return slowdown

    def postpone(self, end_s: float) -> float:
        """When a step ends that would end at `end_s`: not while the engine hangs; inf: never."""
        for fault in sorted(self._faults, key=lambda fault: fault.after_s):
            if fault.kind == "hang" and _lasts(fault, end_s):
                end_s = _end_s(fault)
        return end_s


def _lasts(fault: FaultConfig, now_s: float) -> bool:
    return fault.after_s <= now_s < _end_s(fault)


def _end_s(fault: FaultConfig) -> float:
    return inf if fault.duration_s is None else fault.after_s + fault.duration_s
