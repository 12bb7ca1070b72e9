"""The routes of the gateway: check, choose, relay, count.

It knows neither how a replica is chosen nor how bytes reach it; `erhpc.gateway.server` gives it both.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from aiohttp import web

from erhpc.gateway.errors import (
    ApiError,
    Outcome,
    ReplicaError,
    answer_error,
    too_long,
    unauthorized,
    unavailable,
    unknown_model,
    unknown_route,
)
from erhpc.gateway.metrics import CONTENT_TYPE, Metrics
from erhpc.gateway.prober import Prober
from erhpc.gateway.relay import Forward, Relay
from erhpc.gateway.replicas import Replica, find_missing_experts
from erhpc.gateway.requests import Api, Inquiry, choose_request_id, parse_inquiry
from erhpc.plan.protocol import API_PATHS, EMULATED_OWNER, OWNER
from erhpc.plan.specs import GatewaySpec
from erhpc.results.telemetry import LoopLag, parse_window_s
from erhpc.routing.policy import Choice, NoLiveReplica
from erhpc.routing.router import Router, UnknownModel

REQUEST_ID = "x-erhpc-request-id"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Flight:
    """One request while a replica answers it; it counts as cancelled until its end is known."""

    outcome: Outcome = Outcome.CANCELLED


class Gateway:
    """Answers clients; one per process."""

    def __init__(
        self,
        spec: GatewaySpec,
        replicas: list[Replica],
        router: Router,
        *,
        relay: Relay,
        prober: Prober,
        lag: LoopLag,
        key: str | None,
    ) -> None:
        self._spec = spec
        self._replicas = replicas
        self._router = router
        self._relay = relay
        self._prober = prober
        self._lag = lag
        self._bearer = f"Bearer {key}".encode() if key else None
        self._metrics = Metrics()

    def build_app(self) -> web.Application:
        """The routes, ready to be served."""
        # One more than allowed: older versions of aiohttp refuse bodies of exactly this length.
        app = web.Application(client_max_size=self._spec.limits.max_body_bytes + 1, middlewares=[self._guard])
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
            self._check_key(request)
            return await handler(request)
        except web.HTTPException as error:
            refusal = unknown_route(error, request)
            if "Allow" in error.headers:
                headers["Allow"] = error.headers["Allow"]
        except ApiError as error:
            refusal = error
        if refusal.status < 500:
            self._metrics.requests["", "", Outcome.REFUSED] += 1
        return answer_error(refusal, {**headers, REQUEST_ID: read_request_id(request)})

    def _check_key(self, request: web.Request) -> None:
        if self._bearer is None or not request.path.startswith(("/v1/", "/telemetry")):
            return
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._bearer):
            raise unauthorized()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("chat", request)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("completions", request)

    async def _answer(self, api: Api, request: web.Request) -> web.StreamResponse:
        inquiry = parse_inquiry(api, await read_body(request, self._spec.limits.max_body_bytes))
        choice = self._choose(inquiry)
        replica = self._replicas[choice.replica]
        request_id = read_request_id(request)
        forward = Forward(
            replica=replica.name,
            url=replica.endpoint.url + API_PATHS[api],
            body=inquiry.body_for(replica.endpoint.model),
            request_id=request_id,
            reply_headers=describe_choice(request_id, replica, choice),
        )
        return await self._pass_on(request, forward, replica)

    def _choose(self, inquiry: Inquiry) -> Choice:
        config = self._spec.router
        try:
            choice = self._router.choose(
                inquiry.model, lambda: inquiry.routed_text(config.text, config.text_limit_chars)
            )
        except UnknownModel as error:
            raise unknown_model(error.model, self._router.models) from error
        except NoLiveReplica as error:
            self._metrics.requests[error.expert or "", "", Outcome.NO_REPLICA] += 1
            raise unavailable(error.expert) from error
        if choice.classify_ns is not None:
            self._metrics.add_classification(choice.classify_ns, default_used=choice.default_used)
        return choice

    async def _pass_on(self, request: web.Request, forward: Forward, replica: Replica) -> web.StreamResponse:
        with self._count(replica) as flight:
            try:
                relayed = await self._relay.relay(request, forward)
            except ReplicaError as error:
                flight.outcome = error.outcome
                if error.is_down:
                    self._prober.watch(replica)
                return answer_error(error, forward.reply_headers)
            flight.outcome = relayed.outcome
            return relayed.response

    @contextmanager
    def _count(self, replica: Replica) -> Iterator[Flight]:
        """The one place where a request begins and ends for the books, however it ends."""
        flight = Flight()
        replica.in_flight += 1
        try:
            yield flight
        finally:
            replica.in_flight -= 1
            self._metrics.requests[replica.expert, replica.name, flight.outcome] += 1

    async def _models(self, request: web.Request) -> web.Response:
        owner = f"{EMULATED_OWNER}emulated" if self._spec.is_emulated else OWNER
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name in self._router.models]
        return answer_json({"object": "list", "data": cards})

    async def _health(self, request: web.Request) -> web.Response:
        missing = find_missing_experts(self._replicas)
        if not missing:
            return answer_json({"status": "ok"})
        return answer_json({"status": "unavailable", "experts_without_live_replica": missing}, status=503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self._metrics.render(self._replicas), headers={"Content-Type": CONTENT_TYPE})

    async def _telemetry(self, request: web.Request) -> web.Response:
        return answer_json({"lag_p99_s": self._lag.p99_s(read_window_s(request))})


def read_request_id(request: web.Request) -> str:
    """The client's x-request-id, or a new one at each call."""
    return choose_request_id(request.headers.get("x-request-id"))


async def read_body(request: web.Request, max_body_bytes: int) -> bytes:
    """The body of `request`. Raises ApiError 413 if it is longer than allowed, 400 if it is broken."""
    if (request.content_length or 0) > max_body_bytes:
        raise too_long(max_body_bytes)
    try:
        body = await request.read()
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


def describe_choice(request_id: str, replica: Replica, choice: Choice) -> dict[str, str]:
    """The headers that say who answers and why."""
    headers = {REQUEST_ID: request_id, "x-erhpc-expert": replica.expert, "x-erhpc-replica": replica.name}
    if choice.cluster is not None:
        headers["x-erhpc-cluster"] = str(choice.cluster)
    if choice.classify_ns is not None:
        headers["x-erhpc-classify-us"] = f"{choice.classify_ns / 1e3:.1f}"
    return headers


def answer_json(value: object, *, status: int = 200) -> web.Response:
    """`value` as a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
