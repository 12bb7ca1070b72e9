"""The conductor of a level, with clients that are played by the test."""

from __future__ import annotations

import asyncio

import pytest

from erhpc.config import ArrivalConfig, ProfileConfig, WorkloadConfig
from erhpc.load.conductor import Conductor
from erhpc.load.messages import AskClock, Begin, CloseWindow, Command, End, OpenWindow, Ready, Tally, TellClock
from erhpc.load.progress import Progress
from erhpc.plan.levels import LoadPoint

SECOND = 1_000_000_000


class Clients:
    """Clients whose clocks are `offsets_ns` ahead of the conductor's; each answers as soon as it is asked."""

    def __init__(self, *offsets_ns: int, **workload: object) -> None:
        times = {"warmup_s": 0.1, "warmup_max_s": 0.1, "measure_s": 0.3, "drain_s": 0.3}
        self.offsets_ns = offsets_ns
        self.told: list[list[Command]] = [[] for _ in offsets_ns]
        self.progress: list[Progress] = []
        self.mute: set[int] = set()
        self.conductor = Conductor(
            WorkloadConfig(**(times | workload)),
            3,
            LoadPoint(users=10),
            len(offsets_ns),
            tell=self.tell,
            on_progress=self.progress.append,
            clock=self.clock,
        )

    def clock(self) -> int:
        return round(asyncio.get_running_loop().time() * SECOND)

    def tell(self, worker: int, command: Command) -> None:
        self.told[worker].append(command)
        if isinstance(command, AskClock) and worker not in self.mute:
            answer = TellClock(command.number, self.clock() + self.offsets_ns[worker])
            asyncio.get_running_loop().call_soon(self.conductor.hear, worker, answer)

    def tally(self, worker: int, **changes: object) -> None:
        usual = {
            "phase": "warmup", "elapsed_s": 1.0, "in_flight": 5, "requests_ok": 7, "requests_failed": 1, "tokens": 100,
            "measured": 0, "ttft_p50_s": 0.1, "all_finished": True, "all_left": False,
            "drained": False,
        }  # fmt: skip
        self.conductor.hear(worker, Tally(**(usual | changes)))

    async def conduct(self) -> None:
        for worker in range(len(self.offsets_ns)):
            self.conductor.hear(worker, Ready())
        await asyncio.wait_for(self.conductor.conduct(), 10)

    def of(self, worker: int, kind: type) -> list:
        return [command for command in self.told[worker] if isinstance(command, kind)]


async def test_every_client_is_told_the_same_moments_in_its_own_time():
    clients = Clients(0, 3600 * SECOND, -5 * SECOND)
    await clients.conduct()
    for kind in (Begin, OpenWindow, CloseWindow):
        moments_ns = [clients.of(worker, kind)[0].at_ns - clients.offsets_ns[worker] for worker in range(3)]
        assert max(moments_ns) - min(moments_ns) < 5_000_000
    assert [clients.of(worker, Begin)[0].clock_offset_ns / SECOND for worker in range(3)] == pytest.approx(
        [0, 3600, -5], abs=0.005
    )
    assert all(isinstance(told[-1], End) for told in clients.told)


async def test_the_window_is_as_long_as_asked_for():
    clients = Clients(0)
    await clients.conduct()
    opened, closed = clients.of(0, OpenWindow)[0], clients.of(0, CloseWindow)[0]
    assert closed.at_ns - opened.at_ns == round(0.3 * SECOND)


async def test_a_level_that_is_not_meant_to_be_steady_warms_up_for_exactly_as_long_as_asked():
    for workload in ({"profile": ProfileConfig(kind="spike")}, {"arrivals": ArrivalConfig("trace"), "trace": "t"}):
        clients = Clients(0, **workload)
        await clients.conduct()
        begin, opened = clients.of(0, Begin)[0], clients.of(0, OpenWindow)[0]
        assert opened.at_ns - begin.at_ns == round(0.1 * SECOND)
        assert opened.steady is None


async def test_a_warm_up_that_not_everybody_finished_is_said_to_be_cut():
    clients = Clients(0, 0)
    asyncio.get_running_loop().call_later(0.2, clients.tally, 0)
    await clients.conduct()
    assert clients.of(0, OpenWindow)[0].cut


async def test_the_window_ends_once_enough_requests_have_been_measured():
    clients = Clients(0, 0, measure_s=60.0, measure_requests=100)
    loop = asyncio.get_running_loop()
    for at_s, measured in ((0.7, 30), (0.9, 60)):
        for worker in (0, 1):
            loop.call_later(at_s, lambda worker=worker, measured=measured: clients.tally(worker, measured=measured))
    await clients.conduct()
    window_ns = clients.of(0, CloseWindow)[0].at_ns - clients.of(0, OpenWindow)[0].at_ns
    assert 0 < window_ns < 3 * SECOND


async def test_the_drain_ends_when_all_are_drained_or_have_left():
    clients = Clients(0, 0, 0, drain_s=60.0)
    loop = asyncio.get_running_loop()
    loop.call_later(1.2, clients.conductor.lose, 0)
    loop.call_later(1.25, lambda: clients.tally(1, all_left=True))
    loop.call_later(1.3, lambda: clients.tally(2, drained=True))
    begun_s = loop.time()
    await clients.conduct()
    assert loop.time() - begun_s >= 1.3
    assert isinstance(clients.told[1][-1], End)
    assert isinstance(clients.told[2][-1], End)
    assert not isinstance(clients.told[0][-1], End)  # it had gone


async def test_a_client_that_is_drained_goes_on_while_another_is_not():
    clients = Clients(0, 0, drain_s=1.5)
    loop = asyncio.get_running_loop()
    loop.call_later(1.0, lambda: clients.tally(0, drained=True))
    begun_s = loop.time()
    await clients.conduct()
    assert loop.time() - begun_s > 2.0  # all of the drain
    assert isinstance(clients.told[0][-1], End)


async def test_a_client_that_ends_before_it_has_told_its_time_holds_up_nobody():
    clients = Clients(0, 0)
    clients.mute.add(1)
    asyncio.get_running_loop().call_later(0.1, clients.conductor.lose, 1)
    begun_s = asyncio.get_running_loop().time()
    await clients.conduct()
    assert asyncio.get_running_loop().time() - begun_s < 5


async def test_progress_adds_up_what_the_clients_say():
    clients = Clients(0, 0)
    loop = asyncio.get_running_loop()
    loop.call_later(0.2, clients.tally, 0)
    loop.call_later(0.25, lambda: clients.tally(1, in_flight=2, commonest_failure="status 429"))
    await clients.conduct()
    (progress, *_) = clients.progress
    assert (progress.level, progress.users, progress.in_flight) == (3, 10, 7)
    assert (progress.requests_ok, progress.requests_failed) == (14, 2)
    assert progress.commonest_failure == "status 429"
