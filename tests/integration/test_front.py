"""The gateway's own connections, byte by byte: what passes through them, and what is left to aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from erhpc.gateway.caller import find_sink
from tests.gateways import BODY, CHAT, LAST, Gate, read_request, read_response, request, serving
from tests.streams import chunk

pytestmark = pytest.mark.timeout(60)

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


EVENT = chunk(b'data: {"choices":[]}\n\n')
WHOLE = HEAD + EVENT + chunk(b"data: [DONE]\n\n") + LAST


class House(Gate):
    """A gateway before one replica that runs a script on each of its connections."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.asked: list[tuple[bytes, bytes]] = []
        self.num_connections = 0
        self.lost = asyncio.Event()
        """A connection to the replica was broken off by the gateway."""

    async def requests(self, outcome: str) -> float:
        return await self.metric(f'erhpc_requests_total{{expert="a",replica="a-0",outcome="{outcome}"}}')


@asynccontextmanager
async def housing(*pieces: bytes, script: Script | None = None, **limits: float) -> AsyncIterator[House]:
    """A house whose replica answers every request with `pieces`, or does what `script` says."""
    house: House

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        house.num_connections += 1
        try:
            if script is not None:
                await script(reader, writer)
                return
            while True:
                house.asked.append(await read_request(reader))
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            house.lost.set()
        finally:
            writer.close()

    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(await asyncio.start_server(serve_connection, "127.0.0.1", 0))
        replica_port = replica.sockets[0].getsockname()[1]
        house = House(0)
        gate = await stack.enter_async_context(serving([f"http://127.0.0.1:{replica_port}"], **limits))
        house.port = gate.port
        yield house


# What passes


async def test_an_answer_passes_byte_for_byte():
    async with housing(WHOLE) as house:
        head, body = await house.ask(request())
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-type: text/event-stream\r\n" in head.lower()
        assert b"x-erhpc-replica: a-0\r\n" in head
        assert body == WHOLE.removeprefix(HEAD)
        [(asked, asked_body)] = house.asked
        assert asked.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert json.loads(asked_body) == {**json.loads(BODY), "model": "llama"}


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_an_answer_passes_however_it_is_cut(size: int):
    pieces = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
    async with housing(*pieces) as house:
        assert (await house.ask(request()))[1] == WHOLE.removeprefix(HEAD)


CHUNKED_JSON = chunk(b"{}") + LAST


@pytest.mark.parametrize(
    ("status", "fields", "body"),
    [
        (b"200 OK", b"content-length: 2\r\n", b"{}"),
        (b"200 OK", b"transfer-encoding: chunked\r\n", CHUNKED_JSON),
        (b"200 OK", b"connection: close\r\ncontent-length: 2\r\n", b"{}"),
        (b"100 Continue\r\n\r\nHTTP/1.1 200 OK", b"content-length: 2\r\n", b"{}"),
        (b"429 Too Many Requests", b"retry-after: 3\r\ncontent-length: 2\r\n", b"{}"),
        (b"200 OK", b"content-length: 0\r\n", b""),
    ],
)
async def test_an_answer_of_any_framing_passes(status: bytes, fields: bytes, body: bytes):
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n" + fields + b"\r\n" + body
    async with housing(answer) as house:
        for _ in range(2):
            head, found = await house.ask(request())
            assert head.split(b" ")[1] == (b"200" if status.endswith(b"OK") else b"429")
            assert (b"retry-after: 3\r\n" in head.lower()) == (b"retry-after" in fields)
            assert found == body


async def test_an_answer_without_framing_ends_with_its_connection():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\ndata: [DONE]\n\n")

    async with housing(script=answer) as house:
        head, body = await house.ask(request())
        assert b"connection: close\r\n" in head.lower()
        assert body == b"data: 1\n\ndata: [DONE]\n\n"
        assert await house.requests("ok") == 1


