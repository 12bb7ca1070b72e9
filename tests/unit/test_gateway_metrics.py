"""What /metrics says, whatever the replicas are called and whoever counted."""

from __future__ import annotations

import re

import pytest

from erhpc.gateway.errors import Outcome, Phase
from erhpc.gateway.ledger import Ledger
from erhpc.gateway.metrics import (
    CANCELS,
    KEY_IN_FLIGHT,
    OVERFLOW,
    PLACED,
    REQUESTS,
    RETRIES,
    TOKENS,
    WAITING,
    Metrics,
    name_ledger_cells,
)
from erhpc.gateway.replicas import Replica
from erhpc.plan.specs import Endpoint

NAMES = {
    "erhpc_requests_total": "counter",
    "erhpc_in_flight": "gauge",
    "erhpc_replica_up": "gauge",
    "erhpc_circuit_state": "gauge",
    "erhpc_circuit_opened_total": "counter",
    "erhpc_retries_total": "counter",
    "erhpc_tokens_total": "counter",
    "erhpc_cancels_total": "counter",
    "erhpc_overflow_total": "counter",
    "erhpc_queued_for_expert": "gauge",
    "erhpc_admitted": "gauge",
    "erhpc_queued": "gauge",
    "erhpc_default_expert_total": "counter",
    "erhpc_processes": "gauge",
    "erhpc_process_restarts_total": "counter",
    "erhpc_queue_seconds": "histogram",
    "erhpc_classify_seconds": "histogram",
    "erhpc_forward_seconds": "histogram",
    "erhpc_first_write_seconds": "histogram",
    "erhpc_loop_lag_seconds": "histogram",
}
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (-?\d+(?:\.\d+)?)')
ODD = 'a"b\\c\nd'


def make_endpoints(*names: str) -> list[Endpoint]:
    return [Endpoint(replica=name, expert=name.partition("-")[0], model="m", url="") for name in names]


def make(*names: str, num_rows: int = 1) -> list[Metrics]:
    """Metrics of as many processes before replicas of these names, of experts by their first word."""
    endpoints = make_endpoints(*names)
    cells = name_ledger_cells(endpoints)
    memory = bytearray(Ledger.size_bytes(len(cells), num_rows))
    ledgers = [Ledger(cells, num_rows=num_rows, row=row, memory=memory) for row in range(num_rows)]
    return [Metrics(ledger, [Replica(endpoint, ledger) for endpoint in endpoints]) for ledger in ledgers]


def read(metrics: Metrics) -> dict[str, float]:
    """The samples, after checking that the text is what Prometheus takes: each family once, with its head before it."""
    families: dict[str, str] = {}
    samples: dict[str, float] = {}
    text = metrics.render()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert helped == name
            assert name not in families
            families[name] = kind
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            stem = re.sub("_(bucket|sum|count)$", "", found[1]) if families[name] == "histogram" else found[1]
            assert stem == name, "a sample outside its family"
            assert line.rpartition(" ")[0] not in samples
            samples[line.rpartition(" ")[0]] = float(found[3])
    assert families == NAMES
    return samples


def test_every_documented_name_is_there_from_the_start_with_its_kind():
    [metrics] = make("math-0")
    samples = read(metrics)
    assert samples['erhpc_in_flight{replica="math-0"}'] == 0
    assert samples['erhpc_replica_up{replica="math-0"}'] == 1
    assert not any(samples[name] for name in samples if not name.startswith("erhpc_replica_up"))


@pytest.mark.parametrize(
    ("key", "sample"),
    [
        ((REQUESTS, "math", "math-0", Outcome.OK), 'erhpc_requests_total{expert="math",replica="math-0",outcome="ok"}'),
        ((REQUESTS, "", "", Outcome.LOST), 'erhpc_requests_total{expert="",replica="",outcome="lost"}'),
        ((REQUESTS, "math", "", Outcome.REFUSED), 'erhpc_requests_total{expert="math",replica="",outcome="refused"}'),
        ((RETRIES, "math-0", Outcome.BROKEN), 'erhpc_retries_total{replica="math-0",outcome="broken"}'),
        ((TOKENS, "code-0", "prompt"), 'erhpc_tokens_total{replica="code-0",kind="prompt"}'),
        ((CANCELS, Phase.PREFILL), 'erhpc_cancels_total{phase="prefill"}'),
        ((OVERFLOW, "math", "code"), 'erhpc_overflow_total{from="math",to="code"}'),
        ((WAITING, "code"), "erhpc_queued_for_expert"),
        (("erhpc_processes",), "erhpc_processes"),
    ],
)  # fmt: skip
def test_what_any_process_counts_is_told_by_each_with_its_labels(key: tuple[str, ...], sample: str):
    first, second, third = make("math-0", "code-0", num_rows=3)
    first.count(*key).add(2)
    second.count(*key).add(3)
    assert read(third)[sample] == 5
    assert read(first) == read(second) == read(third)


def test_names_that_would_break_the_text_are_escaped():
    [metrics] = make(ODD)
    metrics.count(REQUESTS, ODD, ODD, Outcome.OK).add(2)
    shown = r"a\"b\\c\nd"
    samples = read(metrics)
    assert samples[f'erhpc_requests_total{{expert="{shown}",replica="{shown}",outcome="ok"}}'] == 2
    assert samples[f'erhpc_in_flight{{replica="{shown}"}}'] == 0


def test_a_classification_is_counted_with_its_time():
    [metrics] = make("math-0")
    metrics.add_classification(1500, default_used=True)
    metrics.add_classification(2500, default_used=False)
    samples = read(metrics)
    assert samples["erhpc_default_expert_total"] == 1
    assert samples["erhpc_classify_seconds_count"] == 2
    assert samples["erhpc_classify_seconds_sum"] == pytest.approx(4e-6)


def test_the_state_of_replicas_is_told():
    names = ("math-0", "math-1", "code-0")
    [metrics] = make(*names)
    first, second, third = (Replica(endpoint, metrics.ledger) for endpoint in make_endpoints(*names))
    first.close_off()
    second.is_draining = True
    third.begin_request(0)
    samples = read(metrics)
    assert [samples[f'erhpc_circuit_state{{replica="{name}"}}'] for name in names] == [1, 2, 0]
    assert [samples[f'erhpc_replica_up{{replica="{name}"}}'] for name in names] == [0, 0, 1]
    assert samples['erhpc_circuit_opened_total{replica="math-0"}'] == 1
    assert samples['erhpc_in_flight{replica="code-0"}'] == 1


def test_no_key_is_told_and_what_only_the_gateway_needs_is_not_shown():
    [metrics] = make("math-0")
    before = metrics.render()
    metrics.count(KEY_IN_FLIGHT, "7").add()
    metrics.count(PLACED, "math").add()
    assert metrics.render() == before
