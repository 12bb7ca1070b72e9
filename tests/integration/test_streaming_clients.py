"""What every streaming client does: native with the kernel's stamps, native with the loop's, and the aiohttp reference.

Where the reference may differ, its test says why: aiohttp cannot ask Unix sockets here, and it loses an answer that
comes while it still writes the request.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

from erhpc.client.exchange import Exchange, Patience, StreamingClient
from erhpc.client.native import NativeClient
from erhpc.client.streaming import AiohttpClient
from erhpc.errors import ConfigError
from tests.fakes.full_backlog import full_backlog
from tests.fakes.raw_server import RawServer, Talk, Visit, canned
from tests.fakes.streaming_expert import StreamingExpert
from tests.streams import CHUNKED_HEAD, DONE, EVENT_STREAM, LAST_CHUNK, answer, chat, chunk, request_of, usage

KINDS = ["kernel", "kernel on uvloop", "loop", "loop on uvloop", "aiohttp"]
IMPATIENT = {"total_s": 20.0, "connect_s": 10.0}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def on_its_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the event loop that `kind` names: production runs on uvloop, whose sockets are its own."""

    @functools.wraps(test)
    def run(*, kind: str, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if "uvloop" in kind else None) as runner:
            runner.run(test(kind=kind, **fixtures))

    return run


@asynccontextmanager
async def client_of(kind: str, url: str, *, key: str | None = None, **limits: float) -> AsyncIterator[StreamingClient]:
    patience = Patience(**(IMPATIENT | limits))
    if kind == "aiohttp":
        async with AiohttpClient(url, patience=patience, key=key) as client:
            yield client
    else:
        stamps = kind.split()[0] if url.startswith("http:") else "auto"
        async with NativeClient(url, patience=patience, key=key, stamps=stamps) as native:
            yield native


async def ask(client: StreamingClient, body: bytes = b"{}") -> Exchange:
    exchange = Exchange(sent_ns=time.monotonic_ns())
    await client.send(request_of(body), exchange)
    return exchange


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop run until `holds` does, 10 s at most: then the test's own assertion tells what is missing."""
    deadline_s = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0.01)


async def ask_once(kind: str, talk: Talk, **limits: float) -> Exchange:
    """The answer of a server that does what `talk` says."""
    async with RawServer(talk).serving() as server, client_of(kind, server.url, **limits) as client:
        return await ask(client)


