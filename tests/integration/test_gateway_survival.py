"""The gateway under attack, over real sockets and on the loop it runs on: what is left of it, and of its neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import gzip
import json
import logging
import os
import random
import socket
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from erhpc.config.routing import RELAYS
from erhpc.gateway import app, caller, front, server, upstream
from erhpc.gateway import relay as plain_relay
from tests.fakes.counting_replica import EVENT, JSON, CountingReplica
from tests.gateways import CHAT, LAST, Gate, Streams, chat, read_response, request, serving
from tests.streams import chunk

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
        while True:
            if await holds():
                return
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
    num_waves, draw = (40 if relay == "plain" else 100), random.Random(0)
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
    took_s = time.monotonic() - begin_s
    print(f"{relay}: {num_aborts} aborts in {took_s:.1f} s; objects {growth[0]:+}, {growth[1]:+.1f} MiB")
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
        check_is_400(*await asyncio.wait_for(house.gate.ask(data), 5))
        assert house.replica.num_connections == 0
        assert await house.gate.outcomes() == {"refused": 1}


# Framing


def post(fields: bytes, body: bytes, *, target: bytes = CHAT.encode(), version: bytes = b"1.1") -> bytes:
    """A request whose framing is told by `fields`."""
    return b"POST %b HTTP/%b\r\nhost: a\r\n%b\r\n%b" % (target, version, fields, body)


ASKED = chat("x")
SMUGGLED = request(chat("smuggled"))
LENGTH = b"content-length: %d\r\n" % len(ASKED)
CHUNKED = b"transfer-encoding: chunked\r\n"
IN_CHUNKS = chunk(ASKED) + LAST


def with_chunk_line(line: bytes) -> bytes:
    """A chunked body whose first chunk begins with `line`."""
    return post(CHUNKED, line + ASKED + b"\r\n" + LAST + SMUGGLED)


REFUSED = {
    "length beside chunks": post(LENGTH + CHUNKED, IN_CHUNKS + SMUGGLED),
    "chunks beside length": post(CHUNKED + LENGTH, IN_CHUNKS + SMUGGLED),
    "two lengths": post(LENGTH + b"content-length: 0\r\n", ASKED + SMUGGLED),
    "the same length twice": post(LENGTH + LENGTH, ASKED + SMUGGLED),
    "lengths in a list": post(b"content-length: %d, 0\r\n" % len(ASKED), ASKED + SMUGGLED),
    "length with a sign": post(b"content-length: +%d\r\n" % len(ASKED), ASKED + SMUGGLED),
    "length in hexadecimal": post(b"content-length: 0x%x\r\n" % len(ASKED), ASKED + SMUGGLED),
    "length below 0": post(b"content-length: -1\r\n", ASKED + SMUGGLED),
    "length past 64 bits": post(b"content-length: %d\r\n" % (2**64 + len(ASKED)), ASKED + SMUGGLED),
    "no digits in length": post(b"content-length:\r\n", ASKED + SMUGGLED),
    "Arabic digits": post("content-length: ١٢\r\n".encode(), ASKED + SMUGGLED),
    "blank before the colon": post(b"transfer-encoding : chunked\r\n" + LENGTH, IN_CHUNKS + SMUGGLED),
    "folded line": post(b"transfer-encoding:\r\n chunked\r\n", IN_CHUNKS + SMUGGLED),
    "folded line beside length": post(b"transfer-encoding:\r\n chunked\r\n" + LENGTH, IN_CHUNKS + SMUGGLED),
    "vertical tab": post(b"transfer-encoding:\x0bchunked\r\n" + LENGTH, IN_CHUNKS + SMUGGLED),
    "unknown coding": post(b"transfer-encoding: xchunked\r\n" + LENGTH, ASKED + SMUGGLED),
    "no coding": post(b"transfer-encoding: identity\r\n" + LENGTH, ASKED + SMUGGLED),
    "chunks not last": post(b"transfer-encoding: chunked, identity\r\n", IN_CHUNKS + SMUGGLED),
    "chunked twice": post(CHUNKED + CHUNKED, IN_CHUNKS + SMUGGLED),
    "chunks in HTTP/1.0": post(CHUNKED + LENGTH, IN_CHUNKS + SMUGGLED, version=b"1.0"),
    "field after a line feed": post(b"x: y\ntransfer-encoding: chunked\r\n" + LENGTH, IN_CHUNKS + SMUGGLED),
    "field after a carriage return": post(b"x: y\rtransfer-encoding: chunked\r\n" + LENGTH, IN_CHUNKS + SMUGGLED),
    "NUL in a field": post(b"x: a\x00b\r\n" + LENGTH, ASKED + SMUGGLED),
    "a line without a colon": post(b"x\r\n" + LENGTH, ASKED + SMUGGLED),
    "two hosts": post(b"host: b\r\n" + LENGTH, ASKED + SMUGGLED),
    "no host": post(LENGTH, ASKED + SMUGGLED).replace(b"host: a\r\n", b""),
    "chunk size with 0x": with_chunk_line(b"0x%x\r\n" % len(ASKED)),
    "chunk size with a sign": with_chunk_line(b"+%x\r\n" % len(ASKED)),
    "chunk size below 0": with_chunk_line(b"-1\r\n"),
    "chunk size past 64 bits": with_chunk_line(b"1%016x\r\n" % len(ASKED)),
    "blank after the chunk size": with_chunk_line(b"%x \r\n" % len(ASKED)),
    "line feed after the chunk size": with_chunk_line(b"%x\n" % len(ASKED)),
    "line feed in a chunk extension": with_chunk_line(b"%x;a\nb\r\n" % len(ASKED)),
    "no chunk size": with_chunk_line(b"\r\n"),
    "chunk longer than it says": with_chunk_line(b"5\r\n"),
    "bad trailer": post(CHUNKED, chunk(ASKED) + b"0\r\nno field\r\n\r\n" + SMUGGLED),
    "length in the trailer": post(CHUNKED, chunk(ASKED) + b"0\r\ncontent-length: 5\r\n\r\n" + SMUGGLED),
    "a request for a body": request(SMUGGLED),
    "a body that ends within the next request": post(b"content-length: %d\r\n" % (len(ASKED) + 30), ASKED + SMUGGLED),
    "HTTP/1.2": post(LENGTH, ASKED + SMUGGLED, version=b"1.2"),
    "HTTP/0.9": b"POST /v1/chat/completions\r\n\r\n" + SMUGGLED,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "NUL in the target": post(LENGTH, ASKED + SMUGGLED, target=b"/v1/\x00"),
    "invalid UTF-8": request(b'{"model":"auto","messages":[{"role":"user","content":"\xff"}]}'),
    "half a surrogate": request(b'{"model":"auto","messages":[{"role":"user","content":"\\ud800"}]}'),
    "a deep body": request(b'{"model":"auto","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a huge number": request(b'{"model":"auto","prompt":[' + b"9" * 6000 + b"]}", "/v1/completions"),
    "no gzip": post(b"content-encoding: gzip\r\n" + LENGTH, ASKED),
    "cut gzip": post(b"content-encoding: gzip\r\ncontent-length: 20\r\n", gzip.compress(ASKED)[:20]),
    "two gzips": post(b"content-encoding: gzip\r\n" + CHUNKED, chunk(gzip.compress(ASKED) * 2) + LAST),
    "two content codings": post(b"content-encoding: gzip, deflate\r\n" + LENGTH, ASKED),
    "unknown content coding": post(b"content-encoding: br\r\n" + LENGTH, ASKED),
    "a header of 100 kB": post(b"x: " + b"a" * 100_000 + b"\r\n" + LENGTH, ASKED),
    "10,000 headers": post(b"".join(b"x-%d: y\r\n" % n for n in range(10_000)) + LENGTH, ASKED),
    "a header without end": b"POST / HTTP/1.1\r\nx: " + b"a" * 200_000,
    "headers without end": b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 50_000,
    "a target without end": b"POST /" + b"a" * 200_000,
}


def check_is_400(head: bytes, body: bytes) -> None:
    """A refusal in OpenAI's shape."""
    assert head.split(b" ")[1] == b"400"
    fields = head.lower()
    assert b"content-type: application/json" in fields
    assert b"x-request-id: " in fields
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def count_smuggled(replica: CountingReplica) -> int:
    """Requests that the replica was sent as if a client had asked for them."""
    return sum(b'"content": "smuggled"' in body for body in replica.bodies)


