"""Rolling numbers of a level for a live view; not results, which come from records only.

It does not know where the numbers are shown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from erhpc.load.exchange import Clock
from erhpc.load.journal import Journal
from erhpc.results.record import Phase

PERIOD_S = 0.5
"""How often progress is reported."""
RATE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a level goes right now; a client prints one as a JSON line every PERIOD_S."""

    level: int
    users: int
    phase: Phase
    elapsed_s: float
    """Since the level began."""
    in_flight: int
    requests_ok: int
    requests_failed: int
    output_tokens_per_s: float
    """Frames with tokens over the last RATE_WINDOW_S, per second."""
    ttft_p50_s: float | None
    """Median over the requests in flight and the last ones that ended; None before the first token."""


class ProgressMeter:
    """Reads a level's journal now and then."""

    def __init__(self, level: int, users: int, journal: Journal, clock: Clock) -> None:
        self._level = level
        self._users = users
        self._journal = journal
        self._clock = clock
        self._start_ns = clock()
        self._counts: deque[tuple[int, int]] = deque([(self._start_ns, 0)])

    def sample(self) -> Progress:
        """The numbers of now; the token rate is over the samples of the last RATE_WINDOW_S."""
        now_ns = self._clock()
        return Progress(
            level=self._level,
            users=self._users,
            phase=self._journal.phase,
            elapsed_s=(now_ns - self._start_ns) / 1e9,
            in_flight=len(self._journal.in_flight),
            requests_ok=self._journal.num_ok,
            requests_failed=self._journal.num_failed,
            output_tokens_per_s=self._tokens_per_s(now_ns),
            ttft_p50_s=self._ttft_p50_s(),
        )

    def _tokens_per_s(self, now_ns: int) -> float:
        self._counts.append((now_ns, self._journal.num_tokens_arrived))
        while len(self._counts) > 2 and now_ns - self._counts[1][0] >= RATE_WINDOW_S * 1e9:
            self._counts.popleft()
        (first_ns, first), (last_ns, last) = self._counts[0], self._counts[-1]
        return (last - first) / (last_ns - first_ns) * 1e9 if last_ns > first_ns else 0.0

    def _ttft_p50_s(self) -> float | None:
        exchanges = [exchange for exchange in self._journal.in_flight.values() if exchange.arrivals_ns]
        ttfts_ns = [exchange.arrivals_ns[0] - exchange.sent_ns for exchange in exchanges]
        ttfts_ns.extend(self._journal.recent_ttfts_ns)
        return median(ttfts_ns) / 1e9 if ttfts_ns else None
