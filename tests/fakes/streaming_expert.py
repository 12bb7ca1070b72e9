"""An OpenAI-compatible server that streams at a set pace, or misbehaves in a set way, and remembers what it saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Behaviour = Literal["well", "refuses", "hangs", "drops", "ends_early", "tells_error", "babbles", "answers_json", "mute"]


@dataclass
class StreamingExpert:
    """Answers with `max_tokens` frames, `gap_s` apart, the first after `ttft_s`; after one token if it misbehaves."""

    ttft_s: float = 0.002
    gap_s: float = 0.001
    behaviour: Behaviour = "well"
    named: bool = True
    """Names expert and replica in the headers, as a gateway does."""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    connections: set[Any] = field(default_factory=set)
    arrivals: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """One entry per request, to wait for."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[StreamingExpert]:
        """Listen on a free port of the loopback until the context ends."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.arrivals.put_nowait(body["model"])
        self.keys.add(request.headers.get("Authorization"))
        self.connections.add(request.transport.get_extra_info("peername"))
        if self.behaviour == "mute":
            await asyncio.Event().wait()
        if self.behaviour == "refuses":
            return web.json_response({"error": {"message": "model not found"}}, status=404)
        if self.behaviour == "answers_json":
            return web.json_response({"choices": []})
        names = {"x-erhpc-expert": "math", "x-erhpc-replica": "math-0"} if self.named else {}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **names})
        with suppress(ConnectionError):  # the client may leave
            await response.prepare(request)
            await self._stream(request, response, body["max_tokens"])
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, tokens: int) -> None:
        await asyncio.sleep(self.ttft_s)
        await send(response, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number in range(tokens if self.behaviour == "well" else 1):
            await asyncio.sleep(self.gap_s if number else 0)
            await send(response, {"choices": [{"index": 0, "delta": {"content": f" {number}"}}]})
        if self.behaviour == "well":
            await send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            await send(response, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})
            await response.write(b"data: [DONE]\n\n")
        elif self.behaviour == "hangs":
            await asyncio.Event().wait()
        elif self.behaviour == "drops":
            request.transport.abort()
        elif self.behaviour == "tells_error":
            await send(response, {"error": {"message": "engine died"}})
        elif self.behaviour == "babbles":
            await response.write(b"data: <html>\n\n")


async def send(response: web.StreamResponse, frame: dict[str, Any]) -> None:
    """Write one event."""
    await response.write(b"data: " + json.dumps(frame).encode() + b"\n\n")
