"""What the gateway itself answers when it cannot relay: errors in OpenAI's shape.

It knows no request and no replica state; who raises an error decides what it says.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Self

import msgspec
from aiohttp import web

LOCAL_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""Failures to connect that say nothing about the replica."""
MAX_SHOWN_CHARS = 100
"""Of what a client sent, in an error: a name may be as long as a body."""
RETRY_AFTER_S = 1
"""When a client that was turned away may come back."""


class Outcome(StrEnum):
    """How a request ended; the label `outcome` of erhpc_requests_total."""

    OK = "ok"
    REJECTED = "rejected"
    """The replica answered with a status of 400 or more, which was passed on."""
    UNREACHABLE = "unreachable"
    """No connection to the replica: 502."""
    BROKEN = "broken"
    """The replica broke off: 502 before the first byte, an error event after it."""
    SILENT = "silent"
    """The replica sent nothing for idle_timeout_s: 504 before the first byte, an error event after it."""
    CANCELLED = "cancelled"
    """The client left."""
    NO_REPLICA = "no_replica"
    """The expert has no live replica: 503."""
    OVERLOADED = "overloaded"
    """There were too many requests: 503."""
    REFUSED = "refused"
    """The gateway did not accept the request: 400, 401, 404, 408, 413, or 429 (gateway.max_in_flight_per_key)."""
    REDIRECTED = "redirected"
    """The client was sent to the replica: 307 (gateway.data_path=redirect). How that ended is not known here."""
    LOST = "lost"
    """The process of the gateway that had the request died."""


class Phase(StrEnum):
    """How far a request had come when its client left; the label `phase` of erhpc_cancels_total."""

    QUEUE = "queue"
    """It waited for its turn."""
    PREFILL = "prefill"
    """Nothing of the answer had come, or its head alone."""
    STREAM = "stream"
    """The answer was under way."""


class ApiError(Exception):
    """An error that is answered to the client with `status`, in the shape the official clients read."""

    kind = "invalid_request_error"
    """Field `type` of the answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers: dict[str, str] = {}
        """Headers that the answer needs beside its own."""

    def for_a_while(self) -> Self:
        """The same, with when to come back."""
        self.headers["Retry-After"] = str(RETRY_AFTER_S)
        return self

    @property
    def body(self) -> bytes:
        """The JSON of the answer."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    @property
    def event(self) -> bytes:
        """The same as an event of a stream that has already begun."""
        return b"data: " + self.body + b"\n\n"


class ReplicaError(ApiError):
    """A replica did not answer, or not to the end.

    `is_down`: it must get no more requests until it is well again; `counts`: it is the replica's fault.
    """

    kind = "server_error"

    def __init__(
        self, status: int, message: str, outcome: Outcome, *, is_down: bool = False, counts: bool = True
    ) -> None:
        super().__init__(status, message, code=f"replica_{outcome}")
        self.outcome = outcome
        self.is_down = is_down
        self.counts = counts


def unreachable(replica: str, error: Exception, number: int | None) -> ReplicaError:
    """502: there is no connection to `replica`; `number` is the errno, if there is one."""
    reason = f"{type(error).__name__}, errno {number}" if number else type(error).__name__
    text = f"Replica {replica} cannot be reached ({reason}). Ask again."
    is_ours = number in LOCAL_SHORTAGES
    return ReplicaError(502, text, Outcome.UNREACHABLE, is_down=not is_ours, counts=not is_ours)


def broken(replica: str) -> ReplicaError:
    """502: `replica` broke off."""
    return ReplicaError(502, f"Replica {replica} broke off its answer. Ask again.", Outcome.BROKEN)


def silent(replica: str, idle_timeout_s: float) -> ReplicaError:
    """504: `replica` sent nothing for too long."""
    patience = f"{idle_timeout_s:g} s (gateway.idle_timeout_s)"
    return ReplicaError(504, f"Replica {replica} was silent for {patience}.", Outcome.SILENT)


class ServerError(ApiError):
    """The request is not to blame."""

    kind = "server_error"


def unavailable(expert: str | None) -> ServerError:
    """503: `expert` (None: no expert at all) has no live replica."""
    who = f"Expert {expert!r} has" if expert else "The experts have"
    text = f"{who} no live replica. Try again later, or ask another expert."
    return ServerError(503, text, code="no_live_replica").for_a_while()


def overloaded() -> ServerError:
    """503: too many requests are being answered, and too many wait, or this one has waited for too long or in vain."""
    limits = "gateway.max_in_flight, gateway.max_queued"
    text = f"Too many requests are being answered ({limits}), or the gateway is stopping. Try again later."
    return ServerError(503, text, code="overloaded").for_a_while()


def too_many_of_key(limit: int) -> ApiError:
    """429: the key has as many requests in flight as it may."""
    text = f"This key has {limit} requests in flight (gateway.max_in_flight_per_key). Wait for one of them to end."
    return ApiError(429, text, code="rate_limit_exceeded").for_a_while()


def unknown_model(model: str, allowed: Iterable[str]) -> ApiError:
    """404: the request names a model that is not served here."""
    shown = model if len(model) <= MAX_SHOWN_CHARS else model[:MAX_SHOWN_CHARS] + "..."
    message = f"The model {shown!r} does not exist. Allowed: {', '.join(allowed)}."
    return ApiError(404, message, code="model_not_found", param="model")


def unauthorized() -> ApiError:
    """401: the key is missing or wrong."""
    return ApiError(401, "The key is missing or wrong. Send 'Authorization: Bearer KEY'.", code="invalid_api_key")


def forbidden() -> ApiError:
    """403: the key is that of a user."""
    text = "Replicas are taken out with the gateway's own key, not with one of gateway.keys."
    return ApiError(403, text, code="insufficient_permissions")


def too_long(max_body_bytes: int) -> ApiError:
    """413: the body exceeds the limit."""
    return ApiError(
        413, f"The body is longer than {max_body_bytes} bytes (gateway.max_body_bytes). Send a shorter one."
    )


def too_slow(timeout_s: float) -> ApiError:
    """408: the request was not complete in time."""
    return ApiError(408, f"The request did not arrive within {timeout_s:g} s. Send it again.")


def no_http(status: int, reason: str) -> ApiError:
    """400: what came is no HTTP; only the first line of `reason` is told, what came stands in the others."""
    shown = reason.partition("\n")[0].rstrip(":.")[:MAX_SHOWN_CHARS]
    return ApiError(status, f"The request is no valid HTTP: {shown}.")


def failed(status: int) -> ServerError:
    """500: the gateway itself has failed."""
    return ServerError(status, "The gateway has failed at this request. Its log says why.")


def unknown_route(error: web.HTTPException, request: web.Request) -> ApiError:
    """404, 405 and whatever else aiohttp refuses by itself."""
    return ApiError(error.status, f"{request.method} {request.path}: {error.reason}.")


def answer_error(error: ApiError, headers: Mapping[str, str]) -> web.Response:
    """The response that says `error`."""
    return web.Response(
        status=error.status, body=error.body, content_type="application/json", headers={**error.headers, **headers}
    )
