"""The replicas behind the gateway: how loaded each is, and whether it gets requests.

State in the ledger, which all processes of the gateway see; it knows no HTTP. What is written here is what policies
see. Which failures count, and how many close a replica off, is said here; who comes to know of one is elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from erhpc.gateway.errors import ReplicaError
from erhpc.gateway.ledger import Ledger
from erhpc.plan.specs import Endpoint

OPENED = "erhpc_circuit_opened_total"
REPLICA_CELLS = ("in flight", "off", "failures in a row", "heard ns", OPENED)
FAILURES_TO_OPEN = 3
"""So many failures in a row, with no answer between them, and a replica is down; one refused connection is enough."""

CLOSED, OPEN, DRAINING = 0, 1, 2
"""A replica's state is 0 or a sum of the other two: whether it gets requests is one look at one cell."""


class Replica:
    """One replica. It counts as live until requests or probes find that it is not."""

    __slots__ = ("_failures", "_heard", "_in_flight", "_off", "_opened", "endpoint", "expert", "name")

    def __init__(self, endpoint: Endpoint, ledger: Ledger) -> None:
        self.endpoint = endpoint
        self.expert = endpoint.expert
        self.name = endpoint.replica
        # The last row is that of the process that watches over the others; these cells any process may set.
        shared = ledger.num_rows - 1
        self._in_flight = ledger.count(("in flight", self.name))
        self._off = ledger.count(("off", self.name), row=shared)
        self._failures = ledger.count(("failures in a row", self.name), row=shared)
        self._opened = ledger.count((OPENED, self.name), row=shared)
        self._heard = ledger.count(("heard ns", self.name), row=shared)

    @property
    def in_flight(self) -> int:
        """Requests the replica is answering now, for all processes of the gateway."""
        return self._in_flight.total

    def begin_request(self, now_ns: int) -> None:
        """It has one more request to answer; if that is the only one, its silence counts from now."""
        if not self._in_flight.total:
            self._heard.value = now_ns
        self._in_flight.add(1)

    def end_request(self) -> None:
        """It has one less."""
        self._in_flight.add(-1)

    @property
    def live(self) -> bool:
        """Whether it gets requests."""
        return not self._off.value

    @property
    def is_down(self) -> bool:
        """Whether it was found to be down and has not been well since."""
        return bool(self._off.value & OPEN)

    @property
    def is_draining(self) -> bool:
        """Whether it gets no new requests because someone said so."""
        return bool(self._off.value & DRAINING)

    @is_draining.setter
    def is_draining(self, value: bool) -> None:
        self._off.value = self._off.value & ~DRAINING | DRAINING * value

    @property
    def state(self) -> int:
        """CLOSED, OPEN or DRAINING; OPEN if it is both of these."""
        return OPEN if self.is_down else self._off.value

    @property
    def heard_ns(self) -> int:
        """When something last came from it, or it began to have requests, by the monotonic clock; 0: never."""
        return self._heard.value

    def note_heard(self, now_ns: int) -> None:
        """Something came from it."""
        self._heard.value = now_ns

    def note_answer(self) -> None:
        """It answered, be it that the request was wrong: it is alive."""
        if self._failures.value:
            self._failures.value = 0

    def note_failure(self, error: ReplicaError) -> None:
        """It did not answer, or not to the end."""
        if not error.counts:
            return
        self._failures.add()
        if error.is_down or self._failures.value >= FAILURES_TO_OPEN:
            self.close_off()

    def close_off(self) -> None:
        """It is down: it gets no requests until `let_in`."""
        if not self.is_down:
            self._off.value |= OPEN
            self._opened.add()

    def let_in(self) -> None:
        """It is well again."""
        self._failures.value = 0
        self._off.value &= ~OPEN


def find_missing_experts(replicas: Sequence[Replica]) -> list[str]:
    """Experts without a live replica, in order."""
    live = {replica.expert for replica in replicas if replica.live}
    return list(dict.fromkeys(replica.expert for replica in replicas if replica.expert not in live))
