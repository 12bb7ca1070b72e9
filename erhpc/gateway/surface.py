"""What the gateway tells about itself, on aiohttp: health, metrics, telemetry, status, and the taking out of replicas.

All of it comes from the ledger, so each process of a gateway tells of the whole: those that pass requests on, and the
one that watches over them, which answers also when the others have too much to do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from erhpc.gateway.errors import ApiError, Outcome, forbidden
from erhpc.gateway.histogram import Histogram
from erhpc.gateway.keys import KeyRing
from erhpc.gateway.metrics import CONTENT_TYPE, HISTOGRAMS, REQUESTS, RETRIES, WAITING, Metrics
from erhpc.gateway.replicas import Replica, find_missing_experts
from erhpc.gateway.status_page import STATUS_PAGE
from erhpc.results.telemetry import Lookback, TimedValues, parse_lookback

STATES = ("up", "down", "draining")
ANSWERED = (Outcome.OK, Outcome.REJECTED)


class Surface:
    """Tells of a gateway; `lags` are those of its processes that pass requests on, by the monotonic clock."""

    def __init__(
        self,
        metrics: Metrics,
        replicas: Sequence[Replica],
        lags: Sequence[TimedValues],
        keys: KeyRing,
        *,
        is_emulated: bool,
    ) -> None:
        self._metrics = metrics
        self._keys = keys
        self._replicas = replicas
        self._lags = lags
        self._is_emulated = is_emulated
        self._began_s = time.monotonic()

    def add_routes(self, app: web.Application) -> None:
        """Let `app` answer for all of this."""
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/telemetry", self._telemetry)
        app.router.add_get("/status", self._status)
        app.router.add_get("/status.json", self._status_values)
        app.router.add_post("/replicas/{name}/drain", self._drain)
        app.router.add_post("/replicas/{name}/resume", self._resume)

    async def _health(self, request: web.Request) -> web.Response:
        missing, num_processes = find_missing_experts(self._replicas), self._metrics.total("erhpc_processes")
        if not missing and num_processes:
            return answer_json({"status": "ok"})
        why = {"experts_without_live_replica": missing, "processes": num_processes}
        return answer_json({"status": "unavailable", **why}, status=503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _telemetry(self, request: web.Request) -> web.Response:
        span_s = read_lookback(request).span_s(time.monotonic())
        lag_s = max((lags.quantile(0.99, *span_s) for lags in self._lags), default=0.0)
        return answer_json({"lag_p99_s": lag_s, "restarts": self._metrics.total("erhpc_process_restarts_total")})

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(text=STATUS_PAGE, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def _status_values(self, request: web.Request) -> web.Response:
        response = answer_json(self.describe())
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _drain(self, request: web.Request) -> web.Response:
        return self._set_draining(request, value=True)

    async def _resume(self, request: web.Request) -> web.Response:
        return self._set_draining(request, value=False)

    def _set_draining(self, request: web.Request, *, value: bool) -> web.Response:
        if not self._keys.may_manage(request.headers.get("Authorization", "").encode(errors="surrogateescape")):
            raise forbidden()
        name = request.match_info["name"]
        replica = next((replica for replica in self._replicas if replica.name == name), None)
        if replica is None:
            names = ", ".join(replica.name for replica in self._replicas)
            raise ApiError(404, f"There is no replica {name!r}. Allowed: {names}.", code="replica_not_found")
        replica.is_draining = value
        return answer_json(self._describe_replica(replica))

    def describe(self) -> dict[str, Any]:
        """The state of the gateway, as /status.json has it."""
        ledger, metrics = self._metrics.ledger, self._metrics
        experts = list(dict.fromkeys(replica.expert for replica in self._replicas))
        requests = {key[1:]: ledger.total(key) for key in ledger.keys(REQUESTS)}
        outcomes = {outcome.value: sum(n for key, n in requests.items() if key[2] == outcome) for outcome in Outcome}
        now_s = time.monotonic()
        placed, queued = ledger.by_row(("erhpc_admitted",)), ledger.by_row(("erhpc_queued",))
        processes = [
            {"admitted": placed[row], "queued": queued[row], "seen_s_ago": now_s - lags.last_s if lags.last_s else None}
            for row, lags in enumerate(self._lags)
        ]
        return {
            "is_emulated": self._is_emulated,
            "up_s": now_s - self._began_s,
            "admitted": metrics.total("erhpc_admitted"),
            "queued": metrics.total("erhpc_queued") + metrics.total(WAITING),
            "outcomes": outcomes,
            "retries": metrics.total(RETRIES),
            "restarts": metrics.total("erhpc_process_restarts_total"),
            "processes": processes,
            "replicas": [self._describe_replica(replica) for replica in self._replicas],
            "experts": [{"name": name, "in_flight": self._in_flight(name)} for name in experts],
            "times": {name: describe_times(Histogram(ledger, name)) for name in HISTOGRAMS},
        }

    def _in_flight(self, expert: str) -> int:
        return sum(replica.in_flight for replica in self._replicas if replica.expert == expert)

    def _describe_replica(self, replica: Replica) -> dict[str, Any]:
        ledger = self._metrics.ledger
        ends = {key[3]: ledger.total(key) for key in ledger.keys(REQUESTS) if key[2] == replica.name}
        answered = sum(ends.get(outcome, 0) for outcome in ANSWERED)
        return {
            "name": replica.name,
            "expert": replica.expert,
            "state": STATES[replica.state],
            "in_flight": replica.in_flight,
            "answered": answered,
            "cancelled": ends.get(Outcome.CANCELLED, 0),
            "failed": sum(ends.values()) - answered - ends.get(Outcome.CANCELLED, 0),
        }


def needs_key(path: str) -> bool:
    """Whether only those who hold a key may ask for `path`."""
    return path not in ("/health", "/metrics", "/status", "/status.json")


def describe_times(histogram: Histogram) -> dict[str, float | int | None]:
    """Number, mean and bounds of the median and the 99th percentile, seconds; null where there is none."""
    bounds = {"p50_s": histogram.quantile_s(0.5), "p99_s": histogram.quantile_s(0.99)}
    finite = {name: bound if bound != float("inf") else None for name, bound in bounds.items()}
    return {"number": histogram.num_values, "mean_s": histogram.mean_s, **finite}


def read_lookback(request: web.Request) -> Lookback:
    """The time that /telemetry is asked for. Raises ApiError 400 if it is none (see `parse_lookback`)."""
    try:
        return parse_lookback(request.query)
    except ValueError as error:
        raise ApiError(400, str(error), param=str(error).partition("=")[0]) from error


def answer_json(value: object, *, status: int = 200) -> web.Response:
    """`value` as a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
