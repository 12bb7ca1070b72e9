"""What the gateway counts, and its text for Prometheus (exposition format 0.0.4).

It knows no HTTP; the state of replicas is handed in when the text is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from erhpc.gateway.admission import Admission
from erhpc.gateway.errors import Outcome
from erhpc.gateway.replicas import Replica

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters since the start.

    `requests` counts by (expert, replica, outcome), empty names where none was chosen; `overflows` by (the expert that
    was meant, the one that was taken).
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, Outcome]] = Counter()
        self.overflows: Counter[tuple[str, str]] = Counter()
        self.default_expert = 0
        self.classify_ns = 0
        self.classified = 0

    def add_classification(self, classify_ns: int, *, default_used: bool) -> None:
        """Count one text that was classified."""
        self.classified += 1
        self.classify_ns += classify_ns
        self.default_expert += default_used

    def render(self, replicas: Sequence[Replica], admission: Admission) -> str:
        """The text of /metrics."""
        return "".join(f"{line}\n" for line in self._lines(replicas, admission))

    def _lines(self, replicas: Sequence[Replica], admission: Admission) -> Iterator[str]:
        yield from _head("erhpc_requests_total", "counter", "Requests that ended, by how they ended.")
        for (expert, replica, outcome), count in sorted(self.requests.items()):
            labels = {"expert": expert, "replica": replica, "outcome": outcome}
            yield f"erhpc_requests_total{_label(labels)} {count}"
        yield from _head("erhpc_in_flight", "gauge", "Requests being answered now.")
        for state in replicas:
            yield f"erhpc_in_flight{_label({'replica': state.name})} {state.in_flight}"
        yield from _head("erhpc_admitted", "gauge", "Requests that have a place now, read, relayed or being refused.")
        yield f"erhpc_admitted {admission.num_in_flight}"
        yield from _head("erhpc_queued", "gauge", "Requests that wait for a place now.")
        yield f"erhpc_queued {admission.num_queued}"
        yield from _head("erhpc_default_expert_total", "counter", "Texts with no known word.")
        yield f"erhpc_default_expert_total {self.default_expert}"
        yield from _head("erhpc_overflow_total", "counter", "Texts whose expert is full or down, sent to another.")
        for (wanted, taken), count in sorted(self.overflows.items()):
            yield f"erhpc_overflow_total{_label({'from': wanted, 'to': taken})} {count}"
        yield from _head("erhpc_classify_seconds", "summary", "Time to classify a text.")
        yield f"erhpc_classify_seconds_sum {self.classify_ns / 1e9:.9f}"
        yield f"erhpc_classify_seconds_count {self.classified}"


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _label(labels: dict[str, str]) -> str:
    pairs = (f'{name}="{_escape(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
