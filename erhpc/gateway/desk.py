"""Where it is decided what becomes of a request: who may ask, which replica answers, and how it is counted.

It holds no connection: whoever reads requests asks here, and says here how each ended.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

from erhpc.config import RouterConfig
from erhpc.gateway.admission import Admission
from erhpc.gateway.errors import (
    ApiError,
    Outcome,
    Phase,
    ReplicaError,
    too_many_of_key,
    unauthorized,
    unavailable,
    unknown_model,
)
from erhpc.gateway.keys import Holder, KeyRing
from erhpc.gateway.ledger import Count
from erhpc.gateway.metrics import CANCELS, KEY_IN_FLIGHT, OVERFLOW, PLACED, REQUESTS, RETRIES, TOKENS, WAITING, Metrics
from erhpc.gateway.replicas import Replica
from erhpc.gateway.requests import REQUEST_ID, Inquiry, InquiryTraits
from erhpc.gateway.retries import MAX_RETRIES, RetryBudget, is_failure, is_sign_of_life
from erhpc.gateway.surface import needs_key
from erhpc.plan.passes import PASS_LIFETIME_S, PASS_PARAMETER, sign_pass
from erhpc.plan.protocol import EXPERT_HEADER, REPLICA_HEADER
from erhpc.plan.specs import GatewaySpec
from erhpc.routing.experts import NoLiveReplica
from erhpc.routing.policy import Choice
from erhpc.routing.router import Router, UnknownModel

SPARE_FILES = 256
"""Open files besides streams: libraries, logs, probes, clients that are refused or only connected."""
MAX_STREAMS = 100_000


@dataclass(slots=True)
class Forward:
    """A request on its way: what is passed on, to whom, and what else may be done with it."""

    replica: Replica
    path: str
    """Of the route, as the replica knows it; with the query."""
    body: bytes
    request_id: str
    reply_headers: dict[str, str]
    """Headers the gateway adds to the answer."""
    inquiry: Inquiry
    traits: InquiryTraits
    passed_headers: tuple[tuple[str, str], ...] = ()
    """Headers of the request that the replica gets too."""
    tried: tuple[int, ...] = ()
    """Replicas that failed."""
    began_ns: int = 0
    """When the request was complete, or its wait for an expert over, by the performance counter (plain relay)."""

    @property
    def url(self) -> str:
        """Where the replica answers this."""
        return self.replica.endpoint.url + self.path


class Flight:
    """One request while a replica answers it. It counts as cancelled unless another end is told."""

    __slots__ = ("_desk", "_is_over", "_replica", "has_begun", "outcome")

    def __init__(self, desk: Desk, replica: Replica) -> None:
        self.outcome = Outcome.CANCELLED
        self.has_begun = False
        """Whether anything of the answer has come, be it no head: vLLM sends that before it reads the prompt."""
        self._desk = desk
        self._replica = replica
        self._is_over = False
        replica.begin_request(time.monotonic_ns())

    def move(self, replica: Replica) -> None:
        """Another replica answers it."""
        self._replica.end_request()
        self._replica = replica
        replica.begin_request(time.monotonic_ns())

    def end(self) -> None:
        """Count the end, once however often it is told."""
        if not self._is_over:
            self._is_over = True
            self._replica.end_request()
            self._desk.note_end(self._replica, self.outcome, has_begun=self.has_begun)

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Visit:
    """One request of a key while it is in the gateway."""

    __slots__ = ("_count",)

    def __init__(self, count: Count | None) -> None:
        self._count = count

    def end(self) -> None:
        """It is over; nothing happens the second time."""
        count, self._count = self._count, None
        if count is not None:
            count.add(-1)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


_FREE_VISIT = Visit(None)


class Desk:
    """Decides on requests; one per process."""

    def __init__(
        self, spec: GatewaySpec, replicas: list[Replica], router: Router, metrics: Metrics, keys: KeyRing
    ) -> None:
        self.spec = spec
        self.replicas = replicas
        self.metrics = metrics
        self.keys = keys
        limits = spec.limits
        most = limits.max_in_flight or count_possible_streams() * limits.processes
        self.admission = Admission(
            lambda: most,
            limits.max_queued,
            limits.queue_timeout_s,
            placed=metrics.count("erhpc_admitted"),
            waiting=metrics.count("erhpc_queued"),
        )
        self._router = router
        self._retries = RetryBudget()
        self._ends: dict[tuple[str, Outcome], Count] = {}
        self._queues = {expert: self._make_queue(expert) for expert in router.models[1:]} if self.waits else {}

    @property
    def models(self) -> tuple[str, ...]:
        """Every model name that is answered."""
        return self._router.models

    @property
    def waits(self) -> bool:
        """Whether requests wait for room at their expert."""
        return self.spec.router.overflow == "wait"

    def tick(self, now_s: float) -> None:
        """Look after those who wait; due several times a second, more often while someone waits."""
        for admission in (self.admission, *self._queues.values()):
            admission.expire(now_s)
            admission.admit()

    def turn_away(self) -> None:
        """Refuse the requests that wait for anything, and all that come from now on: the gateway is about to stop."""
        for admission in (self.admission, *self._queues.values()):
            admission.close()

    @property
    def has_waiting(self) -> bool:
        """Whether a request of this process waits for anything."""
        return bool(self.admission.waiting.value) or any(queue.waiting.value for queue in self._queues.values())

    def receive(self, path: str, authorization: bytes) -> Visit:
        """Let a request in, which must say when it is over.

        Raises ApiError 401 if `path` needs a key and `authorization` holds none that is known, 429 if the key has as
        many requests in flight as it may.
        """
        if self.keys.is_open or not needs_key(path):
            return _FREE_VISIT
        holder = self.keys.find(authorization)
        if holder is None:
            raise unauthorized()
        return self._visit(holder)

    def _visit(self, holder: Holder) -> Visit:
        limit = self.spec.limits.max_in_flight_per_key
        if limit is None or holder.slot is None:
            return _FREE_VISIT
        count = self.metrics.count(KEY_IN_FLIGHT, str(holder.slot))
        if count.total >= limit:
            raise too_many_of_key(limit)
        count.add(1)
        return Visit(count)

    def decide(
        self,
        path: str,
        inquiry: Inquiry,
        request_id: str,
        *,
        session_header: str | None,
        passed_headers: tuple[tuple[str, str], ...] = (),
    ) -> Forward:
        """Find the replica for a request; `session_header` is the value of protocol.SESSION_HEADER, None without one.

        Raises ApiError if the request or the replicas are not fit for it.
        """
        traits = InquiryTraits(inquiry.content, session_header, self.spec.router)
        metrics = self.metrics
        try:
            choice = self._router.choose(inquiry.model, traits)
        except UnknownModel as error:
            raise unknown_model(error.model, self._router.models) from error
        except NoLiveReplica as error:
            metrics.count(REQUESTS, error.expert or "", "", Outcome.NO_REPLICA).add()
            raise unavailable(error.expert) from error
        if choice.classify_ns is not None:
            metrics.add_classification(choice.classify_ns, default_used=choice.default_used)
        if choice.overflow_from is not None:
            metrics.count(OVERFLOW, choice.overflow_from, choice.expert).add()
        self._retries.note_request()
        replica = self.replicas[choice.replica]
        headers = describe_choice(request_id, replica, choice)
        body = inquiry.body_for(replica.endpoint.model)
        return Forward(replica, path, body, request_id, headers, inquiry, traits, passed_headers)

    def find_queue(self, forward: Forward) -> Admission | None:
        """The queue of the request's expert; None: it need not wait for room there."""
        return self._queues[forward.replica.expert] if self._queues else None

    def choose_again(self, forward: Forward) -> None:
        """Pick the replica anew, after a wait. Raises ApiError 503 if the expert has none any more."""
        try:
            self._move(forward, self._router.pick_replica(forward.replica.expert, forward.traits))
        except NoLiveReplica as error:
            self.metrics.count(REQUESTS, forward.replica.expert, "", Outcome.NO_REPLICA).add()
            raise unavailable(error.expert) from error

    def retry(self, forward: Forward, outcome: Outcome) -> bool:
        """Send the request to another replica of its expert, if there is one and it may be tried again."""
        failed = forward.replica
        tried = (*forward.tried, self.replicas.index(failed))
        if len(tried) > MAX_RETRIES:
            return False
        try:
            picked = self._router.pick_replica(failed.expert, forward.traits, tried)
        except NoLiveReplica:
            return False
        if not self._retries.take():
            return False
        forward.tried = tried
        self._move(forward, picked)
        forward.reply_headers["x-erhpc-retries"] = str(len(tried))
        self.metrics.count(RETRIES, failed.name, outcome).add()
        return True

    @property
    def redirects(self) -> bool:
        """Whether clients are sent to the replica, and ask it themselves."""
        return self.spec.limits.data_path == "redirect"

    def redirect(self, forward: Forward, key: str | None, now_s: float) -> dict[str, str]:
        """Count a request as sent on, and the headers that send it; `key` is the replica's, `now_s` Unix time."""
        name = forward.replica.name
        location = forward.url
        if key is not None:
            value = sign_pass(key, name, int(now_s) + PASS_LIFETIME_S)
            location += f"{'&' if '?' in location else '?'}{PASS_PARAMETER}={value}"
        self.note_end(forward.replica, Outcome.REDIRECTED, has_begun=False)
        return {**forward.reply_headers, "location": location}

    def begin(self, forward: Forward) -> Flight:
        """Count a request as in flight at its replica until the flight is ended."""
        return Flight(self, forward.replica)

    def note_failure(self, forward: Forward, error: ReplicaError) -> None:
        """Its replica has failed a request."""
        forward.replica.note_failure(error)

    def note_status(self, forward: Forward, status: int) -> None:
        """Its replica has answered with `status`."""
        forward.replica.note_heard(time.monotonic_ns())
        if is_sign_of_life(status):
            forward.replica.note_answer()
        elif is_failure(status):
            forward.replica.note_failure(ReplicaError(status, "", Outcome.REJECTED))

    def note_tokens(self, forward: Forward, prompt_tokens: int, completion_tokens: int) -> None:
        """An answer has said what it used."""
        name = forward.replica.name
        self.metrics.count(TOKENS, name, "prompt").add(prompt_tokens)
        self.metrics.count(TOKENS, name, "completion").add(completion_tokens)

    def note_end(self, replica: Replica, outcome: Outcome, *, has_begun: bool) -> None:
        """A request has ended at a replica."""
        key = (replica.name, outcome)
        count = self._ends.get(key)
        if count is None:
            count = self._ends[key] = self.metrics.count(REQUESTS, replica.expert, replica.name, outcome)
        count.add()
        if outcome is Outcome.CANCELLED:
            self.metrics.count(CANCELS, Phase.STREAM if has_begun else Phase.PREFILL).add()

    def note_leave(self) -> None:
        """A client has left while it waited for its turn."""
        self.metrics.count(REQUESTS, "", "", Outcome.CANCELLED).add()
        self.metrics.count(CANCELS, Phase.QUEUE).add()

    def note_refusal(self, error: ApiError) -> None:
        """Count a request that was not accepted."""
        if error.code == "overloaded":
            self.metrics.count(REQUESTS, "", "", Outcome.OVERLOADED).add()
        elif error.status < 500:
            self.metrics.count(REQUESTS, "", "", Outcome.REFUSED).add()

    def _move(self, forward: Forward, picked: int) -> None:
        replica = self.replicas[picked]
        forward.replica = replica
        forward.body = forward.inquiry.body_for(replica.endpoint.model)
        forward.reply_headers[REPLICA_HEADER] = replica.name

    def _make_queue(self, expert: str) -> Admission:
        router: RouterConfig = self.spec.router
        limits = self.spec.limits
        return Admission(
            lambda: router.overflow_limit * self._router.count_live(expert),
            limits.max_queued,
            limits.queue_timeout_s,
            placed=self.metrics.count(PLACED, expert),
            waiting=self.metrics.count(WAITING, expert),
        )


def count_possible_streams() -> int:
    """How many answers the open files allowed to this process suffice for: a stream needs two."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max((allowed - SPARE_FILES) // 2, 1) if allowed != resource.RLIM_INFINITY else MAX_STREAMS


def describe_choice(request_id: str, replica: Replica, choice: Choice) -> dict[str, str]:
    """The headers that say who answers and why."""
    headers = {REQUEST_ID: request_id, EXPERT_HEADER: replica.expert, REPLICA_HEADER: replica.name}
    if choice.cluster is not None:
        headers["x-erhpc-cluster"] = str(choice.cluster)
    if choice.classify_ns is not None:
        headers["x-erhpc-classify-us"] = f"{choice.classify_ns / 1e3:.1f}"
    if choice.overflow_from is not None:
        headers["x-erhpc-overflow-from"] = choice.overflow_from
    return headers
