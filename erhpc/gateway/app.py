"""The routes of the gateway that pass requests on, on aiohttp: all of them, and every request the front does not take.

It knows neither how a replica is chosen (`desk`) nor how bytes reach it (`relay`).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from erhpc.gateway.admission import Admission, Overloaded, Ticket, Turn
from erhpc.gateway.answers import find_usage
from erhpc.gateway.caller import REQUEST_TIMEOUT_S
from erhpc.gateway.desk import Desk, Forward
from erhpc.gateway.errors import (
    MAX_SHOWN_CHARS,
    ApiError,
    Outcome,
    ReplicaError,
    answer_error,
    overloaded,
    too_long,
    too_slow,
    unknown_model,
    unknown_route,
)
from erhpc.gateway.relay import Relay, Relayed
from erhpc.gateway.requests import PASSED_HEADERS, REQUEST_ID, Api, choose_request_id, parse_inquiry
from erhpc.gateway.retries import is_retried
from erhpc.gateway.surface import Surface, answer_json
from erhpc.plan.protocol import API_PATHS, EMULATED_OWNER, OWNER, QUEUE_HEADER, SESSION_HEADER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BaseHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

OTHER_PATHS = (
    "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions/batch",
    "/v1/embeddings", "/v1/score", "/v1/rerank", "/v2/rerank", "/v1/classify", "/v1/pooling",
    "/tokenize", "/detokenize", "/score", "/rerank", "/classify", "/pooling",
)  # fmt: skip
"""Routes of vLLM that ask a model something; what changes a server (/v1/load_lora_adapter) is not passed."""


class Gateway:
    """Answers clients; one per process."""

    def __init__(self, desk: Desk, *, relay: Relay, surface: Surface, expert_key: str | None) -> None:
        self._desk = desk
        self._expert_key = expert_key
        self._relay = relay
        self._surface = surface

    def build_app(self) -> web.Application:
        """The routes, ready to be served."""
        # One more than allowed: older versions of aiohttp refuse bodies of exactly this length.
        app = web.Application(client_max_size=self._desk.spec.limits.max_body_bytes + 1, middlewares=[self._guard])
        self._surface.add_routes(app)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._model)
        app.router.add_post(API_PATHS["chat"], self._chat)
        app.router.add_post(API_PATHS["completions"], self._completions)
        for path in OTHER_PATHS:
            app.router.add_post(path, self._other)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and answer every refusal in OpenAI's shape."""
        headers: dict[str, str] = {}
        try:
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            with self._desk.receive(request.path, given):
                return await handler(request)
        except web.HTTPException as error:
            refusal = unknown_route(error, request)
            if "Allow" in error.headers:
                headers["Allow"] = error.headers["Allow"]
        except ApiError as error:
            refusal = error
        self._desk.note_refusal(refusal)
        return answer_error(refusal, {**headers, REQUEST_ID: read_request_id(request)})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("chat", request)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("completions", request)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("other", request)

    async def _answer(self, api: Api, request: web.Request) -> web.StreamResponse:
        has_begun = False
        try:
            ticket, waited_s = await self._wait(self._desk.admission)
            with ticket:
                forward = await self._read(api, request)
                has_begun = True
                return await self._pass_on(request, forward, waited_s)
        except asyncio.CancelledError:
            if not has_begun:
                self._desk.note_leave()
            raise

    async def _wait(self, admission: Admission) -> tuple[Ticket, float]:
        """A place, and how long that took in seconds. Raises ApiError 503 if there is none, or not in time."""
        changed, now_s = asyncio.Event(), time.monotonic()
        try:
            ticket = admission.ask(changed.set, now_s)
        except Overloaded:
            raise overloaded() from None
        waits = ticket.turn is Turn.WAITING
        try:
            if waits:
                await changed.wait()
            if ticket.turn is not Turn.ADMITTED:
                raise overloaded()
        except BaseException:
            ticket.leave()
            raise
        return ticket, time.monotonic() - now_s if waits else 0.0

    async def _read(self, api: Api, request: web.Request) -> Forward:
        body = await read_body(request, self._desk.spec.limits.max_body_bytes)
        began_ns = time.perf_counter_ns()
        given = ((name, request.headers.get(name)) for name in PASSED_HEADERS)
        passed = tuple((name, value) for name, value in given if value is not None and value.isascii())
        forward = self._desk.decide(
            request.path_qs,
            parse_inquiry(api, body),
            read_request_id(request),
            session_header=request.headers.get(SESSION_HEADER),
            passed_headers=passed,
        )
        forward.began_ns = began_ns
        return forward

    async def _pass_on(self, request: web.Request, forward: Forward, waited_s: float) -> web.StreamResponse:
        desk = self._desk
        queue = desk.find_queue(forward)
        if queue is None:
            return await self._relay_somewhere(request, forward, waited_s)
        try:
            ticket, waited_for_expert_s = await self._wait(queue)
        except asyncio.CancelledError:
            desk.note_leave()
            raise
        with ticket:
            if waited_for_expert_s:
                forward.began_ns = time.perf_counter_ns()
                desk.choose_again(forward)
            return await self._relay_somewhere(request, forward, waited_s + waited_for_expert_s)

    async def _relay_somewhere(self, request: web.Request, forward: Forward, waited_s: float) -> web.StreamResponse:
        """Ask the replica, or others of its expert if it fails before anything of an answer has been passed on."""
        desk = self._desk
        if waited_s:
            desk.metrics.queue.add(round(waited_s * 1e9))
            forward.reply_headers[QUEUE_HEADER] = f"{waited_s * 1e6:.1f}"
        if desk.redirects:
            return web.Response(status=307, headers=desk.redirect(forward, self._expert_key, time.time()))
        desk.metrics.forward.add(time.perf_counter_ns() - forward.began_ns)
        with desk.begin(forward) as flight:

            def judge(upstream: aiohttp.ClientResponse) -> bool:
                desk.note_status(forward, upstream.status)
                says_when = "Retry-After" in upstream.headers
                return not (is_retried(upstream.status, says_when=says_when) and desk.retry(forward, Outcome.REJECTED))

            while True:
                try:
                    relayed = await self._relay.relay(request, forward, flight, judge)
                except ReplicaError as error:
                    desk.note_failure(forward, error)
                    if error.outcome is Outcome.SILENT or not desk.retry(forward, error.outcome):
                        flight.outcome = error.outcome
                        return answer_error(error, forward.reply_headers)
                    relayed = None
                if relayed is not None:
                    flight.outcome = relayed.outcome
                    self._note_usage(forward, relayed)
                    return relayed.response
                flight.move(forward.replica)

    def _note_usage(self, forward: Forward, relayed: Relayed) -> None:
        if (usage := find_usage(relayed.tail)) is not None:
            self._desk.note_tokens(forward, *usage)

    async def _models(self, request: web.Request) -> web.Response:
        return answer_json({"object": "list", "data": [self._describe(name) for name in self._desk.models]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._desk.models:
            raise unknown_model(name, self._desk.models)
        return answer_json(self._describe(name))

    def _describe(self, name: str) -> dict[str, object]:
        owner = f"{EMULATED_OWNER}emulated" if self._desk.spec.is_emulated else OWNER
        return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def refuse_expectations(handler: BaseHandler, desk: Desk) -> BaseHandler:
    """What aiohttp is to call in place of `handler`, which fails over expectations that are no text."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "100-continue").lower() == "100-continue":
            return await handler(request)
        error = ApiError(417, "The only expectation that is met is 100-continue. Leave the header Expect out.")
        desk.note_refusal(error)
        return answer_error(error, {REQUEST_ID: choose_request_id(request.headers.get(REQUEST_ID))})

    return handle


def read_request_id(request: web.Request) -> str:
    """The client's x-request-id, or a new one at each call."""
    return choose_request_id(request.headers.get("x-request-id"))


async def read_body(request: web.Request, max_body_bytes: int) -> bytes:
    """The body of `request`. Raises ApiError 413 if it is too long, 408 if it is late, 400 if it is broken."""
    if (request.content_length or 0) > max_body_bytes:
        raise too_long(max_body_bytes)
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            body = await request.read()
    except TimeoutError:
        raise too_slow(REQUEST_TIMEOUT_S) from None
    except web.HTTPRequestEntityTooLarge as error:
        raise too_long(max_body_bytes) from error
    except web.RequestPayloadError as error:
        raise ApiError(400, "The body is cut short or not encoded as its headers say.") from error
    if len(body) > max_body_bytes:
        raise too_long(max_body_bytes)
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    return body if coding == "identity" else decode_content(body, coding, max_body_bytes)


def decode_content(body: bytes, coding: str, max_body_bytes: int) -> bytes:
    """What `body` was before it was encoded; no more than is allowed is ever made of it.

    Raises ApiError 413 if it is longer, 400 if it is not encoded so, or in another way than gzip and deflate.
    """
    if coding not in ("gzip", "deflate"):
        raise ApiError(
            400, f"The body is encoded as {coding[:MAX_SHOWN_CHARS]!r}. Allowed: gzip, deflate, or not at all."
        )
    is_bare = coding == "deflate" and body[:1] and body[0] & 0x0F != zlib.DEFLATED
    decoder = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
    try:
        decoded = decoder.decompress(body, max_body_bytes + 1)
    except zlib.error as error:
        raise ApiError(400, "The body is not encoded as its headers say.") from error
    if len(decoded) > max_body_bytes:
        raise too_long(max_body_bytes)
    if not decoder.eof or decoder.unused_data:
        raise ApiError(400, "The body is cut short, or more than what its headers say.")
    return decoded
