"""How late a process ran: the lag of its event loop and of its own deadlines, kept for the last minutes.

It knows no HTTP and no file: processes that report lag (gateway, client, emulated expert) ask `p99_s`.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

KEEP_S = 600.0
"""How far back lag can be asked for."""
INTERVAL_S = 0.050
"""How often an event loop is probed: waking up takes 0.1 to 0.2 ms of a core, which streams would have to pay for."""
TICK_S = 0.001
"""Of uvloop's timers, which round what they are asked for: less than half a tick is no time at all to them, and who
waits for such a rest of time has the loop go round at full speed until it is over."""
DEFAULT_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Lookback:
    """The time that a question for lag is about: `window_s` seconds, which ended `ago_s` ago."""

    window_s: float = DEFAULT_WINDOW_S
    ago_s: float = 0.0

    def span_s(self, now_s: float) -> tuple[float, float]:
        """When it began and when it ended, on the clock that says `now_s`."""
        return now_s - self.ago_s - self.window_s, now_s - self.ago_s


def parse_lookback(query: Mapping[str, str]) -> Lookback:
    """What a question asks for by `window_s` (DEFAULT_WINDOW_S if it is not given) and `ago_s` (0).

    Raises:
        ValueError: one is no number, or out of range; the message is meant for whoever asked.
    """
    window_s = _parse_seconds(query, "window_s", DEFAULT_WINDOW_S)
    if not 0 < window_s <= KEEP_S:
        raise ValueError(f"window_s={query['window_s']!r} is out of range. Allowed: above 0, at most {KEEP_S:.0f}.")
    ago_s = _parse_seconds(query, "ago_s", 0.0)
    if not 0 <= ago_s <= KEEP_S:
        raise ValueError(f"ago_s={query['ago_s']!r} is out of range. Allowed: from 0, at most {KEEP_S:.0f}.")
    return Lookback(window_s, ago_s)


def _parse_seconds(query: Mapping[str, str], name: str, usual_s: float) -> float:
    try:
        return float(query.get(name, usual_s))
    except ValueError:
        return -1.0


class TimedValues:
    """The last `capacity` values with their times, in a ring of fixed size (16 bytes per value).

    Times must not decrease. `add` is cheap enough for every step of an emulated expert. With `memory`, zeroed, of
    `size_bytes` and shared between processes, one process adds and others read.
    """

    def __init__(self, capacity: int, *, memory: Any = None) -> None:
        block = memoryview(bytearray(self.size_bytes(capacity)) if memory is None else memory).cast("B")
        numbers = block[: self.size_bytes(capacity)]
        self._num = numbers[:8].cast("q")
        self._times_s = numbers[8 : 8 + 8 * capacity].cast("d")
        self._values = numbers[8 + 8 * capacity :].cast("d")
        self._capacity = capacity
        self._num_added = self._num[0]

    @staticmethod
    def size_bytes(capacity: int) -> int:
        """How much memory a ring takes."""
        return 8 + 16 * capacity

    @property
    def last_s(self) -> float | None:
        """Time of the newest value; None if there is none."""
        num_added = self._num[0]
        return self._times_s[(num_added - 1) % self._capacity] if num_added else None

    def add(self, time_s: float, value: float) -> None:
        """Keep a value; the oldest one goes when the ring is full."""
        index = self._num_added % self._capacity
        self._times_s[index] = time_s
        self._values[index] = value
        self._num_added += 1
        self._num[0] = self._num_added

    def quantile(self, share: float, since_s: float, until_s: float = inf) -> float:
        """Smallest value that at least `share` of those from `since_s` to `until_s` do not exceed; 0.0 without any."""
        values = sorted(self._values_within(since_s, until_s))
        return values[max(ceil(share * len(values)), 1) - 1] if values else 0.0

    def histogram(self, bounds: Sequence[float], since_s: float) -> list[int]:
        """How many of the values since `since_s` are at most each bound and above the one before; then the rest."""
        counts = [0] * (len(bounds) + 1)
        for value in self._values_within(since_s, inf):
            counts[bisect_left(bounds, value)] += 1
        return counts

    def _values_within(self, since_s: float, until_s: float) -> Iterator[float]:
        num_added = self._num[0]
        oldest = max(num_added - self._capacity, 0)
        for number in range(num_added - 1, oldest - 1, -1):
            index = number % self._capacity
            if self._times_s[index] < since_s:
                return
            if self._times_s[index] <= until_s:
                yield self._values[index]


class LoopLag:
    """Probes the running event loop every `interval_s` and keeps how late each probe came.

    Probes are due at fixed times: a loop that stands still for a second is many late probes, not one, so that stalls
    weigh in the percentile by their length.
    """

    def __init__(
        self,
        interval_s: float = INTERVAL_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        values: TimedValues | None = None,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._interval_s = interval_s
        self._lags_s = values or TimedValues(round(KEEP_S / interval_s))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin probing; needs a running event loop."""
        self._task = asyncio.create_task(self._probe(), name="loop lag")

    async def stop(self) -> None:
        """End probing; what was kept can still be asked for."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def p99_s(self, lookback: Lookback) -> float:
        """99th percentile of the lag over the time that `lookback` says (at most KEEP_S ago), in seconds."""
        return self._lags_s.quantile(0.99, *lookback.span_s(self._clock()))

    def histogram(self, window_s: float, bounds_s: Sequence[float]) -> list[int]:
        """Probes of the last `window_s` seconds by their lag: up to each bound, and above the last one."""
        return self._lags_s.histogram(bounds_s, self._clock() - window_s)

    async def _probe(self) -> None:
        due_s = self._clock() + self._interval_s
        while True:
            await self._sleep(due_s - self._clock())
            now_s = self._clock()
            due_s = max(due_s, now_s - KEEP_S)
            while due_s <= now_s + TICK_S / 2:
                self._lags_s.add(now_s, max(now_s - due_s, 0.0))
                due_s += self._interval_s
