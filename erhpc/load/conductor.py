"""Leads one level: all its client processes begin together, and share one warm-up, one window and one drain.

In the drain the load goes on as before, until every request that was due before the window's end has ended in every
process: a request that the window's end catches half-way is measured, and must not see a load that fades away.
Requests of the drain count for nothing, and whatever is in flight at its end is cut.

It talks to the clients through whatever carries lines (pipes of a verb, agents of a cluster) and knows neither
HTTP nor files. Its clock is its own; each client is told times of the client's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from erhpc.client.exchange import Clock
from erhpc.config import WorkloadConfig
from erhpc.load.messages import AskClock, Begin, CloseWindow, Command, End, OpenWindow, Ready, Report, Tally, TellClock
from erhpc.load.progress import Progress, RateMeter, merge_tallies
from erhpc.load.steadiness import PATIENCE_S, Sample, SteadinessTest
from erhpc.plan.levels import LoadPoint

CLOCK_ROUNDS = 12
CLOCK_TIMEOUT_S = 5.0
LEAD_S = 0.25
"""How long before its time a command is given: longer than a busy client takes to read its stdin."""
LEAD_PER_USER_S = 50e-6
"""Every user prepares its first request before the level begins."""
PATIENCE_SHARE = 2 / 3
"""Of the longest warm-up: how long noise is held against a level that shows no trend."""
SAMPLE_S = 0.45
"""Clients tell how it goes every half second."""


@dataclass
class _Client:
    offset_ns: int = 0
    """Its clock minus the conductor's."""
    uncertainty_ns: int | None = None
    """Half of the shortest round trip; None before any."""
    is_ready: bool = False
    tally: Tally | None = None
    heard_ns: int = 0
    has_left: bool = False


