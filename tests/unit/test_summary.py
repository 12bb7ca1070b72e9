from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import ProfileConfig, SloConfig, WorkloadConfig
from erhpc.results.record import LEVEL_COLUMNS, LevelIdentity
from erhpc.results.summary import commonest_error, summarise_level
from tests.unit.records import MS, SECOND, busy_records, make_failed, make_part, make_record, shift_record

CLOSED = LevelIdentity(
    experiment="quickstart", run_id="20260101-120000-ab12", engine="vllm", level=0, users=1, num_replicas=1, num_gpus=1
)
CHANGING = WorkloadConfig(profile=ProfileConfig(kind="steps"))
"""A load that is not meant to stay the same."""
OPEN = replace(CLOSED, users=None, arrivals="poisson", rate_per_s=20.0)


def summarise(*parts, identity=CLOSED, **facts):
    usual = {
        "gateway_lag_p99_s": None,
        "engine_lag_p99_s": None,
        "reasons": [],
        "slo": SloConfig(),
        "workload": WorkloadConfig(),
        "capacity_tokens_per_s": None,
    }
    return summarise_level(identity, list(parts), **(usual | facts))


def test_a_summary_has_exactly_the_columns_of_the_schema():
    names = [column.name for column in LEVEL_COLUMNS]

    assert list(summarise(make_part(busy_records()))) == names
    assert list(summarise()) == names


def test_a_quiet_busy_level_is_valid():
    row = summarise(make_part(busy_records()))

    assert (row["valid"], row["invalid_reasons"]) == (True, [])
    assert row["users_held"] == pytest.approx(1)
    assert row["output_tokens_per_s"] == pytest.approx(31), "the last token of the last request is not inside"
    assert row["total_tokens_per_s"] == pytest.approx(31 + 7 * 7)
    assert (row["in_flight_start"], row["in_flight_end"], row["in_flight_max"]) == (1, 0, 1)


def test_the_wait_in_the_gateway_is_of_requests_sent_in_the_window_whose_heads_tell_it():
    records = [make_record(gateway_queue_s=wait_s) for wait_s in (0.0, 0.0, 0.3)]
    others = [make_failed(), make_record(gateway_queue_s=9.0, phase="warmup")]

    row = summarise(make_part([*records, *others, make_failed(gateway_queue_s=0.5)]))

    assert row["gateway_queued_share"] == pytest.approx(1 / 2)
    assert row["gateway_queue_mean_s"] == pytest.approx(0.2)
    assert row["gateway_queue_p99_s"] == pytest.approx(0.494)
    assert any(reason.startswith("gateway-bound: p99 wait") for reason in row["invalid_reasons"])


def test_without_a_gateway_nobody_knows_of_a_wait_there():
    row = summarise(make_part(busy_records()))

    columns = ("gateway_queued_share", "gateway_queue_mean_s", "gateway_queue_p99_s")
    assert [row[name] for name in columns] == [None] * 3


def test_latencies_are_of_requests_sent_in_the_window_that_finished_well():
    slow = {"ttft_ns": 5 * SECOND}
    others = [make_record(**slow, phase="warmup"), make_record(**slow, phase="drain"), make_failed()]
    others.append(make_record(**slow, status="cancelled"))

    row = summarise(make_part([*busy_records(), *others]))

    assert row["ttft_p99_s"] == pytest.approx(0.065)
    assert row["normalised_mean_s"] == pytest.approx(0.125 / 4)
    assert row["itl_p99_s"] == pytest.approx(0.020)
    assert (row["requests_ok"], row["requests_failed"], row["requests_cancelled"]) == (8, 1, 1)


def test_clients_with_different_clocks_add_up():
    elsewhere_ns = 10**18
    others = [replace(shift_record(record, elsewhere_ns), expert="law") for record in busy_records()]
    first = make_part(busy_records())
    second = make_part(others, elsewhere_ns, elsewhere_ns + SECOND, lag_p99_s=0.004, warmup_s=6.0)

    row = summarise(first, replace(second, clock_offset_ns=elsewhere_ns), identity=replace(CLOSED, users=2))

    assert row["users_held"] == pytest.approx(2)
    assert row["requests_per_s"] == pytest.approx(14)
    assert row["window_s"] == pytest.approx(1)
    assert (row["client_lag_p99_s"], row["warmup_s"], row["client_workers"]) == (0.004, 6.0, 2)
    assert row["expert_share"] == {"law": 0.5, "math": 0.5}
    assert (row["in_flight_max"], row["clock_offset_s"]) == (2, 1e9)
    assert row["valid"]


def test_a_level_without_any_answer_has_no_latency_and_says_so():
    row = summarise(make_part([make_failed(end_monotonic_ns=900 * MS)]))

    assert row["ttft_p50_s"] is None
    assert row["invalid_reasons"][:2] == [
        "no request sent in the window finished",
        "more than 1 % of requests failed (1 of 1); commonest: connect",
    ]