async def test_requests_on_one_connection_are_answered_one_after_the_other():
    async with housing(WHOLE) as house:
        reader, writer = await house.connect()
        writer.write(request() * 50)
        for _ in range(50):
            assert (await read_response(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert len(house.asked) == 50
        assert house.num_connections == 1


async def test_a_request_may_arrive_a_byte_at_a_time():
    async with housing(WHOLE) as house:
        reader, writer = await house.connect()
        for byte in request():
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await read_response(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.close()


# What is left to aiohttp


async def test_other_routes_and_answers_may_share_a_connection():
    async with housing(WHOLE) as house:
        reader, writer = await house.connect()
        for sent, found in (
            (request(), b"[DONE]"),
            (request(b"", "/v1/models", "GET"), b'"auto"'),
            (request(), b"[DONE]"),
            (request(b"", "/health", "GET"), b'"ok"'),
        ):
            writer.write(sent)
            head, body = await read_response(reader)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert found in body
        writer.close()
        assert len(house.asked) == 2


async def test_a_body_in_chunks_is_answered_too():
    async with housing(WHOLE) as house:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        assert b"[DONE]" in (await house.ask(head + chunk(BODY[:9]) + chunk(BODY[9:]) + LAST))[1]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n" + b"x: " + b"a" * 20_000 + b"\r\n\r\n", b"400"),
        (request().replace(b"content-length: ", b"content-length: 1, "), b"400"),
        (request().replace(b"\r\n\r\n", b"\r\ncontent-length: 1\r\n\r\n", 1), b"400"),
        (request().replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n", 1), b"400"),
        (request(path="/v1/nothing"), b"404"),
        (request(b"", CHAT, "GET"), b"405"),
        (request(b"x" * 3000), b"413"),
        (request(b"{"), b"400"),
        (request(b""), b"400"),
        (request(BODY.replace(b"auto", b"other")), b"404"),
    ],
)
async def test_what_cannot_be_answered_is_refused_and_reaches_no_replica(sent: bytes, status: bytes):
    async with housing(WHOLE, max_body_bytes=2048) as house:
        head, _ = await house.ask(sent)
        assert head.split(b" ")[1] == status
        assert house.asked == []
        assert (await house.ask(request()))[0].startswith(b"HTTP/1.1 200 ")


async def test_the_body_of_a_request_that_is_turned_away_is_skipped():
    may_answer = asyncio.Event()

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await may_answer.wait()
            writer.write(WHOLE)

    async with housing(script=answer_late, max_in_flight=1, max_queued=0) as house:
        first_reader, first = await house.connect()
        first.write(request())
        async with asyncio.timeout(10):
            while True:
                if await house.metric("erhpc_admitted") == 1:
                    break
                await asyncio.sleep(0.01)
        reader, writer = await house.connect()
        sent = request(b'{"model": "auto"' + b" " * 200_000)
        writer.write(sent[:150])
        assert (await read_response(reader))[0].startswith(b"HTTP/1.1 503 ")
        may_answer.set()
        assert b"[DONE]" in (await read_response(first_reader))[1]
        writer.write(sent[150:] + request())
        assert b"[DONE]" in (await read_response(reader))[1]
        first.close()
        writer.close()


# What breaks


async def test_a_connection_that_the_replica_closed_meanwhile_is_replaced_once():
    seen: list[int] = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        seen.append(1)
        writer.write(WHOLE)
        await read_request(reader)  # closed without a word
        seen.append(2)

    async with housing(script=answer_once) as house:
        for _ in range(3):
            assert b"[DONE]" in (await house.ask(request()))[1]
        assert seen == [1, 2, 1, 2, 1]


async def test_a_replica_that_dies_of_a_request_is_not_asked_again():
    asked: list[int] = []

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.append(1)

    async with housing(script=die) as house:
        assert (await house.ask(request()))[0].startswith(b"HTTP/1.1 502 ")
        assert len(asked) == 1
        assert await house.requests("broken") == 1


@pytest.mark.parametrize("cut", [len(EVENT) - n for n in (0, 1, 2, 3, 9)] + [0, 1, 2, 3, 4])
async def test_a_stream_that_breaks_off_anywhere_ends_in_an_error_event(cut: int):
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + EVENT + EVENT[:cut])

    async with housing(script=break_off) as house:
        _, body = await house.ask(request())
        assert body.startswith(EVENT)
        assert body.endswith(LAST)
        assert b'"code":"replica_broken"' in body
        assert await house.requests("broken") == 1


async def test_a_replica_that_sends_what_is_no_http_is_broken():
    async with housing(b"SSH-2.0-OpenSSH_9.2\r\n") as house:
        assert (await house.ask(request()))[0].startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("moment", ["before the head", "before the first token", "in the middle"])
async def test_a_client_that_leaves_ends_the_work_of_the_replica_at_once(moment: str):
    begun = asyncio.Event()

    async def answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if moment != "before the head":
            writer.write(HEAD + (EVENT if moment == "in the middle" else b""))
        begun.set()
        await reader.readexactly(1)

    async with housing(script=answer_slowly) as house:
        reader, writer = await house.connect()
        writer.write(request())
        await asyncio.wait_for(begun.wait(), 5)
        if moment == "in the middle":
            await reader.readuntil(EVENT)
        writer.transport.abort()
        await asyncio.wait_for(house.lost.wait(), 1)
        assert await house.requests("cancelled") == 1
        assert await house.metric('erhpc_in_flight{replica="a-0"}') == 0


async def test_a_client_that_reads_slowly_slows_its_replica_down():
    sent_bytes = 0
    flood = chunk(b"data: " + b"x" * 65_000 + b"\n\n")
    num_floods = 400  # 26 MB: more than the buffers of all sockets on the way

    async def stream_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        await read_request(reader)
        writer.write(HEAD)
        for _ in range(num_floods):
            writer.write(flood)
            await writer.drain()
            sent_bytes += len(flood)
        writer.write(flood[:-2])
        await writer.drain()
        writer.write(flood[-2:] + LAST)
        await writer.drain()
        await read_request(reader)
        writer.write(WHOLE)

    async with housing(script=stream_much) as house:
        reader, writer = await house.connect()
        writer.write(request())
        await reader.readuntil(b"\r\n\r\n")
        last_bytes = -1
        while sent_bytes != last_bytes:
            last_bytes = sent_bytes
            await asyncio.sleep(0.3)
        assert sent_bytes < num_floods * len(flood)
        body = b""
        while not body.endswith(LAST):
            body = body[-8:] + await asyncio.wait_for(reader.read(1 << 20), 20)
        assert sent_bytes == num_floods * len(flood)
        # The replica's connection, which was paused in between, serves the next request.
        writer.write(request())
        assert b"[DONE]" in (await asyncio.wait_for(read_response(reader), 5))[1]
        assert house.num_connections == 1
        writer.close()


async def test_tokens_that_a_client_reads_late_come_whole_and_in_order():
    tokens = [chunk(b"data: %07d" % number + b"x" * 1000 + b"\n\n") for number in range(6_000)]
    are_sent = asyncio.Event()

    async def stream_tokens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        for token in tokens:
            writer.write(token)
            await writer.drain()
            await asyncio.sleep(0)  # the gateway reads each by itself while it keeps up
        writer.write(LAST)
        are_sent.set()
        await writer.drain()

    async with housing(script=stream_tokens) as house:
        reader, writer = await house.connect()
        writer.transport.pause_reading()
        writer.write(request())
        await asyncio.wait_for(are_sent.wait(), 30)  # 6 MB: more than the buffers of the client's connection
        writer.transport.resume_reading()
        body = bytearray()
        while not body.endswith(LAST):
            body += await asyncio.wait_for(reader.read(1 << 20), 20)
        assert body.partition(b"\r\n\r\n")[2] == b"".join(tokens) + LAST
        writer.close()


async def test_an_answer_that_its_client_does_not_read_leaves_the_connection_fit_for_others():
    body = b"[" + b" " * 900_000 + b"]"
    whole = JSON_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    async with housing(whole) as house:
        _, writer = await house.connect()
        for number in range(12):  # 10 MB: more than the buffers of all sockets on the way
            writer.write(request())
            try:
                async with asyncio.timeout(1):
                    while True:
                        if await house.requests("ok") == 2 * number + 1:
                            break
                        await asyncio.sleep(0.01)
            except TimeoutError:
                break  # its buffers are full: its own requests must wait
            assert (await asyncio.wait_for(house.ask(request()), 5))[1] == body
        else:
            pytest.fail("the buffers never were full")
        assert (await asyncio.wait_for(house.ask(request()), 5))[1] == body
        writer.transport.abort()


async def test_a_silent_replica_is_given_up():
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.readexactly(1)

    async with housing(script=say_nothing, idle_timeout_s=0.5) as house:
        assert (await house.ask(request()))[0].startswith(b"HTTP/1.1 504 ")
        await asyncio.wait_for(house.lost.wait(), 1)
        assert await house.requests("silent") == 1


async def test_many_clients_that_leave_leave_nothing_behind():
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.readexactly(1)

    async with housing(script=hang) as house:
        for _ in range(20):
            writers = [(await house.connect())[1] for _ in range(50)]
            for number, writer in enumerate(writers):
                writer.write(request()[: None if number % 2 else 100])
            await asyncio.sleep(0)
            for writer in writers:
                writer.transport.abort()

        async with asyncio.timeout(10):
            while True:
                if await house.metric("erhpc_admitted") == 0:
                    break
                await asyncio.sleep(0.01)
        assert await house.metric('erhpc_in_flight{replica="a-0"}') == 0
        assert await house.metric("erhpc_queued") == 0
        _, metrics = await house.ask(request(b"", "/metrics", "GET"))
        assert b'outcome="ok"' not in metrics
        assert b'outcome="broken"' not in metrics


async def test_nothing_is_written_past_what_still_waits_for_the_client():
    near, far = socket.socketpair()
    with far:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=near)
        try:
            assert find_sink(transport) == near.fileno()
            while not transport.get_write_buffer_size():
                transport.write(b"x" * 100_000)
            assert find_sink(transport) is None
            far.setblocking(False)
            while transport.get_write_buffer_size():
                with contextlib.suppress(BlockingIOError):
                    far.recv(1 << 20)
                await asyncio.sleep(0)
            assert find_sink(transport) == near.fileno()
        finally:
            transport.abort()
