"""Where it is decided what becomes of a request: who may ask, which replica answers, and how it is counted.

It holds no connection: whoever reads requests asks here, and says here how each ended.
"""

from __future__ import annotations

import hmac
import resource
from collections.abc import Mapping
from dataclasses import dataclass

from erhpc.gateway.admission import Admission
from erhpc.gateway.errors import ApiError, Outcome, ReplicaError, unauthorized, unavailable, unknown_model
from erhpc.gateway.metrics import Metrics
from erhpc.gateway.prober import Prober
from erhpc.gateway.replicas import Replica
from erhpc.gateway.requests import Api, InquiryTraits, parse_inquiry
from erhpc.plan.protocol import API_PATHS
from erhpc.plan.specs import GatewaySpec
from erhpc.routing.experts import NoLiveReplica
from erhpc.routing.policy import Choice
from erhpc.routing.router import Router, UnknownModel

REQUEST_ID = "x-erhpc-request-id"
SPARE_FILES = 256
"""Open files besides streams: libraries, logs, probes, clients that are refused or only connected."""
MAX_STREAMS = 100_000


@dataclass(frozen=True, slots=True)
class Forward:
    """What is passed on, to whom."""

    replica: Replica
    api: Api
    body: bytes
    request_id: str
    reply_headers: Mapping[str, str]
    """Headers the gateway adds to the answer."""

    @property
    def url(self) -> str:
        """Where the replica answers this."""
        return self.replica.endpoint.url + API_PATHS[self.api]


class Flight:
    """One request while a replica answers it. It counts as cancelled unless another end is told."""

    __slots__ = ("_is_over", "_metrics", "_replica", "outcome")

    def __init__(self, replica: Replica, metrics: Metrics) -> None:
        self.outcome = Outcome.CANCELLED
        self._replica = replica
        self._metrics = metrics
        self._is_over = False
        replica.in_flight += 1

    def end(self) -> None:
        """Count the end, once however often it is told."""
        if not self._is_over:
            self._is_over = True
            replica = self._replica
            replica.in_flight -= 1
            self._metrics.requests[replica.expert, replica.name, self.outcome] += 1

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Desk:
    """Decides on requests; one per process."""

    def __init__(
        self, spec: GatewaySpec, replicas: list[Replica], router: Router, prober: Prober, *, key: str | None
    ) -> None:
        self.spec = spec
        self.replicas = replicas
        self.metrics = Metrics()
        limits = spec.limits
        self.admission = Admission(
            limits.max_in_flight or count_possible_streams(), limits.max_queued, limits.queue_timeout_s
        )
        self._router = router
        self._prober = prober
        self._bearer = f"Bearer {key}".encode() if key else None

    @property
    def models(self) -> tuple[str, ...]:
        """Every model name that is answered."""
        return self._router.models

    def check_key(self, path: str, authorization: bytes) -> None:
        """Raises ApiError 401 if `path` needs the key and `authorization` does not hold it."""
        if self._bearer is None or not path.startswith(("/v1/", "/telemetry")):
            return
        if not hmac.compare_digest(authorization, self._bearer):
            raise unauthorized()

    def decide(self, api: Api, body: bytes, request_id: str, *, session_header: str | None) -> Forward:
        """Find the replica for a request; `session_header` is the value of requests.SESSION_HEADER, None without one.

        Raises ApiError if the request or the replicas are not fit for it.
        """
        inquiry = parse_inquiry(api, body)
        traits = InquiryTraits(inquiry.content, session_header, self.spec.router)
        try:
            choice = self._router.choose(inquiry.model, traits)
        except UnknownModel as error:
            raise unknown_model(error.model, self._router.models) from error
        except NoLiveReplica as error:
            self.metrics.requests[error.expert or "", "", Outcome.NO_REPLICA] += 1
            raise unavailable(error.expert) from error
        if choice.classify_ns is not None:
            self.metrics.add_classification(choice.classify_ns, default_used=choice.default_used)
        if choice.overflow_from is not None:
            self.metrics.overflows[choice.overflow_from, choice.expert] += 1
        replica = self.replicas[choice.replica]
        headers = describe_choice(request_id, replica, choice)
        return Forward(replica, api, inquiry.body_for(replica.endpoint.model), request_id, headers)

    def begin(self, forward: Forward) -> Flight:
        """Count a request as in flight at its replica until the flight is ended."""
        return Flight(forward.replica, self.metrics)

    def note_failure(self, forward: Forward, error: ReplicaError) -> None:
        """Take the replica out of service if `error` says that it is down."""
        if error.is_down:
            self._prober.watch(forward.replica)

    def note_refusal(self, error: ApiError) -> None:
        """Count a request that was not accepted."""
        if error.code == "overloaded":
            self.metrics.requests["", "", Outcome.OVERLOADED] += 1
        elif error.status < 500:
            self.metrics.requests["", "", Outcome.REFUSED] += 1


def count_possible_streams() -> int:
    """How many answers the open files allowed to this process suffice for: a stream needs two."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max((allowed - SPARE_FILES) // 2, 1) if allowed != resource.RLIM_INFINITY else MAX_STREAMS


def describe_choice(request_id: str, replica: Replica, choice: Choice) -> dict[str, str]:
    """The headers that say who answers and why."""
    headers = {REQUEST_ID: request_id, "x-erhpc-expert": replica.expert, "x-erhpc-replica": replica.name}
    if choice.cluster is not None:
        headers["x-erhpc-cluster"] = str(choice.cluster)
    if choice.classify_ns is not None:
        headers["x-erhpc-classify-us"] = f"{choice.classify_ns / 1e3:.1f}"
    if choice.overflow_from is not None:
        headers["x-erhpc-overflow-from"] = choice.overflow_from
    return headers