def stream_head(*fields: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


ZIPPED_HEAD = stream_head(b"Transfer-Encoding: chunked", b"Content-Encoding: gzip")

# Answers


@on_its_loop
async def test_an_answer_tells_its_tokens_its_times_and_who_gave_it(kind: str):
    before_ns = time.monotonic_ns()
    async with (
        StreamingExpert(ttft_s=0.02, gap_s=0.005).serving() as expert,
        client_of(kind, f"{expert.url}/v1/chat/completions", key="k-1") as client,
    ):
        exchange = await ask(client, b'{"model": "m", "max_tokens": 8}')
        assert client.num_pieces >= 8
        client.take_delays_ns()
    assert (exchange.error_kind, exchange.http_status, exchange.expert, exchange.replica) == (
        None,
        200,
        "math",
        "math-0",
    )
    assert (exchange.num_frames, exchange.tokens_in, exchange.tokens_out) == (8, 5, 8)
    assert len(exchange.arrivals_ns) + exchange.num_coalesced <= 8
    times_ns = [before_ns, exchange.sent_ns, exchange.first_piece_ns, *exchange.arrivals_ns, time.monotonic_ns()]
    assert times_ns == sorted(times_ns)
    assert exchange.arrivals_ns[0] - exchange.sent_ns > 15_000_000  # timers of uvloop count whole milliseconds
    assert exchange.stamped_by == ("kernel" if "kernel" in kind else "loop")
    assert expert.keys == {"Bearer k-1"}


@on_its_loop
async def test_a_connection_is_kept_and_used_again(kind: str):
    async with RawServer(canned(*answer("a", "b"))).serving() as server, client_of(kind, server.url) as client:
        exchanges = [await ask(client) for _ in range(5)]
    assert [exchange.new_connection for exchange in exchanges] == [True, False, False, False, False]
    assert server.num_connections == 1
    assert len(server.bodies) == 5


@on_its_loop
async def test_a_server_may_close_after_the_last_byte(kind: str):
    talk = canned(*answer("a"), closes=True)
    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchanges = [await ask(client) for _ in range(4)]
    assert [exchange.error_kind for exchange in exchanges] == [None] * 4
    assert [exchange.num_frames for exchange in exchanges] == [1] * 4
    assert 4 <= server.num_connections <= 7


@pytest.mark.parametrize(
    "pieces",
    [
        [stream_head(b"Connection: close"), chat("a"), DONE],
        [stream_head(b"Content-Length: %d" % len(chat("a") + DONE)), chat("a"), DONE],
        [b"HTTP/1.0 200 OK\r\n" + EVENT_STREAM + b"\r\n", chat("a"), chat(None, finish_reason="stop")],
        [CHUNKED_HEAD, chunk(b"\xef\xbb\xbf: hi\r\n\r\n" + chat("a").replace(b"\n", b"\r\n")), chunk(DONE), LAST_CHUNK],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED_HEAD, chunk(chat("a")), chunk(DONE) + b"0\r\nX-Took: 3\r\n\r\n"],
        [bytes([byte]) for byte in b"".join(answer("a", "\u00e9"))],
        [ZIPPED_HEAD, chunk(gzip.compress(chat("a") + DONE)), LAST_CHUNK],
        [CHUNKED_HEAD, chunk(chat("x" * 1_000_000)), chunk(DONE), LAST_CHUNK],
    ],
    ids=["close", "length", "http/1.0", "crlf", "interim", "bytes", "gzip", "1 MB frame"],
)  # fmt: skip
@on_its_loop
async def test_answers_of_every_form_are_read(kind: str, pieces: list[bytes]):
    exchange = await ask_once(kind, canned(*pieces, closes=True))
    assert (exchange.error_kind, exchange.error_text) == (None, None)
    assert exchange.num_frames in (1, 2)
    assert exchange.arrivals_ns


@on_its_loop
async def test_an_answer_without_usage_has_no_count_of_tokens(kind: str):
    exchange = await ask_once(kind, canned(CHUNKED_HEAD, chunk(chat("a")), chunk(DONE), LAST_CHUNK))
    assert (exchange.error_kind, exchange.num_frames, exchange.tokens_out) == (None, 1, None)


@on_its_loop
async def test_200_requests_at_once_are_all_answered(kind: str):
    async with (
        StreamingExpert(ttft_s=0.05).serving() as expert,
        client_of(kind, f"{expert.url}/v1/chat/completions") as client,
    ):
        body = b'{"model": "m", "max_tokens": 5}'
        exchanges = await asyncio.gather(*(ask(client, body) for _ in range(200)))
        again = await asyncio.gather(*(ask(client, body) for _ in range(200)))
    assert {(exchange.error_kind, exchange.num_frames) for exchange in exchanges + again} == {(None, 5)}
    assert len(expert.connections) == 200
    assert not any(exchange.new_connection for exchange in again)


@on_its_loop
async def test_a_large_request_reaches_a_server_that_reads_slowly(kind: str):
    body = os.urandom(5_000_000)
    received = bytearray()

    async def talk(visit: Visit) -> None:
        await visit.head()
        while len(received) < len(body):
            received.extend(await visit.reader.read(20_000))
            await asyncio.sleep(0)
        await visit.send(*answer("a"))

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchange = await ask(client, body)
    assert (exchange.error_kind, exchange.num_frames) == (None, 1)
    assert received == body


# Failures of the connection


@on_its_loop
async def test_a_port_where_nobody_listens_is_a_failure_to_connect(kind: str):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    async with client_of(kind, f"http://127.0.0.1:{port}/") as client:
        exchange = await ask(client)
    assert (exchange.error_kind, exchange.http_status) == ("connect", None)
    assert str(port) in exchange.error_text


@on_its_loop
async def test_a_name_that_leads_nowhere_is_a_failure_to_connect(kind: str):
    async with client_of(kind, "http://no-such-host.invalid/") as client:
        exchanges = await asyncio.gather(*(ask(client) for _ in range(20)))
    assert {exchange.error_kind for exchange in exchanges} == {"connect"}