def test_the_commonest_error_is_told_by_kind_and_status_whatever_the_texts_name():
    busy = {"error_kind": "status", "http_status": 503}
    records = [
        make_failed(error_text="Connection refused"),
        make_failed(**busy, error_text="HTTP 503: ask\nagain"),
        make_failed(**busy, error_text="HTTP 503: replica b"),
        make_failed(**busy, error_text="HTTP 503: ask again"),
    ]

    assert commonest_error(records) == "status: HTTP 503: ask again"
    assert commonest_error(records[:1]) == "connect: Connection refused"
    assert commonest_error(busy_records()) is None


def test_an_answer_that_broke_off_is_told_with_its_status():
    failed = make_failed(error_kind="truncated", http_status=200, error_text="no [DONE]")

    assert commonest_error([failed]) == "truncated: HTTP 200: no [DONE]"


def test_errors_outside_the_window_are_not_what_made_the_level_invalid():
    early = [make_failed(error_text="too early", phase="warmup")] * 9

    row = summarise(make_part([*busy_records(), *early, make_failed(error_text="refused")]))

    assert row["invalid_reasons"] == ["more than 1 % of requests failed (1 of 9); commonest: connect: refused"]


def test_one_client_whose_warm_up_was_cut_makes_the_level_unsteady():
    parts = make_part(busy_records()), make_part(busy_records(), warmup_cut=True)

    row = summarise(*parts, identity=replace(CLOSED, users=2))

    assert row["invalid_reasons"] == ["not steady: warm-up ended before every user had finished a request"]


@pytest.mark.parametrize(
    ("verdicts", "steady"),
    [((True, True), True), ((True, False), False), ((None, False), False), ((True, None), None), ((None,), None)],
)
def test_a_level_is_steady_if_all_its_clients_are(verdicts, steady):
    assert summarise(*(make_part(busy_records(), steady=verdict) for verdict in verdicts))["steady"] is steady


def test_a_level_whose_clients_left_nothing_is_an_invalid_row():
    row = summarise()

    assert row["invalid_reasons"] == ["interrupted"]
    assert (row["output_tokens_per_s"], row["client_workers"], row["steady"]) == (None, 0, None)


def test_a_level_interrupted_before_its_window_has_no_rates():
    row = summarise(make_part([make_record(phase="warmup")], start_ns=SECOND, end_ns=0, interrupted=True))

    assert (row["window_s"], row["requests_per_s"], row["in_flight_max"]) == (0.0, None, None)
    assert row["invalid_reasons"] == ["interrupted"]


def test_reasons_from_outside_come_first_and_make_the_level_invalid():
    row = summarise(make_part(busy_records()), reasons=["replica math-0 died"])

    assert (row["valid"], row["invalid_reasons"]) == (False, ["replica math-0 died"])


def test_what_the_clients_cost_is_told_per_token_and_by_the_busiest():
    parts = [make_part(busy_records(), cpu_s=cpu_s, lag_histogram=[9, 1, 0]) for cpu_s in (0.2, 0.3)]

    row = summarise(*parts, identity=replace(CLOSED, users=2), capacity_tokens_per_s=620.0)

    assert row["client_cpu_share"] == pytest.approx(0.3)
    assert row["client_us_per_token"] == pytest.approx(0.5e6 / 62)
    assert row["client_margin"] == pytest.approx(10)
    assert row["client_lag_histogram"] == [18, 2, 0]


def test_a_client_that_does_not_know_its_cpu_time_leaves_the_cost_per_token_unknown():
    row = summarise(make_part(busy_records(), cpu_s=0.2), make_part(busy_records()))

    assert row["client_us_per_token"] is None
    assert row["client_cpu_share"] == pytest.approx(0.2)


def test_a_level_with_an_slo_says_how_many_met_it():
    row = summarise(make_part([*busy_records(7), make_record(ttft_ns=300 * MS)]), slo=SloConfig(ttft_s=0.1))

    assert row["slo_attainment"] == pytest.approx(7 / 8)
    assert row["goodput_per_s"] == 7


def open_loop(seed, seconds=30, rate_per_s=20.0, bunch=1):
    """A part of an open loop with exponential gaps, each request `bunch` times at once."""
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, int(seconds * rate_per_s * 1.2))
    due_ns = [round(due_s * SECOND) for due_s in np.cumsum(gaps_s).tolist() if due_s < seconds for _ in range(bunch)]
    records = [make_record(sent_ns=sent_ns, latency_from="scheduled") for sent_ns in due_ns]
    return make_part(records, end_ns=seconds * SECOND)


def test_arrivals_that_came_as_asked_are_audited_and_valid():
    row = summarise(open_loop(seed=1), identity=OPEN)

    assert row["gap_cv"] == pytest.approx(1, abs=0.1)
    assert row["dispersion_index"] == pytest.approx(1, abs=0.8)
    assert row["arrival_ks_p"] > 0.001
    assert row["due_per_s"] == pytest.approx(20, rel=0.15)
    assert row["invalid_reasons"] == []


