"""The routes of the gateway on aiohttp: all of them, and every request that the front does not take.

It knows neither how a replica is chosen (`desk`) nor how bytes reach it (`relay`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from erhpc.gateway.admission import Overloaded, Ticket, Turn
from erhpc.gateway.desk import REQUEST_ID, Desk
from erhpc.gateway.errors import (
    ApiError,
    Outcome,
    ReplicaError,
    answer_error,
    overloaded,
    too_long,
    too_slow,
    unknown_route,
)
from erhpc.gateway.front import REQUEST_TIMEOUT_S
from erhpc.gateway.metrics import CONTENT_TYPE
from erhpc.gateway.relay import Relay
from erhpc.gateway.replicas import find_missing_experts
from erhpc.gateway.requests import SESSION_HEADER, Api, choose_request_id
from erhpc.plan.protocol import API_PATHS, EMULATED_OWNER, OWNER
from erhpc.results.telemetry import LoopLag, parse_window_s

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BaseHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


LOGGER = logging.getLogger("erhpc.gateway")
"""For aiohttp: what it has to say of requests that the gateway does not take itself."""


def is_own_fault(record: logging.LogRecord) -> bool:
    """Whether `record` tells of more than a client's bad request, each of which would fill the log with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


LOGGER.addFilter(is_own_fault)


class Gateway:
    """Answers clients; one per process."""

    def __init__(self, desk: Desk, *, relay: Relay, lag: LoopLag) -> None:
        self._desk = desk
        self._relay = relay
        self._lag = lag

    def build_app(self) -> web.Application:
        """The routes, ready to be served."""
        # One more than allowed: older versions of aiohttp refuse bodies of exactly this length.
        app = web.Application(client_max_size=self._desk.spec.limits.max_body_bytes + 1, middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/telemetry", self._telemetry)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post(API_PATHS["chat"], self._chat)
        app.router.add_post(API_PATHS["completions"], self._completions)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key, and answer every refusal in OpenAI's shape."""
        headers: dict[str, str] = {}
        try:
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            self._desk.check_key(request.path, given)
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

    async def _answer(self, api: Api, request: web.Request) -> web.StreamResponse:
        with await self._wait_for_turn():
            return await self._pass_on(api, request)

    async def _wait_for_turn(self) -> Ticket:
        """A place among those in flight. Raises ApiError 503 if there is none, or not in time."""
        changed = asyncio.Event()
        try:
            ticket = self._desk.admission.ask(changed.set, time.monotonic())
        except Overloaded:
            raise overloaded() from None
        try:
            if ticket.turn is Turn.WAITING:
                with self._counting_leave():
                    await changed.wait()
            if ticket.turn is not Turn.ADMITTED:
                raise overloaded()
        except BaseException:
            ticket.leave()
            raise
        return ticket

    @contextlib.contextmanager
    def _counting_leave(self) -> Iterator[None]:
        """Count a client that leaves before a replica is chosen."""
        try:
            yield
        except asyncio.CancelledError:
            self._desk.metrics.requests["", "", Outcome.CANCELLED] += 1
            raise

    async def _pass_on(self, api: Api, request: web.Request) -> web.StreamResponse:
        with self._counting_leave():
            body = await read_body(request, self._desk.spec.limits.max_body_bytes)
        session = request.headers.get(SESSION_HEADER)
        forward = self._desk.decide(api, body, read_request_id(request), session_header=session)
        with self._desk.begin(forward) as flight:
            try:
                relayed = await self._relay.relay(request, forward)
            except ReplicaError as error:
                flight.outcome = error.outcome
                self._desk.note_failure(forward, error)
                return answer_error(error, forward.reply_headers)
            flight.outcome = relayed.outcome
            return relayed.response

    async def _models(self, request: web.Request) -> web.Response:
        owner = f"{EMULATED_OWNER}emulated" if self._desk.spec.is_emulated else OWNER
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name in self._desk.models]
        return answer_json({"object": "list", "data": cards})

    async def _health(self, request: web.Request) -> web.Response:
        missing = find_missing_experts(self._desk.replicas)
        if not missing:
            return answer_json({"status": "ok"})
        return answer_json({"status": "unavailable", "experts_without_live_replica": missing}, status=503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text=self._desk.metrics.render(self._desk.replicas, self._desk.admission),
            headers={"Content-Type": CONTENT_TYPE},
        )

    async def _telemetry(self, request: web.Request) -> web.Response:
        return answer_json({"lag_p99_s": self._lag.p99_s(read_window_s(request))})


def refuse_expectations(handler: BaseHandler, desk: Desk) -> BaseHandler:
    """What aiohttp is to call in place of `handler`, which fails over expectations that are no text."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "100-continue").lower() == "100-continue":
            return await handler(request)
        error = ApiError(417, "The only expectation that is met is 100-continue. Leave the header Expect out.")
        desk.note_refusal(error)
        return answer_error(error, {REQUEST_ID: choose_request_id(request.headers.get("x-request-id"))})

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
    return body


def read_window_s(request: web.Request) -> float:
    """The window of /telemetry in seconds. Raises ApiError 400 if it is none (see `parse_window_s`)."""
    try:
        return parse_window_s(request.query.get("window_s"))
    except ValueError as error:
        raise ApiError(400, str(error), param="window_s") from error


def answer_json(value: object, *, status: int = 200) -> web.Response:
    """`value` as a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
