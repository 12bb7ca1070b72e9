"""What happens in one level: its phase, the requests in flight, the records of those that ended.

Users write it, the level and the live view read it. It decides nothing and knows no time.
"""

from __future__ import annotations

import asyncio
from collections import deque

from erhpc.load.exchange import Exchange
from erhpc.results.record import Phase, RequestRecord

NUM_RECENT_TTFTS = 256


class Journal:
    """The shared book of the users `numbers`; each has at most one request in flight."""

    def __init__(self, numbers: range) -> None:
        self.phase: Phase = "warmup"
        self.records: list[RequestRecord] = []
        self.in_flight: dict[int, Exchange] = {}
        self.recent_ttfts_ns: deque[int] = deque(maxlen=NUM_RECENT_TTFTS)
        self.num_ok = 0
        self.num_failed = 0
        self.everyone_finished = asyncio.Event()
        """Set once every user has seen the end of a request, well or not."""
        self.everyone_left = asyncio.Event()
        self._unfinished = set(numbers)
        self._present = set(numbers)
        self._num_frames = 0

    @property
    def num_tokens_arrived(self) -> int:
        """Frames with tokens so far, those of requests in flight included."""
        return self._num_frames + sum(exchange.num_frames for exchange in self.in_flight.values())

    def open(self, user: int, exchange: Exchange) -> None:
        """Note that `user` has begun a request."""
        self.in_flight[user] = exchange

    def close(self, record: RequestRecord) -> None:
        """Keep the record of a request that has ended."""
        self._num_frames += self.in_flight.pop(record.user).num_frames
        self.records.append(record)
        self.num_ok += record.status == "ok"
        self.num_failed += record.status == "failed"
        if record.first_token_monotonic_ns is not None:
            self.recent_ttfts_ns.append(record.first_token_monotonic_ns - record.sent_monotonic_ns)
        if record.status != "cancelled":
            self._unfinished.discard(record.user)
            if not self._unfinished:
                self.everyone_finished.set()

    def leave(self, user: int) -> None:
        """Note that `user` will send nothing more and has nothing in flight."""
        self._present.discard(user)
        if not self._present:
            self.everyone_left.set()
