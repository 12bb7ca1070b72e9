"""The null expert over real sockets: asked by aiohttp, and by raw bytes where aiohttp would not send such."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import pytest

from erhpc.load.calibration import parse_stamps
from erhpc.load.null_expert import NullPace, serve_null_expert

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
FAST = NullPace(ttft_s=0.0, gap_s=0.0)


@asynccontextmanager
async def null_expert(pace=FAST):
    server = await serve_null_expert(pace)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        yield reader, writer


def request_bytes(max_tokens, path=CHAT, head=""):
    body = json.dumps({"model": "null", "max_tokens": max_tokens, "stream": True, "messages": []})
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def ask(port, max_tokens, path=CHAT, **body):
    """Data of the events of one answer, and its raw body."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}{path}", json={"max_tokens": max_tokens, **body}) as response,
    ):
        assert (response.status, response.content_type) == (200, "text/event-stream")
        raw = await response.read()
    return [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event], raw


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_an_answer_has_as_many_tokens_as_asked_then_usage_then_done(path):
    async with null_expert() as port:
        events, raw = await ask(port, 7, path)

    frames = [json.loads(event) for event in events[:-1]]
    assert events[-1] == b"[DONE]"
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"]["completion_tokens"] == 7
    assert frames[-2]["choices"][0]["finish_reason"] == "length"
    assert len(parse_stamps(raw)) == 7


async def test_the_tokens_are_the_times_at_which_they_were_sent():
    before_ns = time.monotonic_ns()
    async with null_expert(NullPace(ttft_s=0.05, gap_s=0.02)) as port:
        _, raw = await ask(port, 5)
    after_ns = time.monotonic_ns()

    stamps_ns = parse_stamps(raw).tolist()
    assert stamps_ns == sorted(stamps_ns)
    assert before_ns + 49_000_000 < stamps_ns[0]
    assert stamps_ns[0] + 4 * 19_000_000 < stamps_ns[-1] < after_ns


async def test_max_tokens_is_not_taken_from_a_prompt():
    async with null_expert() as port:
        events, _ = await ask(port, 3, messages=[{"role": "user", "content": 'say "max_tokens": 9'}])

    assert json.loads(events[-2])["usage"]["completion_tokens"] == 3


async def test_a_connection_serves_one_request_after_the_other():
    async with null_expert() as port, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        lengths = []
        for max_tokens in (1, 4, 2):
            async with session.post(f"http://127.0.0.1:{port}{CHAT}", json={"max_tokens": max_tokens}) as response:
                lengths.append(len(parse_stamps(await response.read())))

    assert lengths == [1, 4, 2]


async def test_requests_sent_ahead_are_answered_in_order():
    async with null_expert() as port, connected(port) as (reader, writer):
        writer.write(request_bytes(2) + b"GET /health HTTP/1.1\r\n\r\n" + request_bytes(3))
        first = await reader.readuntil(b"0\r\n\r\n")
        health = await reader.readuntil(b"{}")
        second = await reader.readuntil(b"0\r\n\r\n")

    assert (len(parse_stamps(first)), len(parse_stamps(second))) == (2, 3)
    assert health.startswith(b"HTTP/1.1 200 OK")


async def test_a_request_may_come_in_pieces_of_one_byte():
    async with null_expert() as port, connected(port) as (reader, writer):
        for byte in request_bytes(2):
            writer.write(bytes([byte]))
            await writer.drain()
        answer = await reader.readuntil(b"0\r\n\r\n")

    assert len(parse_stamps(answer)) == 2


async def test_a_request_that_wants_its_connection_closed_gets_that():
    async with null_expert() as port, connected(port) as (reader, writer):
        writer.write(request_bytes(2, head="Connection: close\r\n"))
        answer = await reader.read()

    assert answer.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


async def test_it_looks_like_a_server():
    async with null_expert() as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        models = await (await session.get("/v1/models")).json()
        health = (await session.get("/health")).status
        missing = (await session.get("/v2")).status

    assert [model["id"] for model in models["data"]] == ["null"]
    assert (health, missing) == (200, 404)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 70_000, b"431"),
    ],
)
async def test_what_it_does_not_understand_is_refused_and_the_connection_closed(sent, status):
    async with null_expert() as port, connected(port) as (reader, writer):
        writer.write(sent)
        answer = await reader.read()

    assert answer.split(b" ")[1] == status


async def test_a_client_that_leaves_costs_the_others_nothing():
    async with null_expert(NullPace(ttft_s=0.0, gap_s=0.001)) as port:
        async with connected(port) as (reader, writer):
            writer.write(request_bytes(100_000))
            await reader.readuntil(b'"content":" ')
            writer.transport.abort()
        _, raw = await ask(port, 30)

    assert len(parse_stamps(raw)) == 30


async def test_a_client_that_reads_late_gets_every_token():
    with start_process("--ttft-ms", "0", "--gap-ms", "0") as process:
        port = json.loads(process.stdout.readline())["port"]
        async with connected(port) as (reader, writer):
            num_tokens = 100_000  # some 16 MB: more than the buffers of two sockets
            writer.write(request_bytes(num_tokens))
            await ask(port, 20_000)  # nobody reads the first answer, and the second goes through
            answer = await asyncio.wait_for(read_to_end_of_answer(reader), 60)
        process.communicate(timeout=30)

    stamps_ns = parse_stamps(answer)
    assert len(stamps_ns) == num_tokens
    assert (stamps_ns[1:] >= stamps_ns[:-1]).all()


async def read_to_end_of_answer(reader):
    pieces = []
    while not pieces or not b"".join(pieces[-2:]).endswith(b"\r\n0\r\n\r\n"):
        pieces.append(await reader.read(1 << 20))
    return b"".join(pieces)


def start_process(*arguments):
    command = [sys.executable, "-m", "jobs.null_expert", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_the_process_serves_on_uvloop_until_its_stdin_closes():
    with start_process("--ttft-ms", "1", "--gap-ms", "1") as process:
        port = json.loads(process.stdout.readline())["port"]
        _, raw = await ask(port, 40)
        _, errors = process.communicate(timeout=30)  # closes stdin

    assert len(parse_stamps(raw)) == 40
    assert (process.returncode, errors) == (0, b"")


def test_the_process_ends_by_itself_at_the_end_of_its_life():
    with start_process("--max-life-s", "0.2") as process:
        assert json.loads(process.stdout.readline())["port"] > 0
        assert process.wait(timeout=30) == 0


async def test_a_port_that_is_taken_is_an_error_in_one_line():
    async with null_expert() as port:
        with start_process("--port", str(port)) as process:
            _, errors = await asyncio.to_thread(process.communicate, timeout=30)

    assert process.returncode == 1
    assert errors.decode().startswith(f"null_expert: error: --port {port} cannot be listened on")
    assert errors.count(b"\n") == 1
