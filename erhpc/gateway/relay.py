"""Passes a request on to a replica and its answer back, chunk by chunk, on aiohttp's client.

The only place that talks to replicas for clients. It chooses no replica and counts no request; a faster relay
implements `Relay` beside this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol

import aiohttp
from aiohttp import web

from erhpc.config import GatewayConfig
from erhpc.gateway.desk import Flight, Forward
from erhpc.gateway.errors import Outcome, ReplicaError, broken, silent, unreachable
from erhpc.gateway.histogram import Histogram
from erhpc.plan.protocol import KEEP_ALIVE_S

EVENT_STREAM = "text/event-stream"
MAX_WHOLE_BYTES = 1024 * 1024
"""Up to this long, an answer that is no stream is passed on when it is complete: so a failure is answered 502."""
PASSED_HEADERS = ("Content-Type", "Content-Encoding", "Cache-Control", "Retry-After", "x-erhpc-engine")
"""Headers of a replica's answer that reach the client."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """An answer that was passed on, and how it ended."""

    response: web.StreamResponse
    outcome: Outcome
    tail: bytes = b""
    """The end of the answer."""


JudgeHead = Callable[[aiohttp.ClientResponse], bool]
"""Told of the head of an answer, before anything of it is passed on; False: the request goes elsewhere."""


class Relay(Protocol):
    """Passes requests on; cancelling `relay` aborts the replica's request at once."""

    async def relay(self, request: web.Request, forward: Forward, flight: Flight, judge: JudgeHead) -> Relayed | None:
        """Ask the replica and answer `request`; None if `judge` has refused the answer.

        Raises ReplicaError if nothing has reached the client yet.
        """

    async def close(self) -> None:
        """Give up all connections."""


class PlainRelay:
    """The relay on aiohttp's client: the reference. `key` is sent to replicas as bearer; needs a running event loop.

    `first_write` receives how long the first byte of each stream took to be written.
    """

    def __init__(self, limits: GatewayConfig, key: str | None, first_write: Histogram) -> None:
        self._first_write = first_write
        self._idle_timeout_s = limits.idle_timeout_s
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=limits.connect_timeout_s, sock_read=limits.idle_timeout_s
            ),
            # Otherwise aiohttp would ask for compressed answers, which delay tokens.
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """See `Relay.close`."""
        await self._session.close()

    async def relay(self, request: web.Request, forward: Forward, flight: Flight, judge: JudgeHead) -> Relayed | None:
        """See `Relay.relay`."""
        upstream = await self._ask(forward)
        try:
            if not judge(upstream):
                return None
            if upstream.content_type == EVENT_STREAM:
                return await self._stream(request, forward, flight, upstream)
            return await self._pass_whole(request, forward, flight, upstream)
        finally:
            upstream.close()  # nothing to close after the last byte; aborts in every other case

    async def _ask(self, forward: Forward) -> aiohttp.ClientResponse:
        headers = {**self._headers, "x-request-id": forward.request_id, **dict(forward.passed_headers)}
        try:
            return await self._session.post(forward.url, data=forward.body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise_unreachable(forward, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._break_off(forward, error) from error

    async def _pass_whole(
        self, request: web.Request, forward: Forward, flight: Flight, upstream: aiohttp.ClientResponse
    ) -> Relayed:
        body = bytearray()
        try:
            while len(body) <= MAX_WHOLE_BYTES:
                chunk = await upstream.content.readany()
                if not chunk:
                    response = web.Response(
                        status=upstream.status, body=bytes(body), headers=join_headers(forward, upstream)
                    )
                    return Relayed(response, judge_status(upstream.status), bytes(body))
                flight.has_begun = True
                body += chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._break_off(forward, error) from error
        return await self._stream(request, forward, flight, upstream, bytes(body))

    async def _stream(
        self,
        request: web.Request,
        forward: Forward,
        flight: Flight,
        upstream: aiohttp.ClientResponse,
        first: bytes = b"",
    ) -> Relayed:
        """Pass an answer on as it comes, `first` what has come of it."""
        response = web.StreamResponse(status=upstream.status, headers=join_headers(forward, upstream))
        tail = b""
        try:
            await response.prepare(request)
            await response.write(first)
            outcome, tail = await self._pass_chunks(forward, flight, upstream.content, response)
            if outcome is Outcome.OK or response.content_type == EVENT_STREAM:
                await response.write_eof()
            elif request.transport is not None:  # nobody may take it for complete
                request.transport.abort()
        except ConnectionResetError:  # raised by writes alone: the client is gone
            outcome = Outcome.CANCELLED
        return Relayed(response, outcome if outcome is not Outcome.OK else judge_status(upstream.status), tail)

    async def _pass_chunks(
        self, forward: Forward, flight: Flight, content: aiohttp.StreamReader, response: web.StreamResponse
    ) -> tuple[Outcome, bytes]:
        """How the answer ended, and the pieces that came last."""
        end, before, has_begun = b"\n\n", b"", False
        while True:
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = self._break_off(forward, error)
                if response.content_type != EVENT_STREAM:
                    return failure.outcome, b""
                # An event that was cut in the middle is closed first, or the error would become part of it.
                await response.write(failure.event if end.endswith(b"\n\n") else b"\n\n" + failure.event)
                return failure.outcome, b""
            if not chunk:
                return Outcome.OK, before + end
            flight.has_begun = True
            came_ns = time.perf_counter_ns()
            await response.write(chunk)
            if not has_begun:
                has_begun = True
                self._first_write.add(time.perf_counter_ns() - came_ns)
            forward.replica.note_heard(time.monotonic_ns())
            before, end = end, chunk

    def _break_off(self, forward: Forward, error: Exception) -> ReplicaError:
        name = forward.replica.name
        return silent(name, self._idle_timeout_s) if isinstance(error, TimeoutError) else broken(name)


def raise_unreachable(forward: Forward, error: aiohttp.ClientError) -> NoReturn:
    """Raise what is answered when there is no connection to a replica."""
    number = error.os_error.errno if isinstance(error, aiohttp.ClientConnectorError) else None
    raise unreachable(forward.replica.name, error, number) from error


def join_headers(forward: Forward, upstream: aiohttp.ClientResponse) -> dict[str, str]:
    """Headers of the answer: the replica's that are passed on, and the gateway's own."""
    passed = {name: value for name in PASSED_HEADERS if (value := upstream.headers.get(name)) is not None}
    return {**passed, **forward.reply_headers}


def judge_status(status: int) -> Outcome:
    """The outcome of an answer that came to its end."""
    return Outcome.OK if status < 400 else Outcome.REJECTED
