"""A streaming client whose expert shares its speed among all streams: each token takes as long as there are streams."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass


@dataclass
class Streams:
    """How many streams an expert has in flight."""

    num: int = 0


class SharingExpert:
    """Implements `StreamingClient` without a network: a step of `step_s` per stream in flight brings each a token.

    Those of `silent_users` never get an answer. One for each process of a level shares `streams` with the others.
    """

    num_clock_jumps = 0

    def __init__(self, clock, step_s, *, silent_users=(), streams=None) -> None:
        self._clock = clock
        self._step_s = step_s
        self._silent_users = silent_users
        self.num_pieces = 0
        self._streams = Streams() if streams is None else streams

    def take_delays_ns(self):
        return array("q")

    async def send(self, request, exchange):
        exchange.sent_ns = self._clock()
        exchange.http_status = 200
        self._streams.num += 1
        try:
            if int(request.session) in self._silent_users:
                await asyncio.Event().wait()
            for _ in range(request.max_tokens):
                await asyncio.sleep(self._step_s * self._streams.num)
                exchange.arrivals_ns.append(self._clock())
                exchange.num_frames += 1
                self.num_pieces += 1
        finally:
            self._streams.num -= 1
