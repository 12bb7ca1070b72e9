"""The streaming client on aiohttp: the reference that `native` is tested against.

It knows neither users nor phases. Times are stamped by the event loop, once per read and before parsing.
"""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from erhpc.client.answer import AnswerReader
from erhpc.client.exchange import STALE_S, TAIL_TIMEOUT_S, Clock, Exchange, Patience
from erhpc.client.redirects import REDIRECTS, follow_redirects
from erhpc.client.target import Target, build_head, parse_target
from erhpc.errors import ConfigError
from erhpc.plan.protocol import KEEP_ALIVE_S, SESSION_HEADER
from erhpc.results.record import ErrorKind
from erhpc.workload.requests import LoadRequest

MAX_REFUSAL_BYTES = 4096
"""How much of an error body is read for the record."""


@dataclass(slots=True)
class _Attempt:
    """A request under way: what has become of it, and which time limit is running."""

    exchange: Exchange
    patience: Patience
    clock: Clock
    limit: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    limit_kind: ErrorKind = "timeout_total"
    limit_text: str = ""
    is_reused: bool = False
    """The connection had been used before."""
    asked_ns: int = 0
    """When the request left, to whichever server is being asked."""
    is_answered: bool = False
    """That server has answered."""
    refusal: bytes | None = None
    """What came of the body of an answer that is none."""

    def allow(self, limit_s: float | None, kind: ErrorKind, text: str) -> None:
        """Let the request fail with `kind` in `limit_s`, or for taking too long in all if that comes first."""
        left_s = self.patience.total_s - (self.clock() - self.exchange.sent_ns) / 1e9
        if limit_s is None or limit_s > left_s:
            limit_s, kind, text = left_s, "timeout_total", f"no complete answer within {self.patience.total_s:g} s"
        self.limit_kind, self.limit_text = kind, text
        self.limit.reschedule(asyncio.get_running_loop().time() + limit_s)

    def note_sent(self) -> None:
        """The head of the request has left."""
        self.asked_ns, self.is_answered = self.clock(), False
        if self.exchange.http_status is None:  # else a server has redirected us: the time that took counts
            self.exchange.sent_ns = self.asked_ns
        first_s = self.patience.first_token_s
        self.allow(first_s, "timeout_first_token", f"no token within {first_s} s")

    def note_piece(self) -> None:
        """A piece of the answer has come."""
        if self.exchange.arrivals_ns:
            idle_s = self.patience.idle_s
            self.allow(idle_s, "timeout_idle", f"silent for {idle_s} s in the middle")

    def is_stale(self) -> bool:
        """Whether the connection had been closed before the request came; asked when it is lost."""
        is_young = self.clock() - self.asked_ns < STALE_S * 1e9
        return self.is_reused and is_young and not self.is_answered

    def note_refusal(self, body: bytes) -> None:
        """The server answered, but did not do as it was asked."""
        self.exchange.fail("status", f"HTTP {self.exchange.http_status}: {body.decode(errors='replace')}")

    def note_failure(self, error: Exception) -> None:
        """The request has failed."""
        if self.refusal is not None:
            self.note_refusal(self.refusal)
        elif isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
            self.exchange.fail(self.limit_kind, self.limit_text)
        else:
            kind = _failure_kind(error, is_answered=self.is_answered)
            self.exchange.fail(kind, f"{type(error).__name__}: {error}")


