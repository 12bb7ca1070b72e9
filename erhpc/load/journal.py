"""What happens in one level at one client: its window, the requests in flight, and those that have ended.

Users write it, the worker and the live view read it. It decides nothing and knows no time. While the level lasts it
only notes what must be known at once; `records` makes rows of it afterwards, when that keeps nobody from reading.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from erhpc.client.exchange import Exchange
from erhpc.results.record import Phase, Status
from erhpc.workload.requests import LoadRequest

NUM_RECENT_TTFTS = 256


@dataclass(slots=True)
class Ended:
    """A request that has ended: whose, which, when it was due, and all that came of it."""

    user: int
    request: LoadRequest
    exchange: Exchange
    due_ns: int
    end_ns: int

    @property
    def status(self) -> Status:
        """How it ended."""
        if self.exchange.error_kind is None:
            return "ok"
        return "cancelled" if self.exchange.error_kind == "cancelled" else "failed"


@dataclass
class Journal:
    """The shared book of all users of a client process; each has at most one request in flight."""

    ended: list[Ended] = field(default_factory=list)
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
    on_news: Callable[[], None] = lambda: None
    """Called when `all_finished` changes, when the first request has ended, and when the last of the window has."""
    _waiting_for: set[int] = field(default_factory=set)
    """Users whose first request has not ended."""
    _due_ns: dict[int, int] = field(default_factory=dict)
    """By user: when the request is due that it has in flight or waits to send; in the order in which they were noted,
    so that one from before the window's end is found at once."""

    @property
    def all_finished(self) -> bool:
        """Whether every user that has come has seen the end of a request, well or not."""
        return not self._waiting_for

    @property
    def commonest_failure(self) -> str | None:
        """The kind of failure that occurred most often, None if none did."""
        return self.failures.most_common(1)[0][0] if self.failures else None

    def is_drained(self, now_ns: int) -> bool:
        """Whether the window is over by `now_ns`, and every request that was due before its end has ended."""
        end_ns = self.window_end_ns
        return end_ns is not None and now_ns >= end_ns and all(due_ns >= end_ns for due_ns in self._due_ns.values())

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
        if len(self._waiting_for) == 1:
            self.on_news()

    def expect(self, user: int, due_ns: int | None) -> None:
        """Note when the next request of `user` is due; None if that is not known."""
        self._due_ns.pop(user, None)
        if due_ns is not None:
            self._due_ns[user] = due_ns

    def open(self, user: int, exchange: Exchange) -> None:
        """Note that `user` has begun a request."""
        self.in_flight[user] = exchange

    def close(self, ended: Ended) -> None:
        """Note that a request has ended."""
        exchange, status = self.in_flight.pop(ended.user), ended.status
        ended.request = ended.request.without_body()
        self.ended.append(ended)
        self.num_ok += status == "ok"
        self.num_failed += status == "failed"
        phase = self.phase(ended.due_ns)
        self.num_measured += phase == "measure"
        self.expect(ended.user, None)
        if status == "failed":
            self.failures[f"{exchange.error_kind} {exchange.http_status or ''}".strip()] += 1
        if exchange.arrivals_ns:
            self.recent_ttfts_ns.append(exchange.arrivals_ns[0] - exchange.sent_ns)
        if status != "cancelled":
            self._await_no_longer(ended.user)
            if self.num_ok + self.num_failed == 1:
                self.on_news()
        if phase != "drain" and self.is_drained(ended.end_ns):
            self.on_news()

    def leave(self, user: int) -> None:
        """Note that `user` will send nothing more and has nothing in flight."""
        self.expect(user, None)
        self._await_no_longer(user)

    def _await_no_longer(self, user: int) -> None:
        if user in self._waiting_for:
            self._waiting_for.discard(user)
            if not self._waiting_for:
                self.on_news()
