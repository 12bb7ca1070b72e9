"""A replica whose answer a test writes as a coroutine; it remembers requests and how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDictProxy

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]

FRAMES = tuple(b'data: {"choices":[{"index":0,"delta":{"content":"t%d"}}]}\n\n' % n for n in range(5))
DONE = b"data: [DONE]\n\n"


@dataclass
class Seen:
    """One request as it came."""

    path: str
    headers: CIMultiDictProxy[str]
    body: bytes
    query: str = ""


@dataclass
class ScriptedReplica:
    """Serves `script` on every path while `serving`; `script` may be changed at any time."""

    script: Script
    healthy: bool = True
    url: str = ""
    num_probes: int = 0
    """How often its /health was asked for."""
    seen: list[Seen] = field(default_factory=list)
    arrivals: asyncio.Queue[Seen] = field(default_factory=asyncio.Queue)
    """One entry per request, to wait for."""
    departures: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    """One entry per request that ended: whether the asker left before its end."""

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[ScriptedReplica]:
        """Listen on the loopback until the context ends."""
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/health", self._health)
        self.add_routes(app)
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """Answer other routes too; a replica of a kind of its own says which."""

    async def _health(self, request: web.Request) -> web.Response:
        self.num_probes += 1
        return web.Response(status=200 if self.healthy else 503)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.path, request.headers, await request.read(), request.query_string)
        self.seen.append(seen)
        self.arrivals.put_nowait(seen)
        left = True
        try:
            response = await self.script(request)
            left = False
            return response
        finally:
            self.departures.put_nowait(left)


async def answer_json(request: web.Request) -> web.StreamResponse:
    """A whole answer."""
    return web.Response(
        body=b'{"id":"1",  "choices":[]}', content_type="application/json", headers={"x-erhpc-engine": "emulated"}
    )


async def stream_frames(request: web.Request) -> web.StreamResponse:
    """A stream to its proper end."""
    response = await open_stream(request)
    for frame in (*FRAMES, DONE):
        await response.write(frame)
    return response


async def stream_forever(request: web.Request) -> web.StreamResponse:
    """One frame, then silence."""
    response = await open_stream(request)
    await response.write(FRAMES[0])
    return await hang(request)


async def hang(request: web.Request) -> web.StreamResponse:
    """No answer."""
    await asyncio.Event().wait()
    raise AssertionError("never reached")


def stream_then_break(*parts: bytes) -> Script:
    """`parts`, then the connection is lost."""

    async def script(request: web.Request) -> web.StreamResponse:
        response = await open_stream(request)
        for part in parts:
            await response.write(part)
        return lose(request, response)

    return script


async def break_whole(request: web.Request) -> web.StreamResponse:
    """Half of a JSON answer of announced length."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"id":')
    return lose(request, response)


async def break_at_once(request: web.Request) -> web.StreamResponse:
    """The connection is lost before the first byte."""
    return lose(request, web.Response())


async def open_stream(request: web.Request) -> web.StreamResponse:
    """The head of a stream."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


def lose(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection under the answer; what was written still arrives."""
    assert request.transport is not None
    request.transport.close()
    return response
