"""Who asks in a level: users who stay (closed loop), or conversations that begin on schedule (open loop).

Both deal numbers to the client processes in turn, so that user or arrival k does the same whichever process it is in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from erhpc.client.exchange import Clock
from erhpc.load.alarm import Alarm
from erhpc.load.journal import Journal
from erhpc.load.users import User
from erhpc.plan.specs import ClientSpec
from erhpc.workload.arrivals import Arrival, plan_arrivals
from erhpc.workload.profile import Profile, num_active
from erhpc.workload.traces import Trace

STARTS_PER_S = 1000
"""Users that begin per second: all at once would overrun the listen queue of a server (128 in aiohttp)."""

MakeUser = Callable[[int], User]


class Population(Protocol):
    """All users of one client process."""

    async def live(self, begin_ns: int) -> None:
        """Let them live, from `begin_ns` on, until cancelled, which breaks answers off, or the last one has left."""

    def open_window(self) -> None:
        """The window begins now: the load changes with the profile from here on."""


class Residents:
    """The users of a closed loop: `users` of all processes together."""

    def __init__(self, spec: ClientSpec, users: int, make_user: MakeUser, journal: Journal) -> None:
        self._workload = spec.workload
        self._num_users = users
        numbers = range(spec.worker, users, spec.num_workers)
        self._users = {number: make_user(number) for number in numbers}
        self._profile = Profile(self._workload.profile, self._workload.measure_s)
        self._changes: list[asyncio.TimerHandle] = []
        self._journal = journal
        for number in numbers:
            journal.enter(number)
        self._set_share(self._profile.share(0.0))

    async def live(self, begin_ns: int) -> None:
        """See `Population.live`."""
        ramp_s = self._workload.ramp_s
        ramp_ns = round((self._num_users / STARTS_PER_S if ramp_s is None else ramp_s) * 1e9)
        try:
            async with asyncio.TaskGroup() as group:
                for number, user in self._users.items():
                    group.create_task(user.live(begin_ns + number * ramp_ns // self._num_users))
        finally:
            for change in self._changes:
                change.cancel()

    def open_window(self) -> None:
        """See `Population.open_window`."""
        loop = asyncio.get_running_loop()
        for after_s, share in self._profile.changes():
            self._changes.append(loop.call_later(after_s, self._set_share, share))

    def _set_share(self, share: float) -> None:
        active = num_active(self._num_users, share)
        for number, user in self._users.items():
            if number < active:
                user.wake()
            else:
                user.rest()


class Visitors:
    """The conversations of an open loop: they begin on schedule, whatever became of those before."""

    def __init__(
        self,
        spec: ClientSpec,
        rate_per_s: float | None,
        trace: Trace | None,
        make_user: MakeUser,
        journal: Journal,
        clock: Clock,
    ) -> None:
        arrivals = plan_arrivals(spec.workload, rate_per_s, spec.seed, trace)
        self._mine = (arrival for arrival in arrivals if arrival.number % spec.num_workers == spec.worker)
        self._make_user = make_user
        self._journal = journal
        self._clock = clock

    async def live(self, begin_ns: int) -> None:
        """See `Population.live`."""
        async with asyncio.TaskGroup() as group:
            with Alarm() as alarm:
                await self._admit(group, alarm, begin_ns, self._mine)

    def open_window(self) -> None:
        """See `Population.open_window`; the schedule knows when the window opens."""

    async def _admit(self, group: asyncio.TaskGroup, alarm: Alarm, begin_ns: int, arrivals: Iterator[Arrival]) -> None:
        for arrival in arrivals:
            user = self._make_user(arrival.number)
            user.prepare(_lengths_of(arrival))
            due_ns = begin_ns + round(arrival.due_s * 1e9)
            self._journal.expect(arrival.number, due_ns)
            await alarm.wait_until(due_ns)
            self._journal.enter(arrival.number)
            group.create_task(user.live(due_ns))


def _lengths_of(arrival: Arrival) -> tuple[int, int] | None:
    if arrival.tokens_in is None or arrival.tokens_out is None:
        return None
    return arrival.tokens_in, arrival.tokens_out
