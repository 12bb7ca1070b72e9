"""An OpenAI-compatible server whose every stage of becoming ready, and whose pace, a test sets while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web


@dataclass
class FakeExpert:
    """Behaviour of the server (set it at any time) and what it has seen; `run()` serves it."""

    model: str = "math"
    """Name it serves."""
    healthy: bool = True
    """False: /health answers 503."""
    completion_status: int = 200
    """Status of every completion."""
    gap_s: float = 0.0
    """Pause before each streamed token."""
    key: str | None = None
    """Bearer token that /v1 paths demand."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    """Completions wait for it; set from the start, clear it to make the server hang."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all completions asked for."""

    def __post_init__(self) -> None:
        self.may_answer.set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        """Serve on a free port of the loopback; yields the base URL."""
        runner = web.AppRunner(self._build_app(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    def _build_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._answer_health)
        app.router.add_get("/v1/models", self._answer_models)
        app.router.add_post("/v1/completions", self._answer_completion)
        app.router.add_post("/v1/chat/completions", self._answer_completion)
        return app

    async def _answer_health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _answer_models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def _answer_completion(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        await self.may_answer.wait()
        if self.completion_status != 200:
            return web.json_response({"error": {"message": "set by the test"}}, status=self.completion_status)
        is_chat = request.path.endswith("/chat/completions")
        if body.get("stream"):
            return await self._stream(request, body, is_chat)
        text = "".join(self._words(body))
        choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        return web.json_response(self._frame(body, choice | {"finish_reason": "length"}, with_usage=True))

    async def _stream(self, request: web.Request, body: dict[str, Any], is_chat: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in self._words(body):
            await asyncio.sleep(self.gap_s)
            choice = {"delta": {"content": word}} if is_chat else {"text": word}
            await response.write(_to_event(self._frame(body, choice)))
        await response.write(_to_event(self._frame(body, {"delta": {}, "finish_reason": "length"}, with_usage=True)))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _frame(self, body: dict[str, Any], choice: dict[str, Any], *, with_usage: bool = False) -> dict[str, Any]:
        frame: dict[str, Any] = {"id": "1", "model": body["model"], "choices": [{"index": 0, **choice}]}
        if with_usage:
            frame["usage"] = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"]}
        return frame

    def _words(self, body: dict[str, Any]) -> list[str]:
        return [f" word{number}" for number in range(body["max_tokens"])]

    def _check_key(self, request: web.Request) -> None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized


def _to_event(frame: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(frame) + b"\n\n"
