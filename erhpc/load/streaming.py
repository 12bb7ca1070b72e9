"""The streaming client on aiohttp: the only place of the load that talks HTTP.

It knows neither users nor phases. Times are stamped by the event loop, once per read and before parsing.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

import aiohttp

from erhpc.load.answer import AnswerReader
from erhpc.load.exchange import Clock, ErrorKind, Exchange
from erhpc.load.requests import LoadRequest
from erhpc.plan.protocol import KEEP_ALIVE_S

CONNECT_TIMEOUT_S = 10.0
TAIL_TIMEOUT_S = 1.0
"""How long the end of the body may follow [DONE], before the connection is given up; the answer counts anyway."""
MAX_REFUSAL_BYTES = 4096
"""How much of an error body is read for the record."""


class AiohttpClient:
    """Implements `StreamingClient`; one session without a limit on connections, open while the context is.

    `key` is sent as a bearer token. `timeout_s` bounds each request from sending to the last byte.
    """

    def __init__(self, url: str, *, timeout_s: float, key: str | None = None, clock: Clock = time.monotonic_ns) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._clock = clock
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        }

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # The total time is bounded in `send`: aiohttp's own would enter a timer at each read.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
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
            async with asyncio.timeout(self._timeout_s):
                exchange.sent_ns = self._clock()
                async with self._session.post(self._url, data=request.body, allow_redirects=False) as response:
                    await self._receive(response, exchange)
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
        while data := await content.readany():
            if reader.read(data, self._clock()):
                if exchange.error_kind is None:
                    await _read_tail(content)
                return
        reader.end()

    def _failure_text(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
            return f"no complete answer within {self._timeout_s:g} s"
        return f"{type(error).__name__}: {error}"


async def _read_tail(content: aiohttp.StreamReader) -> None:
    """Read to the end of the body, so that the connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(TAIL_TIMEOUT_S):
            while await content.readany():
                pass


def _failure_kind(error: Exception, exchange: Exchange) -> ErrorKind:
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return "connect"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientResponseError):
        return "malformed"
    return "connect" if exchange.http_status is None else "truncated"
