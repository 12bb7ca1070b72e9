"""One user: sends a request, streams the answer, records it, thinks, repeats.

In a closed loop a user goes on until cancelled; in an open loop it is one conversation, begun on schedule. Either
way each request it began has exactly one record, also when its task is cancelled.
"""

from __future__ import annotations

import asyncio
from math import ceil

from numpy.random import PCG64, Generator, SeedSequence

from erhpc.client.exchange import Clock, Exchange, StreamingClient
from erhpc.load.journal import Ended, Journal
from erhpc.plan.specs import ClientSpec
from erhpc.results.record import Status
from erhpc.results.telemetry import TICK_S
from erhpc.workload.arrivals import draw_think_time_s
from erhpc.workload.requests import LoadRequest, RequestSource

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
_THINKING = (0, 1)
"""Ends the spawn key of the random stream that the pauses come from; the requests have their own."""


class User:
    """User `number` of the level that `spec` describes; `live` is its whole life."""

    def __init__(
        self,
        number: int,
        spec: ClientSpec,
        source: RequestSource,
        client: StreamingClient,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._number = number
        self._spec = spec
        self._source = source
        self._client = client
        self._journal = journal
        self._clock = clock
        self._is_scheduled = spec.workload.arrivals.is_open
        self._random: Generator | None = None
        self._upcoming: LoadRequest | None = None
        self._is_resting = False
        self._pause: asyncio.Future[None] | None = None
        """What this user waits for between two requests; at rest, done early by being woken."""
        self._failures_in_row = 0

    def prepare(self, lengths: tuple[int, int] | None = None) -> None:
        """Make the next request ready; `lengths` are the tokens of prompt and answer that a trace gives it."""
        if self._upcoming is None:
            self._upcoming = self._source.draw(lengths)

    async def live(self, start_ns: int) -> None:
        """Send requests, the first at `start_ns`, until cancelled, or done with the conversation."""
        due_ns = start_ns
        try:
            while True:
                due_ns = await self._reach(due_ns)
                self.prepare()
                request, self._upcoming = self._upcoming, None
                assert request is not None  # prepare made it
                ended = await self._ask(request, due_ns)
                if self._is_scheduled and (request.is_last_turn or ended.status != "ok"):
                    return
                due_ns = ended.end_ns + round(self._pause_s(ended.status) * 1e9)
        finally:
            self._journal.leave(self._number)

    def rest(self) -> None:
        """Send no further request until woken."""
        self._is_resting = True

    def wake(self) -> None:
        """Go on after a rest; what would have been due meanwhile is due now."""
        if self._is_resting:
            self._is_resting = False
            self._end_pause()

    async def _reach(self, due_ns: int) -> int:
        """Wait until `due_ns`, and while at rest; returns when the request was due."""
        self._journal.expect(self._number, due_ns)
        while (pause_s := (due_ns - self._clock()) / 1e9) > 0:
            # Up to a whole tick: a rest too short for the timer would be asked for over and over, by every user.
            await self._wait(ceil(pause_s / TICK_S) * TICK_S)
        while self._is_resting:
            self._journal.expect(self._number, None)
            await self._wait(None)
            due_ns = self._clock()
            self._journal.expect(self._number, due_ns)
        return due_ns

    async def _wait(self, seconds: float | None) -> None:
        # A future and a timer rather than asyncio.timeout: its exceptions are cycles, and nobody collects garbage.
        loop = asyncio.get_running_loop()
        self._pause = loop.create_future()
        timer = loop.call_later(seconds, self._end_pause) if seconds is not None else None
        try:
            await self._pause
        finally:
            self._pause = None
            if timer is not None:
                timer.cancel()

    def _end_pause(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def _ask(self, request: LoadRequest, due_ns: int) -> Ended:
        """Send one request and note its end, also when this task is cancelled meanwhile."""
        exchange = Exchange(sent_ns=self._clock())
        self._journal.open(self._number, exchange)
        if not (self._is_scheduled and request.is_last_turn):
            # Runs once the request has left: the next one is ready when this answer ends.
            asyncio.get_running_loop().call_soon(self.prepare)
        try:
            await self._client.send(request, exchange)
        except asyncio.CancelledError:
            exchange.fail("cancelled", "cut at the end of the level, before the answer ended")
            raise
        finally:
            ended = Ended(self._number, request, exchange, due_ns, self._clock())
            self._journal.close(ended)
        return ended

    def _pause_s(self, status: Status) -> float:
        """Think time after an answer; after failures a longer one, so that an error storm is bounded."""
        self._failures_in_row = 0 if status == "ok" else self._failures_in_row + 1
        if status != "ok":
            return backoff_s(self._failures_in_row)
        think_time = self._spec.workload.think_time
        if not think_time.mean_s:
            return 0.0
        if self._random is None:
            self._random = Generator(PCG64(SeedSequence(self._spec.seed, spawn_key=(self._number, *_THINKING))))
        return draw_think_time_s(think_time, self._random)


def backoff_s(failures_in_row: int) -> float:
    """Pause after the given number of failures in a row, in seconds: 0.1, 0.2, 0.4 and so on up to 5."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(failures_in_row - 1, 10), LONGEST_BACKOFF_S)