class Conductor:
    """Conducts the level `level` at `point` with `num_workers` clients. `tell` sends a command to one of them."""

    def __init__(
        self,
        workload: WorkloadConfig,
        level: int,
        point: LoadPoint,
        num_workers: int,
        *,
        tell: Callable[[int, Command], None],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._workload = workload
        self._level = level
        self._point = point
        self._clients = [_Client() for _ in range(num_workers)]
        self._tell = tell
        self._on_progress = on_progress
        self._clock = clock
        self._changed = asyncio.Event()
        self._meter = RateMeter()
        patience_s = min(PATIENCE_S, PATIENCE_SHARE * workload.warmup_max_s)
        self._steadiness = SteadinessTest(workload.think_time.mean_s, patience_s)
        self._next_sample_ns = 0
        self._asked_ns: dict[tuple[int, int], int] = {}

    def hear(self, worker: int, report: Report) -> None:
        """Take what a client says."""
        client = self._clients[worker]
        client.heard_ns = self._clock()
        match report:
            case Ready():
                client.is_ready = True
            case TellClock():
                self._note_clock(client, self._asked_ns.pop((worker, report.number)), report.now_ns)
            case Tally():
                client.tally = report
                self._sample()
        self._changed.set()

    def lose(self, worker: int) -> None:
        """Note that a client has ended."""
        self._clients[worker].has_left = True
        self._changed.set()

    async def conduct(self) -> None:
        """Lead the level to its end; cancel to break it off (the clients must then be stopped by the caller)."""
        await self._wait(lambda: all(client.is_ready or client.has_left for client in self._clients))
        await self._compare_clocks()
        begin_ns = self._begin()
        await self._warm_up(begin_ns)
        end_ns = await self._measure(begin_ns)
        await self._wait(self._is_drained, end_ns + round(self._workload.drain_s * 1e9))
        self._tell_all(lambda client: End())

    def _note_clock(self, client: _Client, asked_ns: int, told_ns: int) -> None:
        """Keep the offset of the shortest round trip: the answer lies in its middle, give or take half of it."""
        uncertainty_ns = (client.heard_ns - asked_ns) // 2
        if client.uncertainty_ns is None or uncertainty_ns < client.uncertainty_ns:
            client.uncertainty_ns = uncertainty_ns
            client.offset_ns = told_ns - (asked_ns + uncertainty_ns)

    async def _compare_clocks(self) -> None:
        for number in range(CLOCK_ROUNDS):
            for worker, client in enumerate(self._clients):
                if not client.has_left:
                    self._asked_ns[worker, number] = self._clock()
                    self._tell(worker, AskClock(number))
            await self._wait(self._all_told, self._clock() + round(CLOCK_TIMEOUT_S * 1e9))

    def _all_told(self) -> bool:
        """Whether every client that is still there has told its time."""
        return all(self._clients[worker].has_left for worker, _ in self._asked_ns)

    def _begin(self) -> int:
        num_users = self._point.users or 0
        begin_ns = self._clock() + round((LEAD_S + LEAD_PER_USER_S * num_users / len(self._clients)) * 1e9)
        self._tell_all(
            lambda client: Begin(
                at_ns=begin_ns + client.offset_ns,
                users=self._point.users,
                rate_per_s=self._point.rate_per_s,
                clock_offset_ns=client.offset_ns,
                clock_uncertainty_ns=client.uncertainty_ns or 0,
            )
        )
        return begin_ns

    async def _warm_up(self, begin_ns: int) -> None:
        """Wait until the load is steady, if it is meant to be."""
        workload = self._workload
        if workload.is_steady:
            await self._wait(self._all_left, begin_ns + round(workload.warmup_s * 1e9))
            await self._wait(
                lambda: (self._all_finished() and self._steadiness.is_steady()) or self._all_left(),
                begin_ns + round(workload.warmup_max_s * 1e9),
            )

    async def _measure(self, begin_ns: int) -> int:
        """Open the window and close it; returns when it ended."""
        workload = self._workload
        if workload.is_steady:
            steady, cut = self._steadiness.judge(), not self._all_finished()
            start_ns = self._clock() + round(LEAD_S * 1e9)
        else:
            steady, cut = None, False
            start_ns = begin_ns + round(workload.warmup_s * 1e9)
        end_ns = start_ns + round(workload.measure_s * 1e9)
        self._tell_all(lambda client: OpenWindow(at_ns=start_ns + client.offset_ns, steady=steady, cut=cut))
        await self._wait(self._is_measured, end_ns - round(LEAD_S * 1e9))
        if self._is_measured():
            end_ns = min(end_ns, self._clock())
        self._tell_all(lambda client: CloseWindow(at_ns=end_ns + client.offset_ns))
        await self._wait(lambda: False, end_ns)
        return end_ns

    def _is_measured(self) -> bool:
        wanted = self._workload.measure_requests
        measured = sum(client.tally.measured for client in self._clients if client.tally is not None)
        return self._all_left() or (wanted is not None and measured >= wanted)

    def _all_finished(self) -> bool:
        """Whether every user has finished a request; in an open loop, whether anybody has."""
        if self._point.users is None:
            tallies = [client.tally for client in self._clients if client.tally is not None]
            return any(tally.requests_ok + tally.requests_failed for tally in tallies)
        return all(client.has_left or (client.tally and client.tally.all_finished) for client in self._clients)

    def _all_left(self) -> bool:
        return all(client.has_left or (client.tally and client.tally.all_left) for client in self._clients)

    def _is_drained(self) -> bool:
        """Whether in every process all requests that were due before the window's end have ended."""
        return all(
            client.has_left or (client.tally and (client.tally.drained or client.tally.all_left))
            for client in self._clients
        )

    def _sample(self) -> None:
        """Every half second, once all clients have given a tally: a sample for the test, and progress for the view."""
        now_ns = self._clock()
        tallies = [client.tally for client in self._clients if client.tally is not None]
        if now_ns < self._next_sample_ns or len(tallies) < len(self._clients):
            return
        self._next_sample_ns = now_ns + round(SAMPLE_S * 1e9)
        now_s, tokens = now_ns / 1e9, sum(tally.tokens for tally in tallies)
        progress = merge_tallies(
            tallies,
            level=self._level,
            users=self._point.users,
            rate_per_s=self._point.rate_per_s,
            tokens_per_s=self._meter.add(now_s, tokens),
        )
        num_ended = progress.requests_ok + progress.requests_failed
        self._steadiness.add(Sample(time_s=now_s, tokens=tokens, requests=num_ended, in_flight=progress.in_flight))
        self._on_progress(progress)

    def _tell_all(self, make: Callable[[_Client], Command]) -> None:
        for worker, client in enumerate(self._clients):
            if not client.has_left:
                self._tell(worker, make(client))

    async def _wait(self, condition: Callable[[], bool], until_ns: int | None = None) -> None:
        """Wait until the clients' news make `condition` true, or until the given time."""
        while not condition():
            self._changed.clear()
            timeout_s = None if until_ns is None else (until_ns - self._clock()) / 1e9
            if timeout_s is not None and timeout_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout_s)
