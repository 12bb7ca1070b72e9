"""Conducts one level: warm-up, measuring window, drain, cut; and hands back what the client measured.

It does not know HTTP (the client is an argument), files or processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from erhpc.corpus.prompts import Prompt
from erhpc.load.exchange import Clock, StreamingClient
from erhpc.load.journal import Journal
from erhpc.load.process import check_connections, garbage_ignored
from erhpc.load.progress import PERIOD_S, Progress, ProgressMeter
from erhpc.load.requests import RequestSource
from erhpc.load.users import User
from erhpc.plan.specs import ClientSpec
from erhpc.results.record import ClientPart
from erhpc.results.telemetry import LoopLag

STARTS_PER_S = 1000
"""Users that begin per second: all at once would overrun the listen queue of a server (128 in aiohttp)."""


async def run_level(
    spec: ClientSpec,
    client: StreamingClient,
    prompts: Sequence[Prompt],
    *,
    stop: asyncio.Event,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    clock: Clock = time.monotonic_ns,
) -> ClientPart:
    """Run the level of `spec` to its end, or until `stop` is set, which cuts all requests in flight at once.

    The window has no length if `stop` came before it. Raises ConfigError if the users exceed the open files allowed.
    """
    check_connections(spec.users)
    with garbage_ignored():
        return await _Level(spec, client, prompts, stop, clock).run(on_progress)


class _Level:
    def __init__(
        self, spec: ClientSpec, client: StreamingClient, prompts: Sequence[Prompt], stop: asyncio.Event, clock: Clock
    ) -> None:
        numbers = range(spec.first_user, spec.first_user + spec.users)
        self._spec = spec
        self._stop = stop
        self._clock = clock
        self._journal = Journal(numbers)
        self._lag = LoopLag()
        self._users = [
            User(number, spec, _source(number, spec, prompts), client, self._journal, clock) for number in numbers
        ]

    async def run(self, on_progress: Callable[[Progress], None]) -> ClientPart:
        started_utc, self._start_ns = datetime.now(UTC).isoformat(), self._clock()
        self._lag.start()
        try:
            async with asyncio.TaskGroup() as group:
                lives = self._start_users(group)
                reports = group.create_task(self._report(on_progress))
                await self._warm_up()
                await self._measure()
                await self._drain()
                for task in (reports, *lives):
                    task.cancel()
        finally:
            await self._lag.stop()
        return ClientPart(
            records=self._journal.records,
            window_start_monotonic_ns=self._window_start_ns,
            window_end_monotonic_ns=self._window_end_ns,
            warmup_s=(self._window_start_ns - self._start_ns) / 1e9,
            started_utc=started_utc,
            lag_p99_s=self._lag_p99_s,
            warmup_cut=self._warmup_cut,
            interrupted=self._interrupted,
        )

    def _start_users(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        return [
            group.create_task(user.live(self._start_ns + index * 1_000_000_000 // STARTS_PER_S))
            for index, user in enumerate(self._users)
        ]

    async def _warm_up(self) -> None:
        """At least `warmup_s`, and until every user has finished a request, at most `warmup_max_s`."""
        workload = self._spec.workload
        await self._wait(workload.warmup_s)
        await self._wait(workload.warmup_max_s - workload.warmup_s, self._journal.everyone_finished)
        self._warmup_cut = not self._journal.everyone_finished.is_set()

    async def _measure(self) -> None:
        self._journal.phase = "measure"
        self._window_start_ns = self._clock()
        await self._wait(self._spec.workload.measure_s)
        self._window_end_ns = self._clock()
        self._lag_p99_s = self._lag.p99_s((self._window_end_ns - self._window_start_ns) / 1e9)

    async def _drain(self) -> None:
        """Let users finish what they have, for at most `drain_s`."""
        self._journal.phase = "drain"
        for user in self._users:
            user.dismiss()
        await self._wait(self._spec.workload.drain_s, self._journal.everyone_left)
        self._interrupted = self._stop.is_set()

    async def _wait(self, seconds: float, *events: asyncio.Event) -> None:
        """Wait `seconds`, or until `stop` or one of `events` is set."""
        waits = [asyncio.create_task(event.wait()) for event in (self._stop, *events)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _report(self, on_progress: Callable[[Progress], None]) -> None:
        meter = ProgressMeter(self._spec.level, self._spec.users, self._journal, self._clock)
        while True:
            await asyncio.sleep(PERIOD_S)
            on_progress(meter.sample())


def _source(number: int, spec: ClientSpec, prompts: Sequence[Prompt]) -> RequestSource:
    return RequestSource(number, spec.seed, spec.model, spec.workload, prompts)