def test_arrivals_that_came_in_bunches_are_found_out():
    row = summarise(open_loop(seed=1, bunch=2), identity=OPEN)

    assert [reason.split(":")[0] for reason in row["invalid_reasons"]] == ["arrivals are not poisson"]


def test_arrivals_of_several_clients_are_audited_together():
    whole = open_loop(seed=1)
    parts = [replace(whole, worker=worker, records=whole.records[worker::2]) for worker in (0, 1)]

    assert summarise(*parts, identity=OPEN)["gap_cv"] == pytest.approx(summarise(whole, identity=OPEN)["gap_cv"])


def test_a_rate_that_changes_within_the_window_is_not_tested_against_a_constant_one():
    row = summarise(open_loop(seed=1, rate_per_s=5), identity=OPEN, workload=CHANGING)

    assert (row["arrival_ks_p"], row["invalid_reasons"]) == (None, [])
    assert row["gap_cv"] is not None


def test_a_trace_is_tested_against_its_own_schedule():
    row = summarise(open_loop(seed=1), identity=replace(OPEN, arrivals="trace", rate_per_s=None), workload=CHANGING)

    assert row["arrival_ks_p"] == pytest.approx(1)


def test_a_closed_loop_has_no_arrivals_to_audit():
    row = summarise(make_part(busy_records()))

    assert {row[name] for name in ("gap_cv", "dispersion_index", "arrival_ks_p")} == {None}


@pytest.mark.parametrize(("new_connection", "valid"), [(False, False), (True, True)])
def test_a_late_request_is_the_clients_fault_unless_it_waited_for_a_connection(new_connection, valid):
    late = {"scheduled_monotonic_ns": -30 * MS, "new_connection": new_connection}
    records = [replace(record, stamped_by="kernel") for record in busy_records()]
    records[0] = replace(records[0], **late)

    row = summarise(make_part(records))

    assert row["send_late_max_s"] == pytest.approx(0.030)
    assert row["valid"] is valid


requests = st.builds(
    make_record,
    sent_ns=st.integers(-SECOND, 2 * SECOND),
    gaps_us=st.lists(st.integers(0, 10**6), max_size=5),
    phase=st.sampled_from(["warmup", "measure", "drain"]),
    status=st.sampled_from(["ok", "failed", "cancelled"]),
    expert=st.sampled_from([None, "math", "law"]),
    latency_from=st.sampled_from(["sent", "scheduled"]),
    stamped_by=st.sampled_from(["kernel", "loop"]),
    tokens_out=st.integers(0, 9),
)
SLO = SloConfig(ttft_s=0.1, e2e_s=0.5)
# How much more another clock shows.
offsets_ns = st.integers(-(2**60), 2**60)


@settings(deadline=None)
@given(st.lists(requests, max_size=5), st.sampled_from([0.001, math.nan]), st.sampled_from([CLOSED, OPEN]))
def test_no_summary_ever_holds_a_nan(records, lag_s, identity):
    row = summarise(make_part(records, lag_p99_s=lag_s), identity=identity, gateway_lag_p99_s=lag_s, slo=SLO)

    numbers = [value for value in row.values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in numbers)
    assert row["valid"] == (not row["invalid_reasons"])


@settings(deadline=None)
@given(st.lists(requests, max_size=5), offsets_ns, st.sampled_from([CLOSED, OPEN]))
def test_a_clock_that_shows_another_time_changes_nothing(records, by_ns, identity):
    here = make_part(records)
    there = make_part([shift_record(record, by_ns) for record in records], by_ns, SECOND + by_ns)

    assert summarise(there, identity=identity, slo=SLO) == summarise(here, identity=identity, slo=SLO)


@settings(deadline=None)
@given(st.lists(st.tuples(requests, st.integers(0, 2)), max_size=8), st.tuples(offsets_ns, offsets_ns, offsets_ns))
def test_sharing_the_records_among_clients_changes_nothing(dealt, clocks_ns):
    whole = make_part([record for record, _ in dealt])
    parts = [
        make_part(
            [shift_record(record, by_ns) for record, owner in dealt if owner == worker],
            by_ns,
            SECOND + by_ns,
            worker=worker,
            clock_offset_ns=by_ns,
        )
        for worker, by_ns in enumerate(clocks_ns)
    ]

    alone, shared = (summarise(*found, identity=OPEN, slo=SLO) for found in ([whole], parts))

    about_clients = {"client_workers", "worker_cpu_share", "clock_offset_s"}
    for name in alone.keys() - about_clients:
        expected = alone[name]
        assert shared[name] == (pytest.approx(expected) if isinstance(expected, float | dict) else expected), name