@on_its_loop
async def test_a_connection_that_is_not_made_in_time_is_a_failure_of_its_own(kind: str):
    with full_backlog() as port:
        async with client_of(kind, f"http://127.0.0.1:{port}/", connect_s=0.3) as client:
            started_s = time.monotonic()
            exchange = await ask(client)
    assert exchange.error_kind == "timeout_connect"
    assert 0.25 < time.monotonic() - started_s < 3


@on_its_loop
async def test_a_server_that_closes_without_a_word_was_not_reached(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchange = await ask(client)
    assert (exchange.error_kind, server.num_connections) == ("connect", 1)


@on_its_loop
async def test_a_kept_connection_that_the_server_had_closed_is_replaced_and_is_no_failure(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*answer("a"))
        if visit.number == 1:
            await visit.request()  # and closes without a word
        else:
            await canned(*answer("a"))(visit)

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchanges = [await ask(client) for _ in range(3)]
    assert [exchange.error_kind for exchange in exchanges] == [None] * 3
    assert [exchange.new_connection for exchange in exchanges] == [True, True, False]
    assert (server.num_connections, len(server.bodies)) == (2, 4)


@on_its_loop
async def test_a_server_that_dies_over_a_request_is_not_asked_again(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*answer("a"))
        await visit.request()
        await asyncio.sleep(1.1)

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchanges = [await ask(client) for _ in range(2)]
    assert [exchange.error_kind for exchange in exchanges] == [None, "connect"]
    assert len(server.bodies) == 2


@on_its_loop
async def test_bytes_after_a_response_are_not_taken_for_the_next_one(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        first = answer("a")
        await visit.send(*first[:-1], first[-1] + b"".join(answer("smuggled", "in")))
        await visit.until_left()

    if kind == "aiohttp":
        pytest.skip("aiohttp takes them for the next one")
    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchanges = [await ask(client) for _ in range(3)]
    assert [(exchange.num_frames, exchange.error_kind) for exchange in exchanges] == [(1, None)] * 3
    assert server.num_connections == 3


@on_its_loop
async def test_a_server_that_talks_unasked_loses_its_connection(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*answer("a"))
        if visit.number == 1:
            await visit.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            await visit.until_left()

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        await ask(client)
        assert await asyncio.wait_for(server.left.get(), 5) == 1
        assert (await ask(client)).error_kind is None


# Failures of the answer

GOOD = [CHUNKED_HEAD, chunk(chat("")), chunk(chat("a"))]


@pytest.mark.parametrize(
    ("pieces", "error_kind", "text"),
    [
        ([*GOOD], "truncated", ""),
        ([*GOOD, b"ff\r\ndata: {"], "truncated", ""),
        ([*GOOD, LAST_CHUNK], "truncated", "without"),
        ([*GOOD, chunk(b'data: {"error": {"message": "engine died"}}\n\n'), LAST_CHUNK], "stream_error", "engine died"),
        ([*GOOD, chunk(b"data: <html>\n\n"), LAST_CHUNK], "malformed", "<html>"),
        ([*GOOD, b"xyz\r\n"], "malformed", ""),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: text/json\r\nContent-Length: 2\r\n\r\n{}"], "malformed", "text/json"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], "malformed", ""),
        ([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"], "status", "HTTP 503: busy"),
        ([b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\nbusy"], "status", "HTTP 503: busy"),
        ([b"HTTP/1.1 204 None\r\n\r\n"], "status", "HTTP 204"),
        ([stream_head(b"Content-Length: 60"), chat("a")[:60]], "truncated", ""),
        ([stream_head(b"Content-Length: 6000"), chat("a")], "truncated", ""),
        ([ZIPPED_HEAD, chunk(b"no gzip"), LAST_CHUNK], "malformed", ""),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)  # fmt: skip
@on_its_loop
async def test_a_failed_answer_has_a_kind_and_a_text(kind: str, pieces: list[bytes], error_kind: str, text: str):
    if kind == "aiohttp" and error_kind == "malformed" and pieces[-1] == b"xyz\r\n":
        pytest.skip("aiohttp waits for more when a chunk is broken, until the time is out")
    exchange = await ask_once(kind, canned(*pieces, closes=True))
    assert exchange.error_kind == error_kind
    assert text in exchange.error_text


@on_its_loop
async def test_an_answer_longer_than_its_content_length_is_cut_there(kind: str):
    length = len(chat("a") + chat("b"))
    exchange = await ask_once(kind, canned(stream_head(b"Content-Length: %d" % length), chat("a"), chat("b"), DONE))
    # aiohttp may find the excess before it hands over the last piece
    assert exchange.error_kind == "truncated" or (kind, exchange.error_kind) == ("aiohttp", "malformed")
    assert exchange.num_frames <= 2


@on_its_loop
async def test_an_answer_that_has_ended_may_break_its_content_length(kind: str):
    events = [chat("a"), usage(1, 1), DONE]
    head = stream_head(b"Content-Length: %d" % (len(b"".join(events)) + 50))
    exchange = await ask_once(kind, canned(head, *events))
    assert (exchange.error_kind, exchange.tokens_out) == (None, 1)


@on_its_loop
async def test_done_without_the_last_chunk_is_a_good_answer_after_a_second(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*answer("a")[:-1])
        await visit.until_left()

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        started_s = time.monotonic()
        exchange = await ask(client)
        took_s = time.monotonic() - started_s
        assert await asyncio.wait_for(server.left.get(), 5) == 1
    assert (exchange.error_kind, exchange.num_frames, exchange.tokens_out) == (None, 1, 1)
    assert 0.9 < took_s < 4


def stalled(*pieces: bytes) -> Talk:
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*pieces)
        await visit.until_left()

    return talk


@pytest.mark.parametrize(
    ("pieces", "limits", "error_kind"),
    [
        ([], {"first_token_s": 0.3, "idle_s": 0.1}, "timeout_first_token"),
        ([CHUNKED_HEAD], {"first_token_s": 0.3, "idle_s": 0.1}, "timeout_first_token"),
        ([CHUNKED_HEAD, chunk(chat(""))], {"first_token_s": 0.3, "idle_s": 0.1}, "timeout_first_token"),
        (GOOD, {"first_token_s": 0.1, "idle_s": 0.3}, "timeout_idle"),
        (GOOD, {"total_s": 0.3, "idle_s": 5}, "timeout_total"),
        ([], {"total_s": 0.3}, "timeout_total"),
        ([b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\nno"], {"total_s": 0.3}, "status"),
    ],
)
@on_its_loop
async def test_a_stall_is_a_failure_of_its_kind_and_ends_the_connection(kind, pieces, limits, error_kind):
    async with RawServer(stalled(*pieces)).serving() as server, client_of(kind, server.url, **limits) as client:
        started_s = time.monotonic()
        exchange = await ask(client)
        took_s = time.monotonic() - started_s
        assert await asyncio.wait_for(server.left.get(), 5) == 1
    assert exchange.error_kind == error_kind
    assert exchange.num_frames == (pieces is GOOD)
    assert 0.25 < took_s < 3


@on_its_loop
async def test_comments_keep_an_answer_from_being_idle(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*GOOD)
        for _ in range(12):
            await asyncio.sleep(0.05)
            await visit.send(chunk(b": still here\n\n"))
        await visit.send(chunk(DONE), LAST_CHUNK)

    exchange = await ask_once(kind, talk, idle_s=0.4)
    assert (exchange.error_kind, exchange.num_frames) == (None, 1)


@on_its_loop
async def test_an_endless_answer_ends_when_its_time_is_out(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(CHUNKED_HEAD)
        while True:
            await visit.send(chunk(chat("a")))

    exchange = await ask_once(kind, talk, total_s=0.5, idle_s=0.3)
    assert exchange.error_kind == "timeout_total"
    assert exchange.num_frames > 100


# Redirects


def redirect(status: int, location: str) -> bytes:
    return f"HTTP/1.1 {status} There\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@on_its_loop
async def test_a_redirect_is_followed_with_the_same_request(kind: str, status: int):
    async def talk(visit: Visit) -> None:
        while True:
            await visit.request()
            is_first = visit.server.heads[-1].startswith(b"POST /v1 ")
            await visit.send(*([redirect(status, "/v2")] if is_first else answer("a")))

    async with RawServer(talk).serving() as server, client_of(kind, server.url, key="k-1") as client:
        exchange = await ask(client, b"hello")
    assert (exchange.error_kind, exchange.num_frames, exchange.http_status) == (None, 1, 200)
    assert [head.split()[1] for head in server.heads] == [b"/v1", b"/v2"]
    assert server.bodies == [b"hello"] * 2
    assert all(b"authorization: bearer k-1" in head.lower() for head in server.heads)
    assert server.num_connections == 1


@on_its_loop
async def test_the_time_of_a_redirect_counts(kind: str):
    async def talk(visit: Visit) -> None:
        await visit.request()
        await asyncio.sleep(0.1)
        await visit.send(redirect(307, "/v2"))
        await canned(*answer("a"))(visit)

    exchange = await ask_once(kind, talk)
    assert exchange.arrivals_ns[0] - exchange.sent_ns > 90_000_000


@on_its_loop
async def test_the_key_is_not_sent_to_another_server(kind: str):
    async with RawServer(canned(*answer("a"))).serving() as other:
        there = canned(redirect(307, f"{other.url}/else"))
        async with RawServer(there).serving() as server, client_of(kind, server.url, key="k-1") as client:
            exchange = await ask(client)
    assert (exchange.error_kind, exchange.num_frames) == (None, 1)
    assert b"k-1" in server.heads[0]
    assert b"k-1" not in other.heads[0]
    assert b"uthorization" not in other.heads[0]


@on_its_loop
async def test_a_kept_connection_that_had_closed_is_replaced_also_after_a_slow_redirect(kind: str):
    async def answer_once(visit: Visit) -> None:
        await visit.request()
        await visit.send(*answer("a"))
        await visit.request()  # and closes without a word

    async with RawServer(answer_once).serving() as other:

        async def point_there(visit: Visit) -> None:
            while True:
                await visit.request()
                await asyncio.sleep(1.1 if len(visit.server.bodies) == 2 else 0)  # longer than STALE_S
                await visit.send(redirect(307, other.url))

        async with RawServer(point_there).serving() as server, client_of(kind, server.url) as client:
            exchanges = [await ask(client) for _ in range(2)]
    assert [(exchange.error_kind, exchange.num_frames) for exchange in exchanges] == [(None, 1)] * 2
    assert (len(server.bodies), len(other.bodies), other.num_connections) == (2, 3, 2)
    assert exchanges[1].arrivals_ns[0] - exchanges[1].sent_ns > 1_000_000_000


@pytest.mark.parametrize("session", [b"17", b""])
@on_its_loop
async def test_a_request_names_its_session_to_every_server_it_is_sent_to(kind: str, session: bytes):
    async with RawServer(canned(*answer("a"))).serving() as other:
        there = canned(redirect(307, other.url))
        async with RawServer(there).serving() as server, client_of(kind, server.url) as client:
            await client.send(request_of(session=session), Exchange(sent_ns=0))
    (first,), (second,) = server.heads, other.heads
    for head in (first, second):
        assert (b"\r\nx-session-id: 17\r\n" in head.lower()) == bool(session)
        assert head.lower().count(b"x-session-id") == bool(session)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("/v1", "more than 3 times"),
        ("unix://%2Frun%2Fx/", "nowhere"),
        ("http://[::1", "nowhere"),
        ("ftp://a/", "nowhere"),
    ],
)
@on_its_loop
async def test_a_redirect_that_leads_nowhere_is_a_failure(kind: str, location: str, text: str):
    exchange = await ask_once(kind, canned(redirect(307, location)))
    assert (exchange.error_kind, exchange.http_status) == ("status", 307)
    assert text in exchange.error_text


# Ways to the server


@on_its_loop
async def test_proxies_of_the_environment_are_not_asked(kind: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    exchange = await ask_once(kind, canned(*answer("a")))
    assert exchange.error_kind is None


@on_its_loop
async def test_a_server_may_have_an_address_of_version_6(kind: str):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    async with RawServer(canned(*answer("a"))).serving(host="::1") as server, client_of(kind, server.url) as client:
        exchange = await ask(client)
    assert (exchange.error_kind, exchange.num_frames) == (None, 1)
    assert exchange.stamped_by == ("kernel" if "kernel" in kind else "loop")
    assert f"host: [::1]:{server.port}\r\n".encode() in server.heads[0].lower()


@on_its_loop
async def test_a_name_with_several_addresses_leads_to_the_one_that_answers(kind: str):
    async with (
        RawServer(canned(*answer("a"))).serving() as server,
        client_of(kind, f"http://localhost:{server.port}/") as client,
    ):
        exchanges = await asyncio.gather(*(ask(client) for _ in range(10)))
    assert {exchange.error_kind for exchange in exchanges} == {None}


@on_its_loop
async def test_a_server_may_listen_on_a_unix_socket(kind: str, tmp_path: Path):
    url = f"unix://{str(tmp_path / 'x.sock').replace('/', '%2F')}/v1"
    if kind == "aiohttp":  # its connector is made for one kind of socket
        with pytest.raises(ConfigError, match="native"):
            AiohttpClient(url, patience=Patience(**IMPATIENT))
        return
    with pytest.raises(ConfigError, match=r"load\.stamps=auto"):
        NativeClient(url, patience=Patience(**IMPATIENT), stamps="kernel")
    async with (
        RawServer(canned(*answer("a"))).serving(path=tmp_path / "x.sock") as server,
        client_of(kind, url) as client,
    ):
        exchanges = [await ask(client) for _ in range(3)]
    assert {(exchange.error_kind, exchange.num_frames, exchange.stamped_by) for exchange in exchanges} == {
        (None, 1, "loop")
    }
    assert server.num_connections == 1
    async with client_of(kind, url) as client:
        assert (await ask(client)).error_kind == "connect"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody has signed, and the server's side of it."""
    if shutil.which("openssl") is None:
        pytest.skip("this machine has no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=erhpc -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run([*command.split(), *files], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return folder / "certificate.pem", context


@on_its_loop
async def test_a_server_whose_certificate_is_trusted_is_asked_by_tls(kind, certificate, monkeypatch):
    path, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    async with RawServer(canned(*answer("a"))).serving(tls=context) as server, client_of(kind, server.url) as client:
        exchanges = [await ask(client) for _ in range(3)]
    assert {(exchange.error_kind, exchange.num_frames, exchange.stamped_by) for exchange in exchanges} == {
        (None, 1, "loop")
    }
    assert server.num_connections == 1


@on_its_loop
async def test_a_server_whose_certificate_is_not_trusted_is_a_failure_of_tls(kind, certificate):
    _, context = certificate
    async with RawServer(canned(*answer("a"))).serving(tls=context) as server, client_of(kind, server.url) as client:
        exchange = await ask(client)
    assert (exchange.error_kind, server.bodies) == ("tls", [])


@on_its_loop
async def test_a_server_that_does_not_speak_tls_is_a_failure_of_tls(kind):
    async def talk(visit: Visit) -> None:
        await visit.reader.read(100)
        await visit.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with RawServer(talk).serving() as server, client_of(kind, server.url.replace("http:", "https:")) as client:
        exchange = await ask(client)
    assert exchange.error_kind == "tls"


# Breaking off


@pytest.mark.parametrize("keeps_alive", [True, False])
@on_its_loop
async def test_a_refusal_may_come_before_the_request_was_sent_in_full(kind: str, keeps_alive: bool):
    async def talk(visit: Visit) -> None:
        await visit.head()
        if visit.number > 1:
            await visit.send(*answer("a"))
            return
        await visit.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        if keeps_alive:
            await visit.server.asked.get()
        visit.writer.transport.abort()

    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        exchange = await ask(client, bytes(20_000_000))
        again = await ask(client)
        server.asked.put_nowait(0)
    if keeps_alive or "kernel" in kind:
        assert (exchange.error_kind, exchange.error_text) == ("status", "HTTP 413: big")
    else:  # asyncio drops what has come when writing fails
        assert exchange.error_kind in ("status", "connect", "truncated")
    assert (again.error_kind, again.num_frames) == (None, 1)


@on_its_loop
async def test_cancelling_ends_the_connection_and_keeps_what_came(kind: str):
    goes_on = asyncio.Event()

    async def talk(visit: Visit) -> None:
        await visit.request()
        await visit.send(*GOOD, chunk(b": read now what came\n\n"))
        await goes_on.wait()
        await visit.send(chunk(chat("b")))
        await visit.until_left()

    exchange = Exchange(sent_ns=time.monotonic_ns())
    async with RawServer(talk).serving() as server, client_of(kind, server.url) as client:
        task = asyncio.create_task(client.send(request_of(), exchange))
        await until(lambda: exchange.num_frames == 1)
        num_pieces = client.num_pieces
        goes_on.set()
        await until(lambda: client.num_pieces > num_pieces)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(server.left.get(), 5) == 1
    assert (exchange.error_kind, exchange.num_frames, exchange.http_status) == (None, 2, 200)


@on_its_loop
async def test_requests_under_way_end_when_the_client_is_closed(kind: str):
    async with RawServer(stalled(*GOOD)).serving() as server:
        async with client_of(kind, server.url) as client:
            task = asyncio.create_task(ask(client))
            await server.asked.get()
        exchange = await asyncio.wait_for(task, 5)
    assert exchange.error_kind in ("truncated", "connect")


@on_its_loop
async def test_descriptors_and_tasks_do_not_leak(kind: str):
    def count() -> tuple[int, int]:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), len(asyncio.all_tasks())

    async def break_off(client: StreamingClient, turns: int) -> None:
        task = asyncio.create_task(ask(client))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def fail(visit: Visit) -> None:
        await visit.request()
        await visit.send(*[GOOD, [b"nonsense"], []][visit.number % 3])

    good, bad = RawServer(canned(*answer("a"))), RawServer(fail)
    with full_backlog() as port:
        late_url = f"http://127.0.0.1:{port}/"
        async with good.serving(), bad.serving():
            before: tuple[int, int] | None = None
            for _ in range(5):  # the first time opens what stays open, e.g. for looking up names
                async with (
                    client_of(kind, good.url) as well,
                    client_of(kind, bad.url) as badly,
                    client_of(kind, late_url, connect_s=0.1) as late,
                ):
                    asked = [ask(client) for client in [badly] * 30 + [late] * 10 + [well] * 5]
                    broken_off = [break_off(client, turns) for client in (well, badly, late) for turns in range(30)]
                    await asyncio.gather(*asked, *broken_off)
                    for turns in range(30):  # over kept connections
                        await break_off(well, turns)
                before = before or await settled(count)
                await until(lambda: count() == before)  # noqa: B023 - it is called here
                assert count() == before


async def settled(count: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """What `count` says once it says the same for some turns of the loop."""
    counts = [count()]
    while len(counts) < 50 or len(set(counts[-50:])) > 1:
        await asyncio.sleep(0.001)
        counts.append(count())
    return counts[-1]


# Stamps


class PacedServer(threading.Thread):
    """Answers from a thread of its own, and notes when each first token left."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(name="paced server", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._delay_s = delay_s
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.sent_ns: list[int] = []

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head, role, token, *rest = answer("a")
            while connection.recv(65536):
                connection.sendall(head + role)
                time.sleep(self._delay_s)
                self.sent_ns.append(time.monotonic_ns())
                connection.sendall(token)
                time.sleep(self._delay_s)
                connection.sendall(b"".join(rest))


@on_its_loop
async def test_only_the_kernel_stamps_right_while_the_client_is_stalled(kind: str):
    server = PacedServer(delay_s=0.05)
    server.start()
    late_ms = []
    async with client_of(kind, server.url) as client:
        for number in range(5):
            asyncio.get_running_loop().call_later(0.02, time.sleep, 0.06)  # when the token comes
            exchange = await ask(client)
            late_ms.append((exchange.arrivals_ns[0] - server.sent_ns[number]) / 1e6)
    await asyncio.to_thread(server.join, 5)
    assert not server.is_alive()
    if "kernel" in kind:
        assert exchange.stamped_by == "kernel"
        assert -0.5 < statistics.median(late_ms) < 2
    else:
        assert exchange.stamped_by == "loop"
        assert statistics.median(late_ms) > 5


@on_its_loop
async def test_the_kernel_tells_how_long_pieces_lay_waiting(kind: str):
    async with StreamingExpert().serving() as expert, client_of(kind, f"{expert.url}/v1/chat/completions") as client:
        await ask(client, b'{"model": "m", "max_tokens": 64}')
        delays_ns = client.take_delays_ns()
    assert all(0 <= delay_ns < 10e9 for delay_ns in delays_ns)
    assert bool(delays_ns) is ("kernel" in kind)