@pytest.mark.parametrize("name", REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_hidden_in_it_reaches_a_replica(relay, name):
    async with housing(relay) as house:
        check_is_400(*await asyncio.wait_for(house.gate.ask(REFUSED[name]), 5))
        assert (await house.gate.ask(request(ASKED)))[0].startswith(b"HTTP/1.1 200 ")
        assert (house.replica.num_requests, count_smuggled(house.replica), house.replica.strange) == (1, 0, [])


UNUSUAL = {
    "chunks": post(CHUNKED, IN_CHUNKS),
    "chunk by chunk": post(CHUNKED, b"".join(chunk(ASKED[n : n + 1]) for n in range(len(ASKED))) + LAST),
    "chunk extension": post(CHUNKED, b"%x;a=b\r\n" % len(ASKED) + ASKED + b"\r\n" + LAST),
    "chunk size with zeros": post(CHUNKED, b"%040x\r\n" % len(ASKED) + ASKED + b"\r\n" + LAST),
    "trailer": post(CHUNKED, chunk(ASKED) + b"0\r\nx: y\r\n\r\n"),
    "tab before the coding": post(b"transfer-encoding:\tchunked\r\n", IN_CHUNKS),
    "underscore": post(b"transfer_encoding: chunked\r\n" + LENGTH, ASKED),
    "absolute target": post(LENGTH, ASKED, target=b"http://elsewhere.example/v1/chat/completions"),
    "query": post(LENGTH, ASKED, target=b"/v1/chat/completions?x=1"),
    "HTTP/1.0": post(LENGTH, ASKED, version=b"1.0"),
    "empty line first": b"\r\n" + post(LENGTH, ASKED),
    "upgrade": post(b"connection: upgrade\r\nupgrade: h2c\r\n" + LENGTH, ASKED),
    "100 headers": post(b"".join(b"x-%d: y\r\n" % n for n in range(100)) + LENGTH, ASKED),
    "a request in a prompt": request(chat(SMUGGLED.decode())),
    "a user of 100,000 digits": request(ASKED[:-1] + b', "user": ' + b"9" * 100_000 + b"}"),
}


@pytest.mark.parametrize("name", UNUSUAL)
async def test_what_is_unusual_but_clear_is_answered_once(relay, name):
    async with housing(relay) as house:
        head, body = await asyncio.wait_for(house.gate.ask(UNUSUAL[name]), 5)
        assert (head.split(b" ")[1], body) == (b"200", JSON)
        assert (await house.gate.ask(request(ASKED)))[0].startswith(b"HTTP/1.1 200 ")
        assert (house.replica.num_requests, count_smuggled(house.replica), house.replica.strange) == (2, 0, [])


@pytest.mark.parametrize("value", ["\N{SNOWMAN}".encode(), b"\xff\xfe", b"x" * 7000], ids=["UTF-8", "no UTF-8", "long"])
@pytest.mark.parametrize("name", [b"traceparent", b"tracestate", b"x-session-id", b"x-request-id", b"authorization"])
@pytest.mark.parametrize("framing", [(LENGTH, ASKED), (CHUNKED, IN_CHUNKS)], ids=["length", "chunks"])
async def test_a_header_that_is_read_or_passed_on_may_hold_anything(relay, framing, name, value):
    fields, body = framing
    async with housing(relay, policy="session") as house:
        head, answer = await asyncio.wait_for(house.gate.ask(post(b"%b: %b\r\n" % (name, value) + fields, body)), 5)
        assert (head.split(b" ")[1], answer) == (b"200", JSON)


@pytest.mark.parametrize("value", [b"x", b"\xff\xfe"])
@pytest.mark.parametrize("target", [CHAT.encode(), b"/nowhere"])
async def test_an_expectation_that_cannot_be_met_is_answered_417(relay, target, value):
    async with housing(relay) as house:
        head, body = await asyncio.wait_for(
            house.gate.ask(post(b"expect: %b\r\n" % value + LENGTH, ASKED, target=target)), 5
        )
        assert head.startswith(b"HTTP/1.1 417 ")
        assert body.startswith(b'{"error":')
        assert (await house.gate.outcomes(), house.replica.num_requests) == ({"refused": 1}, 0)


TURNED_AWAY = {
    "no such route": (post(b"content-length: %d\r\n" % len(SMUGGLED), SMUGGLED, target=b"/v1/nothing"), b"404"),
    "no such method": (request(SMUGGLED, CHAT, "PUT"), b"405"),
    "a body where none belongs": (request(SMUGGLED, "/v1/models", "GET"), b"200"),
    "too long": (request(SMUGGLED * 100), b"413"),
    "too long in chunks": (post(CHUNKED, chunk(SMUGGLED * 100) + LAST), b"413"),
    "no such model": (request(chat(SMUGGLED.decode()).replace(b"auto", b"law")), b"404"),
    "too many": (request(SMUGGLED), b"503"),
}


@pytest.mark.parametrize("name", TURNED_AWAY)
async def test_the_body_of_a_request_that_is_turned_away_is_never_read_as_a_request(relay, name):
    data, status = TURNED_AWAY[name]
    crowded = {"max_in_flight": 1, "max_queued": 0} if name == "too many" else {}
    async with (
        housing(relay, max_body_bytes=4096, **crowded) as house,
        house.gate.visit() as (_, holder),
        house.gate.visit() as (reader, writer),
    ):
        if crowded:
            holder.write(request(chat("hang")))
            await until(lambda: is_asked(house, 1))
        writer.write(data)
        assert (await read_response(reader))[0].split(b" ")[1] == status
        leave(holder, rudely=False)
        # What follows on the connection is answered, unless it is closed.
        writer.write(request(b"", "/health", "GET"))
        with contextlib.suppress(asyncio.IncompleteReadError):
            assert (await read_response(reader))[1].startswith(b'{"status"')
        assert count_smuggled(house.replica) == 0


async def is_asked(house: House, num_requests: int) -> bool:
    return house.replica.num_requests == num_requests


# Time


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second is a minute."""
    monkeypatch.setattr(front, "WATCH_S", 0.02)
    for module in (app, caller):
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.2)
    for module in (caller, server):
        monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.3)


@pytest.mark.parametrize("data", [b"", b"POST", request()[:60]], ids=["nothing", "a word", "half a head"])
async def test_a_connection_that_says_no_whole_head_is_closed_after_a_time(relay, impatience, data):
    async with housing(relay) as house, house.gate.visit() as (reader, writer):
        writer.write(data)
        rest = await asyncio.wait_for(reader.read(), 5)
        assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
        await check_nothing_is_left(house)


@pytest.mark.parametrize("fields", [LENGTH, CHUNKED], ids=["of known length", "in chunks"])
async def test_a_body_that_does_not_come_in_time_is_answered_408_and_gives_its_place_up(relay, impatience, fields):
    async with housing(relay, max_in_flight=1) as house, house.gate.visit() as (reader, writer):
        writer.write(post(fields, b"1\r\n{"))
        assert (await asyncio.wait_for(read_response(reader), 5))[0].startswith(b"HTTP/1.1 408 ")
        assert (await house.gate.ask(request(ASKED)))[0].startswith(b"HTTP/1.1 200 ")
        assert await house.gate.outcomes() == {"refused": 1, "ok": 1}


async def test_a_body_that_arrives_a_byte_at_a_time_is_answered_and_holds_no_neighbour_up(relay):
    async with housing(relay) as house, house.gate.visit() as (reader, writer):
        for number, byte in enumerate(request(ASKED)):
            writer.write(bytes([byte]))
            await writer.drain()
            if number % 16 == 0:
                assert (await house.gate.ask(request(ASKED)))[0].startswith(b"HTTP/1.1 200 ")
        assert (await read_response(reader))[1] == JSON


async def test_a_request_that_begins_on_a_connection_long_idle_has_all_its_time(relay, monkeypatch):
    monkeypatch.setattr(front, "WATCH_S", 0.01)
    monkeypatch.setattr(caller, "REQUEST_TIMEOUT_S", 0.3)
    async with housing(relay) as house, house.gate.visit() as (reader, writer):
        writer.write(request(ASKED))
        await read_response(reader)
        for part, pause_s in ((request(ASKED)[:40], 0.5), (request(ASKED)[40:], 0.05)):
            due_s = time.monotonic() + pause_s
            await until(lambda due_s=due_s: has_passed(due_s))
            writer.write(part)
        assert (await read_response(reader))[1] == JSON


async def has_passed(time_s: float) -> bool:
    return time.monotonic() >= time_s


# Clients that do not read


@on_uvloop
async def test_a_client_that_never_reads_is_cut_after_a_time_and_harms_no_neighbour(relay):
    async with (
        housing(relay, stall_timeout_s=0.5) as house,
        house.gate.visit() as (_, writer),
    ):
        writer.transport.pause_reading()
        writer.write(request(chat("flood", stream=True)))
        await until(lambda: is_held_back(house))
        memory_bytes = measure_memory()[1]
        for _ in range(20):
            assert (await house.gate.ask(request(ASKED)))[1] == JSON
        assert measure_memory()[1] < memory_bytes + 2**24
        await until(lambda: has_outcomes(house, {"ok": 20, "cancelled": 1}))
        await until(lambda: is_idle(house))


@on_uvloop
async def test_a_client_that_never_reads_whole_answers_is_cut_too_once_they_are_over(relay):
    async with housing(relay, stall_timeout_s=0.5) as house, house.gate.visit() as (_, writer):
        writer.transport.pause_reading()
        # The longest that is passed on whole, often enough to fill the buffers of all sockets on the way.
        writer.write(request(chat("big")) * 30)
        await until(lambda: is_stuck(house))
        num_files = count_files()
        await until(lambda: has_fewer_files(num_files))  # the kernel gives up without a word to the client
        await until(lambda: is_idle(house))


@on_uvloop
async def test_a_client_that_reads_slowly_but_reads_is_not_cut(relay):
    async with housing(relay, stall_timeout_s=0.5) as house, house.gate.visit() as (reader, writer):
        writer.write(request(chat("flood", stream=True)))
        begin_s = time.monotonic()
        while time.monotonic() < begin_s + 1.5:
            assert await reader.readexactly(65536)
            due_s = time.monotonic() + 0.02
            await until(lambda due_s=due_s: has_passed(due_s))
        assert (await house.gate.gauges())["erhpc_admitted"] == 1


async def is_held_back(house: House) -> bool:
    """Whether the replica may send no more for now."""
    flooded_bytes = house.replica.flooded_bytes
    await asyncio.sleep(0.05)
    return flooded_bytes == house.replica.flooded_bytes > 0


async def is_stuck(house: House) -> bool:
    """Whether no further request comes through."""
    num_requests = house.replica.num_requests
    await asyncio.sleep(0.05)
    return num_requests == house.replica.num_requests > 0


def count_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def has_fewer_files(number: int) -> bool:
    return count_files() < number


async def has_outcomes(house: House, outcomes: dict[str, int]) -> bool:
    return await house.gate.outcomes() == outcomes


async def is_idle(house: House) -> bool:
    return set((await house.gate.gauges()).values()) == {0.0}


@on_uvloop
async def test_a_connection_changes_hands_while_its_client_does_not_read(relay):
    # However many answers fill the buffers of all sockets on the way, one of these asks for something else just then.
    async with housing(relay) as house, AsyncExitStack() as visits:
        streams = [await visits.enter_async_context(house.gate.visit()) for _ in range(12)]
        for number, (_, writer) in enumerate(streams):
            writer.transport.pause_reading()
            writer.write(request(chat("big")) * number + request(b"", "/v1/models", "GET"))
        await until(lambda: is_stuck(house))
        for number, (reader, writer) in enumerate(streams):
            writer.transport.resume_reading()
            for _ in range(number):
                assert len((await read_response(reader))[1]) == 1_000_000
            assert b'"auto"' in (await read_response(reader))[1]


@on_uvloop
async def test_a_client_that_leaves_is_noticed_though_nothing_more_is_read_of_what_it_sent():
    # Not by the plain relay: aiohttp notices it when it reads again.
    ahead = request(chat("x" * 100_000))
    async with housing("fast", max_in_flight=1) as house, house.gate.visit() as (_, queued):
        _, asked = await house.gate.connect()
        asked.write(request(chat("hang")))
        await until(lambda: is_asked(house, 1))
        asked.write(ahead)
        queued.write(ahead)
        await until(lambda: has_gauge(house, "erhpc_queued", 1))
        queued.write(ahead)
        leave(queued, rudely=False)
        await until(lambda: has_gauge(house, "erhpc_queued", 0))
        leave(asked, rudely=False)
        await check_nothing_is_left(house)


async def has_gauge(house: House, name: str, value: float) -> bool:
    return (await house.gate.gauges())[name] == value


# Bodies of 100 MB

PIECE = b"x" * 2**16
NUM_PIECES = 1600


@pytest.mark.parametrize("framing", ["length", "chunks"])
@on_uvloop
async def test_a_body_of_100_mb_is_refused_before_it_is_kept(relay, framing):
    in_chunks = framing == "chunks"
    async with housing(relay) as house, house.gate.visit() as (reader, writer):
        await house.gate.ask(request(ASKED))
        memory_bytes = measure_memory()[1]
        peak_bytes = 0
        writer.write(post(CHUNKED if in_chunks else b"content-length: %d\r\n" % (NUM_PIECES * len(PIECE)), b""))
        for number in range(NUM_PIECES):
            writer.write(chunk(PIECE) if in_chunks else PIECE)
            await writer.drain()
            if number % 200 == 0:
                assert (await house.gate.ask(request(ASKED)))[1] == JSON
                peak_bytes = max(peak_bytes, measure_memory()[1])
        assert (await read_response(reader))[0].startswith(b"HTTP/1.1 413 ")
        assert peak_bytes - memory_bytes < 3 * 2**23
        assert (await house.gate.outcomes())["refused"] == 1


# Bodies that would take long to read

CROWDED = {
    "lists of tokens": ("/v1/completions", b'{"model":"auto","prompt":[' + b"[1]," * 2_000_000 + b"1]}"),
    "parts": (CHAT, b'{"model":"auto","messages":[{"role":"user","content":[' + b"{}," * 2_500_000 + b"{}]}]}"),
    "inputs": ("/v1/embeddings", b'{"model":"auto","input":[' + b"[1]," * 2_000_000 + b"1]}"),
}


@pytest.mark.parametrize("name", CROWDED)
@on_uvloop
async def test_a_body_that_would_hold_all_others_up_is_refused_and_they_are_answered(relay, name):
    path, body = CROWDED[name]
    async with housing(relay) as house:
        hostile, *others = await asyncio.gather(
            house.gate.ask(request(body, path)), *(house.gate.ask(request(ASKED)) for _ in range(20))
        )
        assert hostile[0].startswith(b"HTTP/1.1 400 ")
        assert b"holds too much" in hostile[1]
        assert {body for _, body in others} == {JSON}
        assert await house.gate.outcomes() == {"refused": 1, "ok": 20}


@pytest.mark.parametrize("framing", ["length", "chunks"])
@on_uvloop
async def test_a_body_that_is_a_thousand_times_as_long_once_decoded_is_refused_and_never_made(relay, framing):
    encoder = zlib.compressobj(9, wbits=31)
    bomb = b"".join([encoder.compress(PIECE * 16) for _ in range(200)]) + encoder.flush()
    begin = b"content-encoding: gzip\r\n"
    length = post(begin + b"content-length: %d\r\n" % len(bomb), bomb)
    data = length if framing == "length" else post(begin + CHUNKED, chunk(bomb) + LAST)
    async with housing(relay) as house:
        await house.gate.ask(request(ASKED))
        memory_bytes = measure_memory()[1]
        assert (await house.gate.ask(data))[0].startswith(b"HTTP/1.1 413 ")
        assert measure_memory()[1] - memory_bytes < 3 * 2**23
        assert (await house.gate.ask(request(ASKED)))[1] == JSON


ENCODED = {
    "gzip": (b"gzip", gzip.compress(ASKED)),
    "GZIP": (b"GZIP", gzip.compress(ASKED)),
    "deflate": (b"deflate", zlib.compress(ASKED)),
    "bare deflate": (b"deflate", zlib.compress(ASKED, wbits=-15)),
    "identity": (b"identity", ASKED),
}


@pytest.mark.parametrize("name", ENCODED)
async def test_an_encoded_body_is_answered(relay, name):
    coding, body = ENCODED[name]
    fields = b"content-encoding: %b\r\ncontent-length: %d\r\n" % (coding, len(body))
    async with housing(relay) as house:
        assert (await house.gate.ask(post(fields, body)))[1] == JSON
        assert json.loads(house.replica.bodies[-1])["messages"] == json.loads(ASKED)["messages"]


async def test_thousands_of_bad_requests_at_once_are_answered_between_those_of_others(relay):
    async with housing(relay) as house, house.gate.visit() as (reader, writer):
        begun, answered, number = asyncio.Event(), 0, 3000
        writer.write(request(b"{") * number)

        async def read_all() -> None:
            nonlocal answered
            for _ in range(number):
                check_is_400(*await read_response(reader))
                answered += 1
                begun.set()

        reading = asyncio.create_task(read_all())
        await begun.wait()
        assert (await house.gate.ask(request(ASKED)))[1] == JSON
        assert answered < number
        await reading
        assert (await house.gate.outcomes())["refused"] == number


# What is kept


@on_uvloop
async def test_connections_to_replicas_that_nobody_needs_any_more_are_closed(relay, monkeypatch):
    monkeypatch.setattr(front, "WATCH_S", 0.02)
    for module in (upstream, plain_relay):
        monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.2)
    async with housing(relay) as house:
        await asyncio.gather(*(house.gate.ask(request(ASKED)) for _ in range(20)))
        assert house.replica.num_open > 1
        await check_nothing_is_left(house)
        assert (await house.gate.ask(request(ASKED)))[1] == JSON
