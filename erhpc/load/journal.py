"""What happens in one level at one client: its window, the requests in flight, the records of those that ended.

Users write it, the worker and the live view read it. It decides nothing and knows no time.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from statistics import median

from erhpc.client.exchange import Exchange
from erhpc.results.record import Phase, RequestRecord

NUM_RECENT_TTFTS = 256


@dataclass
class Journal:
    """The shared book of all users of a client process; each has at most one request in flight."""

    records: list[RequestRecord] = field(default_factory=list)
    in_flight: dict[int, Exchange] = field(default_factory=dict)
    """By user."""
    recent_ttfts_ns: deque[int] = field(default_factory=lambda: deque(maxlen=NUM_RECENT_TTFTS))
    failures: Counter[str] = field(default_factory=Counter)
    """By kind and status."""
    num_ok: int = 0
    num_failed: int = 0
    num_measured: int = 0
    """Requests due in the window that have ended."""
    window_start_ns: int | None = None
    window_end_ns: int | None = None
    _waiting_for: set[int] = field(default_factory=set)
    """Users whose first request has not ended."""

    @property
    def all_finished(self) -> bool:
        """Whether every user that has come has seen the end of a request, well or not."""
        return not self._waiting_for

    @property
    def commonest_failure(self) -> str | None:
        """The kind of failure that occurred most often, None if none did."""
        return self.failures.most_common(1)[0][0] if self.failures else None

    def phase(self, due_ns: int) -> Phase:
        """The phase of the level in which a request was due, as far as the window is known."""
        if self.window_start_ns is None or due_ns < self.window_start_ns:
            return "warmup"
        return "measure" if self.window_end_ns is None or due_ns < self.window_end_ns else "drain"

    def ttft_p50_s(self) -> float | None:
        """Median over the requests in flight and the last ones that ended, as far as a live view needs it."""
        flying = [e.first_piece_ns - e.sent_ns for e in self.in_flight.values() if e.first_piece_ns is not None]
        ttfts_ns = [*flying, *self.recent_ttfts_ns]
        return median(ttfts_ns) / 1e9 if ttfts_ns else None

    def enter(self, user: int) -> None:
        """Note that a user is there and will send something."""
        self._waiting_for.add(user)

    def open(self, user: int, exchange: Exchange) -> None:
        """Note that `user` has begun a request."""
        self.in_flight[user] = exchange

    def close(self, record: RequestRecord) -> None:
        """Keep the record of a request that has ended."""
        self.in_flight.pop(record.user)
        self.records.append(record)
        self.num_ok += record.status == "ok"
        self.num_failed += record.status == "failed"
        self.num_measured += record.phase == "measure"
        if record.status == "failed":
            self.failures[f"{record.error_kind} {record.http_status or ''}".strip()] += 1
        if record.first_token_monotonic_ns is not None:
            self.recent_ttfts_ns.append(record.first_token_monotonic_ns - record.sent_monotonic_ns)
        if record.status != "cancelled":
            self._waiting_for.discard(record.user)

    def leave(self, user: int) -> None:
        """Note that `user` will send nothing more and has nothing in flight."""
        self._waiting_for.discard(user)
