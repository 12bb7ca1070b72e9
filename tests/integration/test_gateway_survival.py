"""The gateway under attack, over real sockets and on the loop it runs on: what is left of it, and of its neighbours."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from erhpc.config.routing import RELAYS
from tests.fakes.counting_replica import EVENT, CountingReplica
from tests.gateways import Gate, Streams, chat, request, serving

pytestmark = pytest.mark.timeout(120)

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(params=RELAYS)
def relay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture):
    """The loop's exception handler, asyncio and aiohttp have nothing to complain about."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test where the gateway runs."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        uvloop.run(test(**fixtures))

    return run


@dataclass
class House:
    """A gateway before one replica."""

    gate: Gate
    replica: CountingReplica


@asynccontextmanager
async def housing(relay: str, **given: Any) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(CountingReplica().serving())
        yield House(await stack.enter_async_context(serving([replica.url], relay=relay, **given)), replica)


async def until(holds: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> None:
    """Return once it holds; fails after `within_s`."""
    async with asyncio.timeout(within_s):
        while not await holds():
            await asyncio.sleep(0.002)


def leave(writer: asyncio.StreamWriter, *, rudely: bool) -> None:
    """Close a connection, with a reset if `rudely`."""
    if rudely:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def check_nothing_is_left(house: House) -> None:
    """No connection to the replica, and gauges at 0."""

    async def is_quiet() -> bool:
        return house.replica.num_open == 0 and set((await house.gate.gauges()).values()) == {0.0}

    await until(is_quiet)


# Clients that leave

NUM_PER_PHASE = 20
NUM_PLACES = 3 * NUM_PER_PHASE
PHASES = ("head", "body", "prefill", "stream", "queue")


async def send(house: House, phase: str, number: int) -> Streams:
    """A connection whose request has been sent as far as `phase` needs."""
    reader, writer = await house.gate.connect()
    data = request(chat("linger" if phase == "stream" else "hang", stream=phase == "stream" or number % 2 == 0))
    kept = {"head": 30, "body": len(data) - 10}
    writer.write(data[: kept.get(phase)])
    return reader, writer


async def leave_in_every_phase(house: House, draw: random.Random) -> None:
    """Clients come, as many in each phase, and all leave; returns when nothing is left of them."""
    asked = house.replica.num_requests

    async def hold_places() -> bool:
        gauges = await house.gate.gauges()
        return house.replica.num_requests == asked + 2 * NUM_PER_PHASE and gauges["erhpc_admitted"] == NUM_PLACES

    async def are_queued() -> bool:
        return (await house.gate.gauges())["erhpc_queued"] == NUM_PER_PHASE

    numbers = range(NUM_PER_PHASE)
    streams = await asyncio.gather(*(send(house, phase, n) for n in numbers for phase in ("body", "prefill")))
    answered = await asyncio.gather(*(send(house, "stream", number) for number in numbers))
    await until(hold_places)
    for reader, _ in answered:
        await reader.readuntil(EVENT)
    streams += answered
    streams += await asyncio.gather(*(send(house, phase, n) for n in numbers for phase in ("queue", "head")))
    await until(are_queued)
    draw.shuffle(streams)
    for number, (_, writer) in enumerate(streams):
        leave(writer, rudely=number % 2 == 0)
    await check_nothing_is_left(house)


def measure_memory() -> tuple[int, int]:
    """Objects that the collector knows, and resident bytes."""
    gc.collect()
    return len(gc.get_objects()), int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@on_uvloop
async def test_thousands_of_clients_that_leave_in_every_phase_leave_nothing_behind(relay):
    num_waves, draw = 100, random.Random(0)
    begin_s, num_aborts = time.monotonic(), num_waves * NUM_PER_PHASE * len(PHASES)
    async with housing(relay, max_in_flight=NUM_PLACES) as house:
        for wave in range(num_waves):
            await leave_in_every_phase(house, draw)
            if wave == num_waves // 5:
                first = measure_memory()
        last = measure_memory()
        # Whoever has sent a whole head has asked; each of them is counted, once.
        assert await house.gate.outcomes() == {"cancelled": num_aborts * 4 // 5}
        assert (await house.gate.ask(request(chat("x"))))[0].startswith(b"HTTP/1.1 200 ")
    growth = last[0] - first[0], (last[1] - first[1]) / 2**20
    print(
        f"{relay}: {num_aborts} aborts in {time.monotonic() - begin_s:.1f} s; objects +{growth[0]}, {growth[1]:+.1f} MiB"
    )
    assert growth[0] < num_aborts / 10
    assert growth[1] < 8


@on_uvloop
async def test_a_replica_is_let_go_as_soon_as_its_client_leaves(relay):
    times_s = []
    async with housing(relay) as house:
        for number in range(100):
            asked = house.replica.num_requests
            reader, writer = await house.gate.connect()
            word = ("hang", "linger")[number % 2]
            writer.write(request(chat(word, stream=number % 4 > 1 or word == "linger")))
            if word == "linger":
                await reader.readuntil(EVENT)

            async def is_asked(asked: int = asked) -> bool:
                return house.replica.num_requests > asked

            async def is_let_go() -> bool:
                return house.replica.num_open == 0

            await until(is_asked)
            left_s = time.monotonic()
            leave(writer, rudely=number % 3 == 0)
            await until(is_let_go, within_s=2)
            times_s.append(house.replica.last_lost_s - left_s)
    times_s.sort()
    print(f"{relay}: client leaves -> replica let go: p50 {times_s[50] * 1e3:.2f} ms, most {times_s[-1] * 1e3:.2f} ms")


# Heads


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request().replace(b"\r\n", b"\n"), id="bare line feeds"),
        pytest.param(bytes.fromhex("16030100c8010000c40303"), id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(b"{}\n", id="no HTTP"),
        pytest.param(b" POST / HTTP/1.1\r\n", id="a blank first"),
    ],
)
async def test_what_can_never_become_a_request_is_answered_400_at_once(relay, data):
    async with housing(relay) as house:
        head, _ = await asyncio.wait_for(house.gate.ask(data), 5)
        assert head.split(b" ")[1] == b"400"
        assert house.replica.num_connections == 0
