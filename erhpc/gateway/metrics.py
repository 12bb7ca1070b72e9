"""What the gateway counts, in its ledger, and its text for Prometheus (exposition format 0.0.4).

It knows no HTTP; the state of replicas is handed in when the text is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from erhpc.gateway.errors import Outcome, Phase
from erhpc.gateway.histogram import Histogram, name_cells
from erhpc.gateway.ledger import Count, Key, Ledger
from erhpc.gateway.replicas import OPENED, REPLICA_CELLS, Replica
from erhpc.plan.specs import Endpoint

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REQUESTS = "erhpc_requests_total"
RETRIES = "erhpc_retries_total"
TOKENS = "erhpc_tokens_total"
CANCELS = "erhpc_cancels_total"
OVERFLOW = "erhpc_overflow_total"
HISTOGRAMS = {
    "erhpc_queue_seconds": "Wait of a request for its turn, of those that waited.",
    "erhpc_classify_seconds": "Time to classify a text.",
    "erhpc_forward_seconds": "From a request's last byte to when it was sent on; a wait for its turn does not count.",
    "erhpc_first_write_seconds": "From the first token of a stream to when it was written to the client.",
    "erhpc_loop_lag_seconds": "How late the event loop ran, every 50 ms in each process.",
}
_PLAIN = {
    "erhpc_admitted": ("gauge", "Requests that have a place now, read, relayed or being refused."),
    "erhpc_queued": ("gauge", "Requests that wait for a place now."),
    "erhpc_default_expert_total": ("counter", "Texts with no known word."),
    "erhpc_processes": ("gauge", "Processes that pass requests on and listen now."),
    "erhpc_process_restarts_total": ("counter", "Processes of the gateway that died and were started again."),
}
WAITING = "waiting for expert"
PLACED = "placed at expert"
KEY_IN_FLIGHT = "in flight of key"
KEY_SLOTS = 1024
REPLICA_OUTCOMES = (
    Outcome.OK, Outcome.REJECTED, Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.SILENT, Outcome.CANCELLED, Outcome.LOST,
    Outcome.REDIRECTED,
)  # fmt: skip
EXPERT_OUTCOMES = (Outcome.NO_REPLICA, Outcome.OVERLOADED, Outcome.REFUSED, Outcome.CANCELLED, Outcome.LOST)
RETRIED_OUTCOMES = (Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.REJECTED)
TOKEN_KINDS = ("prompt", "completion")


def name_ledger_cells(endpoints: Sequence[Endpoint]) -> list[Key]:
    """The cells of a gateway before these replicas, the same in each of its processes."""
    replicas = [endpoint.replica for endpoint in endpoints]
    experts = list(dict.fromkeys(endpoint.expert for endpoint in endpoints))
    cells: list[Key] = []
    for endpoint in endpoints:
        cells += [(REQUESTS, endpoint.expert, endpoint.replica, outcome) for outcome in REPLICA_OUTCOMES]
    cells += product([REQUESTS], ["", *experts], [""], EXPERT_OUTCOMES)
    cells += product([RETRIES], replicas, RETRIED_OUTCOMES)
    cells += product([TOKENS], replicas, TOKEN_KINDS)
    cells += product(REPLICA_CELLS, replicas)
    cells += product([CANCELS], Phase)
    cells += product([OVERFLOW], experts, experts)
    cells += product([WAITING, PLACED], experts)
    cells += product([KEY_IN_FLIGHT], map(str, range(KEY_SLOTS)))
    cells += [(name,) for name in _PLAIN]
    for name in HISTOGRAMS:
        cells += name_cells(name)
    return cells


class Metrics:
    """The counts of this process, bound once: counting costs no look-up of labels."""

    def __init__(self, ledger: Ledger, replicas: Sequence[Replica]) -> None:
        self.ledger = ledger
        self._replicas = replicas
        self._counts: dict[Key, Count] = {}
        self.classify = Histogram(ledger, "erhpc_classify_seconds")
        self.queue = Histogram(ledger, "erhpc_queue_seconds")
        self.forward = Histogram(ledger, "erhpc_forward_seconds")
        self.first_write = Histogram(ledger, "erhpc_first_write_seconds")
        self.loop_lag = Histogram(ledger, "erhpc_loop_lag_seconds")

    def count(self, *key: str) -> Count:
        """The count of a cell: a name and its labels."""
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = self.ledger.count(key)
        return count

    def add_classification(self, classify_ns: int, *, default_used: bool) -> None:
        """Count one text that was classified."""
        self.classify.add(classify_ns)
        if default_used:
            self.count("erhpc_default_expert_total").add()

    def render(self) -> str:
        """The text of /metrics."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from self._counter(REQUESTS, "Requests that ended, by how they ended.", "expert", "replica", "outcome")
        yield from self._gauge("erhpc_in_flight", "Requests being answered now.", lambda replica: replica.in_flight)
        yield from self._gauge("erhpc_replica_up", "1: gets requests; 0: it does not.", lambda replica: replica.live)
        yield from self._gauge(
            "erhpc_circuit_state", "0: closed, answers; 1: open, down; 2: draining.", lambda replica: replica.state
        )
        yield from self._counter(OPENED, "How often a replica was found to be down.", "replica")
        yield from self._counter(RETRIES, "Attempts that failed and were made again elsewhere.", "replica", "outcome")
        yield from self._counter(TOKENS, "Tokens that answers said they used.", "replica", "kind")
        yield from self._counter(CANCELS, "Requests whose client left, by when it left.", "phase")
        yield from self._counter(OVERFLOW, "Texts whose expert is full or down, sent to another.", "from", "to")
        yield from _head(
            "erhpc_queued_for_expert", "gauge", "Requests that wait for their expert (router.overflow=wait)."
        )
        yield f"erhpc_queued_for_expert {self.total(WAITING)}"
        for name, (kind, meaning) in _PLAIN.items():
            yield from _head(name, kind, meaning)
            yield f"{name} {self.total(name)}"
        for name, meaning in HISTOGRAMS.items():
            yield from _head(name, "histogram", meaning)
            yield from Histogram(self.ledger, name).lines()

    def total(self, name: str) -> int:
        """What all processes have counted under a name, over all labels."""
        return sum(self.ledger.total(key) for key in self.ledger.keys(name))

    def _gauge(self, name: str, meaning: str, read: Callable[[Replica], int]) -> Iterator[str]:
        yield from _head(name, "gauge", meaning)
        for replica in self._replicas:
            yield f"{name}{_label({'replica': replica.name})} {int(read(replica))}"

    def _counter(self, name: str, meaning: str, *labels: str) -> Iterator[str]:
        """Those that are not 0: most combinations never occur."""
        yield from _head(name, "counter", meaning)
        for key in self.ledger.keys(name):
            if number := self.ledger.total(key):
                yield f"{name}{_label(dict(zip(labels, key[1:], strict=True)))} {number}"


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _label(labels: dict[str, str]) -> str:
    pairs = (f'{name}="{_escape(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