class AiohttpClient:
    """Implements `StreamingClient`; one session without a limit on connections, open while the context is.

    `key` is sent as a bearer token. Redirects are followed and stale connections replaced as by the native client.

    Raises:
        ConfigError: `url` is no HTTP URL, or `key` cannot be sent.
    """

    def __init__(
        self, url: str, *, patience: Patience, key: str | None = None, clock: Clock = time.monotonic_ns
    ) -> None:
        self.num_pieces = 0
        self.num_clock_jumps = 0  # the monotonic clock stamps
        self._target = parse_target(url)
        self._patience = patience
        self._clock = clock
        self._key = {"Authorization": f"Bearer {key}"} if key else {}
        if self._target.scheme == "unix":
            raise ConfigError(f"load.client=aiohttp cannot ask {url}. Set load.client=native for Unix sockets.")
        build_head(self._target, key)  # a key that cannot be sent is refused now

    def take_delays_ns(self) -> array[int]:
        """See `StreamingClient.take_delays_ns`; aiohttp does not know."""
        return array("q")

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={
                "Content-Type": "application/json",
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",
            },
            # A context of its own, because aiohttp's is made on import: SSL_CERT_FILE may be set later.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=ssl.create_default_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            # All other times are bounded by `_Attempt`: aiohttp's own know no tokens.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._patience.connect_s),
            trust_env=False,
            trace_configs=[_make_trace()],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, request: LoadRequest, exchange: Exchange) -> None:
        """See `StreamingClient.send`."""
        attempt = _Attempt(exchange, self._patience, self._clock)
        try:
            async with attempt.limit:
                await follow_redirects(self._target, exchange, partial(self._ask, request, attempt))
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            attempt.note_failure(error)

    async def _ask(self, request: LoadRequest, attempt: _Attempt, target: Target) -> str | None:
        fields = self._key if target.origin == self._target.origin else {}
        if request.session:
            fields = {**fields, SESSION_HEADER: request.session.decode()}
        body = request.body
        while True:
            try:
                async with self._session.post(
                    target.url, data=io.BytesIO(body), headers=fields, allow_redirects=False, trace_request_ctx=attempt
                ) as response:
                    return await self._receive(response, attempt)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not attempt.is_stale():
                    raise

    async def _receive(self, response: aiohttp.ClientResponse, attempt: _Attempt) -> str | None:
        exchange = attempt.exchange
        attempt.is_answered = True
        exchange.note_head(response.status, response.headers)
        if response.status in REDIRECTS and "location" in response.headers:
            await _read_tail(response.content)
            return response.headers["location"]
        if response.status != 200:
            await self._read_refusal(response.content, attempt)
        elif response.content_type != "text/event-stream":
            exchange.fail("malformed", f"the answer is {response.content_type}, no event stream")
        else:
            await self._stream(response.content, attempt)
        return None

    async def _read_refusal(self, content: aiohttp.StreamReader, attempt: _Attempt) -> None:
        attempt.refusal = b""
        while len(attempt.refusal) < MAX_REFUSAL_BYTES and (data := await content.readany()):
            attempt.refusal += data
        attempt.note_refusal(attempt.refusal)

    async def _stream(self, content: aiohttp.StreamReader, attempt: _Attempt) -> None:
        reader = AnswerReader(attempt.exchange)
        while data := await content.readany():
            self.num_pieces += 1
            if attempt.exchange.raw is not None:
                attempt.exchange.raw.append(data)
            now_ns = self._clock()
            attempt.exchange.first_piece_ns = attempt.exchange.first_piece_ns or now_ns
            if reader.read(data, now_ns):
                attempt.limit.reschedule(None)
                await _read_tail(content)
                return
            attempt.note_piece()
        reader.end()


def _make_trace() -> aiohttp.TraceConfig:
    """What aiohttp tells only those who trace it: which connection a request takes, and when it leaves."""

    async def note_reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _: Any) -> None:
        context.trace_request_ctx.is_reused = True

    async def note_made(_session: aiohttp.ClientSession, context: SimpleNamespace, _: Any) -> None:
        context.trace_request_ctx.is_reused = False
        context.trace_request_ctx.exchange.new_connection = True

    async def note_sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _: Any) -> None:
        context.trace_request_ctx.note_sent()

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note_reused)
    trace.on_connection_create_end.append(note_made)
    trace.on_request_headers_sent.append(note_sent)
    return trace


async def _read_tail(content: aiohttp.StreamReader) -> None:
    """Read to the end of the body, so that the connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(TAIL_TIMEOUT_S):
            while await content.readany():
                pass


def _failure_kind(error: Exception, *, is_answered: bool) -> ErrorKind:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "timeout_connect"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect"
    if isinstance(error, aiohttp.ClientResponseError) or isinstance(error.__cause__, ContentEncodingError):
        return "malformed"
    return "truncated" if is_answered else "connect"
