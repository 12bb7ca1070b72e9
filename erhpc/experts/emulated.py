"""An emulated expert: a server with vLLM's HTTP surface whose timing comes from the twin.

It serves text that means nothing and never passes for vLLM: every response carries `x-erhpc-engine: emulated`.
It knows neither gateway nor run; the key and the step times are handed in.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import msgspec
from aiohttp import HttpVersion11, web

from erhpc.errors import ProcessError
from erhpc.experts.emulated_answer import AnswerText
from erhpc.experts.emulated_engine import Answer, Engine, sleep_until
from erhpc.experts.emulated_faults import Faults
from erhpc.experts.emulated_prefixes import PrefixCache
from erhpc.experts.emulated_request import Api, Ask, RefusedRequest, parse_ask
from erhpc.plan.passes import PASS_PARAMETER, check_pass
from erhpc.plan.protocol import API_PATHS, name_emulated_owner
from erhpc.plan.specs import EmulatedExpertSpec
from erhpc.results.telemetry import LoopLag, parse_lookback
from erhpc.twin.scheduler import Request
from erhpc.twin.serving import Serving

ENGINE_HEADER = "x-erhpc-engine"
_MAX_BODY_BYTES = 64 * 1024 * 1024
_STOP_TIMEOUT_S = 0.5
"""Answers in flight when the server stops get this long; vLLM cuts them, too."""


class EmulatedExpert:
    """One emulated replica: `start`, then `serve_until` an event, then `stop`."""

    def __init__(
        self,
        spec: EmulatedExpertSpec,
        serving: Serving,
        *,
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._serving = serving
        self._key = key
        self._clock = clock
        self._faults = Faults(spec.faults, spec.replica, Random(spec.replica))
        self._engine = Engine(serving, self._faults, speedup=spec.speedup, clock=clock)
        self._prefixes = PrefixCache(serving.limits.num_blocks) if spec.prefix_caching else None
        self._lag = LoopLag()
        self._runner = web.AppRunner(
            self._build_app(), access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_TIMEOUT_S
        )
        self._steps: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen and begin to "load". Raises ProcessError when the port cannot be had."""
        await self._runner.setup()
        host, port = self._spec.host, int(self._spec.port)
        try:
            await web.TCPSite(self._runner, host, port, backlog=4096).start()
        except OSError as error:
            raise ProcessError(
                f"Emulated expert {self._spec.replica} cannot listen on {host}:{port}: {error.strerror}. "
                "End the process that holds the port, or change cluster.ports."
            ) from error
        load_s = (self._spec.load_s + self._faults.extra_load_s) / self._spec.speedup
        self._engine.loaded_at_s = self._clock() + load_s
        self._lag.start()
        self._steps = asyncio.create_task(self._engine.run(), name="step loop")

    async def serve_until(self, stopped: asyncio.Event) -> None:
        """Return when `stopped` is set; raise what ended the step loop, or the crash that is planned, before that."""
        if self._steps is None:
            raise RuntimeError("serve_until before start")
        waits = [asyncio.create_task(stopped.wait(), name="stop"), asyncio.create_task(self._crash(), name="crash")]
        try:
            await asyncio.wait((*waits, self._steps), return_when=asyncio.FIRST_COMPLETED)
            for task in (self._steps, waits[1]):
                if task.done():
                    task.result()
        finally:
            for task in waits:
                task.cancel()

    async def _crash(self) -> None:
        await sleep_until(self._engine.loaded_at_s + self._faults.crash_s / self._spec.speedup, self._clock)
        self._engine.cut()
        raise ProcessError(f"Emulated expert {self._spec.replica} crashed as engine.faults says.")

    async def stop(self) -> None:
        """Close the port, cut what is still being answered, end the step loop."""
        await self._runner.cleanup()
        await self._lag.stop()
        if self._steps is not None:
            self._steps.cancel()
            await asyncio.wait((self._steps,))

    def _build_app(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._guard])
        app.on_response_prepare.append(_mark_response)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/telemetry", self._telemetry)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post(API_PATHS["chat"], self._chat)
        app.router.add_post(API_PATHS["completions"], self._completions)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Turn away requests without the key, requests during loading, and requests that are refused."""
        try:
            if request.path.startswith("/v1/") or request.path == "/telemetry":
                self._check_key(request)
            if request.path.startswith("/v1/") and not self._is_ready:
                raise RefusedRequest(503, "ServiceUnavailableError", "The model is still loading, or its engine died.")
            if request.method == "POST":
                self._check_faults()
            return await handler(request)
        except RefusedRequest as refusal:
            error = {"message": str(refusal), "type": refusal.kind, "param": None, "code": refusal.status}
            return _json({"error": error}, status=refusal.status)

    def _check_key(self, request: web.Request) -> None:
        if self._key is None:
            return
        given = request.headers.get("Authorization", "")
        if hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {self._key}".encode()):
            return
        if not check_pass(self._key, self._spec.replica, request.query.get(PASS_PARAMETER, ""), time.time()):
            raise RefusedRequest(401, "AuthenticationError", "Authorization is missing or wrong. Send 'Bearer <key>'.")

    def _check_faults(self) -> None:
        status = self._faults.draw_status(self._engine.age_s)
        if status is not None:
            kind = "ServiceUnavailableError" if status == 503 else "InternalServerError"
            raise RefusedRequest(status, kind, "This request was picked to fail (engine.faults).")

    @property
    def _is_ready(self) -> bool:
        is_alive = self._steps is not None and not self._steps.done()
        return is_alive and self._clock() >= self._engine.loaded_at_s

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._is_ready else 503)

    async def _models(self, request: web.Request) -> web.Response:
        card = {
            "object": "model",
            "created": int(time.time()),
            "owned_by": name_emulated_owner(self._spec.speedup),
            "max_model_len": self._spec.max_model_len,
        }
        names = (self._spec.model, *self._spec.aliases)
        return _json({"object": "list", "data": [{"id": name, **card} for name in names]})

    async def _telemetry(self, request: web.Request) -> web.Response:
        try:
            lookback = parse_lookback(request.query)
        except ValueError as error:
            raise RefusedRequest(400, "BadRequestError", str(error)) from error
        lateness_s = self._engine.lateness_p99_s(lookback)
        return _json({"lag_p99_s": self._lag.p99_s(lookback), "step_lateness_p99_s": lateness_s})

    async def _metrics(self, request: web.Request) -> web.Response:
        text = self._engine.metrics.to_text(
            self._spec.model, self._engine.scheduler, has_prefix_cache=self._prefixes is not None
        )
        return web.Response(text=text, content_type="text/plain")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("chat", request)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("completions", request)

    async def _answer(self, api: Api, request: web.Request) -> web.StreamResponse:
        arrived_s = self._clock()
        ask = parse_ask(api, await request.read(), self._spec)
        answer_id = uuid.uuid4().hex
        interval = self._serving.stream_interval
        text = AnswerText(
            ask, answer_id=answer_id, created_s=int(time.time()), model=self._spec.model, interval=interval
        )
        sequence = Request(answer_id, ask.prompt_tokens, ask.answer_tokens, self._find_cached(ask))
        answer = Answer(sequence, arrived_s, ask.max_tokens, ask.finish_reason, interval=interval)
        if ask.stream:
            return await self._stream(request, text, answer)
        await self._complete(answer)
        return web.Response(body=text.whole(), content_type="application/json")

    def _find_cached(self, ask: Ask) -> int:
        if self._prefixes is None:
            return 0
        cached_tokens = min(self._prefixes.take(ask.prompt), ask.prompt_tokens - 1)
        self._engine.metrics.num_cache_queries += ask.prompt_tokens
        self._engine.metrics.num_cache_hits += self._serving.limits.count_cached(cached_tokens, ask.prompt_tokens)
        return cached_tokens

    async def _stream(self, request: web.Request, text: AnswerText, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        # A client that left before the first or last frame is no error: there is nobody to tell.
        with suppress(ConnectionResetError):
            await response.prepare(request)
            _connect(answer, text, request)
            await self._complete(answer)
            await response.write_eof(text.closing_frames())
        return response

    async def _complete(self, answer: Answer) -> None:
        """Wait for the last token; a client that goes away cancels this and frees what the request held."""
        await sleep_until(answer.arrived_s + self._serving.request_s / self._spec.speedup, self._clock)
        self._engine.submit(answer)
        try:
            await answer.done.wait()
        finally:
            self._engine.abort(answer)


def _connect(answer: Answer, text: AnswerText, request: web.Request) -> None:
    """Let the engine write tokens to the client itself, past aiohttp, in the chunked encoding aiohttp announced."""
    encode = _chunk if request.version >= HttpVersion11 else bytes
    answer.token_frames = tuple(encode(frame) for frame in text.token_frames())
    answer.opening = encode(text.opening_frames())
    answer.transport = request.transport


async def _mark_response(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[ENGINE_HEADER] = "emulated"


def _chunk(data: bytes) -> bytes:
    """`data` as one chunk of HTTP/1.1's chunked encoding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
