"""The streaming client on aiohttp: the reference that `native` is tested against.

It knows neither users nor phases. Times are stamped by the event loop, once per read and before parsing.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from array import array
from contextlib import suppress
from types import TracebackType
from typing import Self

import aiohttp

from erhpc.load.answer import AnswerReader
from erhpc.load.exchange import Clock, Exchange, Patience
from erhpc.load.requests import LoadRequest
from erhpc.plan.protocol import KEEP_ALIVE_S
from erhpc.results.record import ErrorKind

MAX_REDIRECTS = 3

TAIL_TIMEOUT_S = 1.0
"""How long the end of the body may follow [DONE], before the connection is given up; the answer counts anyway."""
MAX_REFUSAL_BYTES = 4096
"""How much of an error body is read for the record."""


class AiohttpClient:
    """Implements `StreamingClient`; one session without a limit on connections, open while the context is.

    `key` is sent as a bearer token. Redirects are followed as by the native client.
    """

    def __init__(
        self, url: str, *, patience: Patience, key: str | None = None, clock: Clock = time.monotonic_ns
    ) -> None:
        self.num_pieces = 0
        self._url = url
        self._patience = patience
        self._clock = clock
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }

    def take_delays_ns(self) -> array[int]:
        """See `StreamingClient.take_delays_ns`; aiohttp does not know."""
        return array("q")

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The total time is bounded in `send`: aiohttp's own would enter a timer at each read.
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._patience.connect_s, sock_read=self._patience.idle_s
            ),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, request: LoadRequest, exchange: Exchange) -> None:
        """See `StreamingClient.send`."""
        try:
            async with asyncio.timeout(self._patience.total_s):
                exchange.sent_ns = self._clock()
                async with self._session.post(
                    self._url, data=request.body, allow_redirects=True, max_redirects=MAX_REDIRECTS + 1
                ) as response:
                    await self._receive(response, exchange)
        except aiohttp.TooManyRedirects:
            exchange.fail("status", f"redirected more than {MAX_REDIRECTS} times")
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            exchange.fail(_failure_kind(error, exchange), self._failure_text(error))

    async def _receive(self, response: aiohttp.ClientResponse, exchange: Exchange) -> None:
        exchange.http_status = response.status
        exchange.expert = response.headers.get("x-erhpc-expert")
        exchange.replica = response.headers.get("x-erhpc-replica")
        if response.status != 200:
            body = await response.content.read(MAX_REFUSAL_BYTES)
            exchange.fail("status", f"HTTP {response.status}: {body.decode(errors='replace')}")
        elif response.content_type != "text/event-stream":
            exchange.fail("malformed", f"the answer is {response.content_type}, no event stream")
        else:
            await self._stream(response.content, exchange)

    async def _stream(self, content: aiohttp.StreamReader, exchange: Exchange) -> None:
        reader = AnswerReader(exchange)
        while data := await self._read(content, exchange):
            self.num_pieces += 1
            if exchange.raw is not None:
                exchange.raw.append(data)
            now_ns = self._clock()
            exchange.first_piece_ns = exchange.first_piece_ns or now_ns
            if reader.read(data, now_ns):
                if exchange.error_kind is None:
                    await _read_tail(content)
                return
        reader.end()

    async def _read(self, content: aiohttp.StreamReader, exchange: Exchange) -> bytes:
        first_token_s = self._patience.first_token_s
        if first_token_s is None or exchange.arrivals_ns:
            return await content.readany()
        try:
            async with asyncio.timeout(max(0.0, first_token_s - (self._clock() - exchange.sent_ns) / 1e9)):
                return await content.readany()
        except TimeoutError:
            exchange.fail("timeout_first_token", f"no token within {first_token_s:g} s")
            raise

    def _failure_text(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
            return f"no complete answer within {self._patience.total_s:g} s"
        return f"{type(error).__name__}: {error}"


async def _read_tail(content: aiohttp.StreamReader) -> None:
    """Read to the end of the body, so that the connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(TAIL_TIMEOUT_S):
            while await content.readany():
                pass


def _failure_kind(error: Exception, exchange: Exchange) -> ErrorKind:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "timeout_connect"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect"
    if isinstance(error, TimeoutError):
        return "timeout_idle" if isinstance(error, aiohttp.SocketTimeoutError) else "timeout_total"
    if isinstance(error, aiohttp.ClientResponseError):
        return "malformed"
    return "connect" if exchange.http_status is None else "truncated"
