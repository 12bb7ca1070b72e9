"""One client process during one level: obeys the conductor, keeps count, and hands back what it measured.

It does not decide when the window opens or closes (`conductor` does), and knows neither HTTP nor files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

from erhpc.client.exchange import Clock, StreamingClient
from erhpc.load.journal import Journal
from erhpc.load.messages import AskClock, Begin, CloseWindow, Command, End, OpenWindow, Ready, Report, Tally, TellClock
from erhpc.load.population import Population, Residents, Visitors
from erhpc.load.process import check_connections, garbage_ignored
from erhpc.load.records import make_records
from erhpc.load.users import User
from erhpc.plan.specs import ClientSpec
from erhpc.results.record import LAG_BOUNDS_S, ClientPart
from erhpc.results.telemetry import Lookback, LoopLag
from erhpc.workload.pool import PromptPool
from erhpc.workload.requests import RequestSource
from erhpc.workload.traces import Trace

TALLY_S = 0.5
NEWS_S = 0.02
"""Least time between two tallies, however much news there is."""


class Worker:
    """Runs the share of one process in the level of `spec`."""

    def __init__(
        self,
        spec: ClientSpec,
        client: StreamingClient,
        pool: PromptPool,
        trace: Trace | None,
        *,
        report: Callable[[Report], None],
        clock: Clock = time.monotonic_ns,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._spec = spec
        self._client = client
        self._pool = pool
        self._trace = trace
        self._report = report
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._news = asyncio.Event()
        """There is something for the conductor to know before a tally is due."""
        self._journal = Journal(on_news=self._news.set)
        self._lag = LoopLag()
        self._begin: Begin | None = None
        self._opened: OpenWindow | None = None
        self._population: Population | None = None
        self._living: asyncio.Task[None] | None = None
        self._started_utc = ""
        self._cpu_s: float | None = None
        self._first_jumps = 0
        self._closed = False
        self._over = asyncio.Event()
        """The window has been closed and everyone has left."""

    async def run(self, commands: asyncio.Queue[Command | None], stop: asyncio.Event) -> ClientPart:
        """Obey `commands` (None: the conductor is gone) until told to end, until all is over, or until `stop` is set.

        Raises:
            ConfigError: the users exceed the open files allowed.
        """
        self._report(Ready())
        waits = [
            asyncio.create_task(work)
            for work in (self._obey(commands), self._over.wait(), stop.wait(), self._keep_tally())
        ]
        try:
            with garbage_ignored():
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                was_told = all(task.result() for task in done) and not stop.is_set()
        finally:
            await _cancel([*waits, *filter(None, [self._living])])
            await self._lag.stop()
        if not self._closed:
            self._cut_window()
        return self._part(interrupted=not was_told)

    async def _obey(self, commands: asyncio.Queue[Command | None]) -> bool:
        """Follow commands; False if they ended without the word to end."""
        while (command := await commands.get()) is not None:
            match command:
                case AskClock():
                    self._report(TellClock(command.number, self._clock()))
                case Begin():
                    self._start(command)
                case OpenWindow():
                    self._opened = command
                    self._journal.window_start_ns = max(command.at_ns, self._clock())
                    self._at(command.at_ns, self._open)
                case CloseWindow():
                    self._journal.window_end_ns = max(command.at_ns, self._clock())
                    self._at(command.at_ns, self._close)
                case End():
                    return True
        return False

    def _at(self, at_ns: int, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(max(0, at_ns - self._clock()) / 1e9, act)

    def _start(self, begin: Begin) -> None:
        self._begin = begin
        self._started_utc = datetime.now(UTC).isoformat()
        self._population = self._make_population(begin)
        self._lag.start()
        self._living = asyncio.create_task(self._population.live(begin.at_ns))
        self._living.add_done_callback(self._note_end)

    def _make_population(self, begin: Begin) -> Population:
        if begin.users is None:
            return Visitors(self._spec, begin.rate_per_s, self._trace, self._make_user, self._journal, self._clock)
        check_connections(-(-begin.users // self._spec.num_workers))
        return Residents(self._spec, begin.users, self._make_user, self._journal)

    def _make_user(self, number: int) -> User:
        spec = self._spec
        source = RequestSource(number, spec.seed, spec.model, spec.workload, self._pool)
        return User(number, spec, source, self._client, self._journal, self._clock)

    def _open(self) -> None:
        self._cpu_s = self._cpu_clock()
        self._client.take_delays_ns()
        self._first_jumps = self._client.num_clock_jumps
        if self._population is not None:
            self._population.open_window()

    def _close(self) -> None:
        """End the window, and note what the process knows of itself over it."""
        now_ns = self._clock()
        self._closed = True
        journal = self._journal
        start_ns = now_ns if journal.window_start_ns is None else journal.window_start_ns
        end_ns = now_ns if journal.window_end_ns is None else journal.window_end_ns
        journal.window_start_ns, journal.window_end_ns = start_ns, max(start_ns, end_ns)
        self._window_cpu_s = None if self._cpu_s is None else self._cpu_clock() - self._cpu_s
        self._delays_ns = sorted(self._client.take_delays_ns())
        window_s = (journal.window_end_ns - start_ns) / 1e9
        self._lag_p99_s, self._lag_histogram = (
            self._lag.p99_s(Lookback(window_s)),
            self._lag.histogram(window_s, LAG_BOUNDS_S),
        )
        self._news.set()
        if self._living is not None and self._living.done():
            self._over.set()

    def _cut_window(self) -> None:
        """End the window now, wherever its end was planned."""
        now_ns = self._clock()
        planned_ns = self._journal.window_end_ns
        self._journal.window_end_ns = now_ns if planned_ns is None else min(planned_ns, now_ns)
        self._close()

    def _note_end(self, living: asyncio.Task[None]) -> None:
        """Everyone has left, or the level broke: `run` finds out which."""
        self._news.set()
        if self._closed or (not living.cancelled() and living.exception() is not None):
            self._over.set()

    async def _keep_tally(self) -> bool:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.call_later(TALLY_S, self._news.set)
            await self._news.wait()
            due.cancel()
            self._news.clear()
            if self._begin is not None:
                self._report(self._tally())
            await asyncio.sleep(NEWS_S)

    def _tally(self) -> Tally:
        journal, now_ns = self._journal, self._clock()
        begin_ns = self._begin.at_ns if self._begin is not None else now_ns
        return Tally(
            phase=journal.phase(now_ns),
            elapsed_s=(now_ns - begin_ns) / 1e9,
            in_flight=len(journal.in_flight),
            requests_ok=journal.num_ok,
            requests_failed=journal.num_failed,
            tokens=self._client.num_pieces,
            measured=journal.num_measured,
            ttft_p50_s=journal.ttft_p50_s(),
            all_finished=journal.all_finished,
            all_left=self._living is not None and self._living.done(),
            drained=self._closed and journal.is_drained(now_ns),
            commonest_failure=journal.commonest_failure,
        )

    def _part(self, *, interrupted: bool) -> ClientPart:
        journal, begin, opened = self._journal, self._begin, self._opened
        start_ns, end_ns = journal.window_start_ns or 0, journal.window_end_ns or 0
        return ClientPart(
            worker=self._spec.worker,
            records=make_records(self._spec, journal),
            window_start_monotonic_ns=start_ns,
            window_end_monotonic_ns=end_ns,
            warmup_s=(start_ns - begin.at_ns) / 1e9 if begin is not None else 0.0,
            started_utc=self._started_utc or datetime.now(UTC).isoformat(),
            window_start_utc=self._tell_date(start_ns) if opened is not None else None,
            lag_p99_s=self._lag_p99_s,
            lag_histogram=self._lag_histogram,
            cpu_s=self._window_cpu_s,
            clock_jumps=self._client.num_clock_jumps - self._first_jumps,
            kernel_delay_p99_s=_quantile(self._delays_ns, 0.99),
            clock_offset_ns=begin.clock_offset_ns if begin is not None else 0,
            clock_uncertainty_ns=begin.clock_uncertainty_ns if begin is not None else 0,
            steady=opened.steady if opened is not None else None,
            warmup_cut=opened is not None and opened.cut,
            interrupted=interrupted,
        )

    def _tell_date(self, at_ns: int) -> str:
        """The date of a time of the clock, which must be about now."""
        return (datetime.now(UTC) - timedelta(microseconds=(self._clock() - at_ns) / 1000)).isoformat()


def _quantile(sorted_ns: list[int], share: float) -> float | None:
    """Smallest value that at least `share` of them do not exceed, in seconds; None if there are none."""
    return sorted_ns[max(ceil(share * len(sorted_ns)), 1) - 1] / 1e9 if sorted_ns else None


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their ends; the first error among those that broke is raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
