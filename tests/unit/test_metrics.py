from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.results import metrics
from erhpc.results.record import LEVEL_COLUMNS, ClientPart, LevelIdentity, RequestRecord

MS = 1_000_000
SECOND = 1_000 * MS
IDENTITY = LevelIdentity(
    experiment="quickstart", run_id="20260101-120000-ab12", engine="vllm", level=0, users=1, num_replicas=1, num_gpus=1
)


def make_record(sent_ns=0, ttft_ns=100 * MS, gaps_us=(20_000, 20_000, 20_000), **changes):
    first_ns = sent_ns + ttft_ns
    last_ns = first_ns + sum(gaps_us) * 1000
    record = RequestRecord(
        request_id="u0-0",
        phase="measure",
        user=0,
        sequence=0,
        prompt_id="p0",
        domain="math",
        expert="math",
        replica="math-0",
        scheduled_monotonic_ns=sent_ns,
        sent_monotonic_ns=sent_ns,
        first_token_monotonic_ns=first_ns,
        last_token_monotonic_ns=last_ns,
        end_monotonic_ns=last_ns,
        token_gaps_us=list(gaps_us),
        tokens_in=7,
        tokens_out=len(gaps_us) + 1,
        max_tokens=64,
        status="ok",
        http_status=200,
    )
    return replace(record, **changes)


def make_failed(**changes):
    tokenless = {"first_token_monotonic_ns": None, "last_token_monotonic_ns": None, "expert": None}
    failure = {"status": "failed", "tokens_out": 0, "error_kind": "connect", "http_status": None}
    return make_record(gaps_us=(), **tokenless, **(failure | changes))


def make_part(records, start_ns=0, end_ns=SECOND, **changes):
    part = ClientPart(
        records=list(records),
        window_start_monotonic_ns=start_ns,
        window_end_monotonic_ns=end_ns,
        warmup_s=5.0,
        started_utc="2026-01-01T12:00:00+00:00",
        lag_p99_s=0.001,
    )
    return replace(part, **changes)


def summarise(*parts, users=1, reasons=(), **lags):
    lags = {"gateway_lag_p99_s": None, "engine_lag_p99_s": None} | lags
    return metrics.summarise_level(replace(IDENTITY, users=users), list(parts), reasons=list(reasons), **lags)


def busy_records(count=8):
    """One user without a pause for `count` requests of 125 ms."""
    return [
        make_record(sent_ns=index * 125 * MS, ttft_ns=65 * MS, request_id=f"u0-{index}", sequence=index)
        for index in range(count)
    ]


def test_latencies_of_a_request_follow_their_definitions():
    record = make_record(sent_ns=5 * SECOND, ttft_ns=100 * MS, gaps_us=(20_000, 30_000, 10_000))

    assert metrics.ttft_s(record) == pytest.approx(0.100)
    assert metrics.e2e_s(record) == pytest.approx(0.160)
    assert metrics.tpot_s(record) == pytest.approx(0.020)
    assert metrics.itl_s([record]).tolist() == pytest.approx([0.020, 0.030, 0.010])


def test_time_per_output_token_counts_tokens_by_usage_not_arrivals():
    assert metrics.tpot_s(make_record(gaps_us=(40_000, 40_000), tokens_out=9)) == pytest.approx(0.010)


def test_a_single_token_has_no_time_per_output_token():
    assert metrics.tpot_s(make_record(gaps_us=())) is None


def test_a_request_without_a_token_has_no_latency():
    failed = make_failed()

    assert (metrics.ttft_s(failed), metrics.e2e_s(failed), metrics.tpot_s(failed)) == (None, None, None)
    assert metrics.itl_s([failed]).size == 0


def test_gaps_are_pooled_over_requests_so_a_stall_is_not_averaged_away():
    records = [make_record(gaps_us=(10_000,) * 99), make_record(gaps_us=(900_000,))]

    assert metrics.itl_s(records).max() == pytest.approx(0.9)


def test_quantiles_of_nothing_are_none():
    assert metrics.quantiles([]) is None


def test_quantiles_interpolate_linearly():
    assert metrics.quantiles(range(101)) == pytest.approx({"mean": 50, "p50": 50, "p90": 90, "p95": 95, "p99": 99})


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_rise_and_stay_within_the_values(values):
    found = metrics.quantiles(values)

    ordered = [min(values), found["p50"], found["p90"], found["p95"], found["p99"], max(values)]
    assert np.all(np.diff(ordered) >= -1e-9 * max(values))
    assert min(values) <= found["mean"] * (1 + 1e-12)
    assert found["mean"] <= max(values) * (1 + 1e-12)


def test_only_tokens_that_arrive_within_the_half_open_window_count():
    record = make_record(ttft_ns=100 * MS, gaps_us=(100_000,) * 4)

    assert metrics.tokens_between(record, 200 * MS, 400 * MS) == 2
    assert metrics.tokens_between(record, 0, 100 * MS) == 0
    assert metrics.tokens_between(record, 0, 101 * MS) == 1


def test_an_arrival_of_several_tokens_counts_all_of_them():
    record = make_record(ttft_ns=100 * MS, gaps_us=(100_000,) * 3, tokens_out=16)

    assert metrics.tokens_between(record, 0, 250 * MS) == 8


def test_the_tokens_of_a_cancelled_request_count_as_far_as_they_came():
    part = make_part([make_record(status="cancelled", phase="drain")])

    assert metrics.output_tokens_per_s(part) == 4


@given(st.lists(st.integers(0, 10**6), max_size=50), st.integers(1, 200), st.lists(st.integers(0, 60 * SECOND)))
def test_windows_that_follow_each_other_count_every_token_once(gaps_us, num_tokens, cuts_ns):
    record = make_record(gaps_us=gaps_us, tokens_out=num_tokens)
    edges_ns = [0, *sorted(cuts_ns), 61 * SECOND]

    pieces = [metrics.tokens_between(record, start, end) for start, end in pairwise(edges_ns)]

    assert math.fsum(pieces) == pytest.approx(num_tokens)


def test_users_held_is_the_mean_number_of_requests_in_flight():
    crossing_both_edges = make_record(sent_ns=-SECOND, end_monotonic_ns=2 * SECOND)
    half_inside = make_record(sent_ns=500 * MS, end_monotonic_ns=2 * SECOND)
    outside = make_record(sent_ns=3 * SECOND, end_monotonic_ns=4 * SECOND)

    assert metrics.users_held(make_part([crossing_both_edges, half_inside, outside])) == pytest.approx(1.5)


def test_requests_and_prompt_tokens_count_when_the_request_ends_within_the_window():
    sent_before = make_record(sent_ns=-SECOND, end_monotonic_ns=0, phase="warmup")
    ends_at_the_end = make_record(end_monotonic_ns=SECOND)
    part = make_part([sent_before, ends_at_the_end, make_failed(end_monotonic_ns=500 * MS)])

    assert metrics.requests_per_s(part) == 1
    assert metrics.input_tokens_per_s(part) == 7


def test_a_summary_has_exactly_the_columns_of_the_schema():
    assert list(summarise(make_part(busy_records()))) == [column.name for column in LEVEL_COLUMNS]


def test_a_quiet_busy_level_is_valid():
    row = summarise(make_part(busy_records()))

    assert (row["valid"], row["invalid_reasons"]) == (True, [])
    assert row["users_held"] == pytest.approx(1)
    assert row["output_tokens_per_s"] == pytest.approx(31), "the last token of the last request is not inside"


def test_latencies_are_of_requests_sent_in_the_window_that_finished_well():
    slow = {"ttft_ns": 5 * SECOND}
    others = [make_record(**slow, phase="warmup"), make_record(**slow, phase="drain"), make_failed()]
    others.append(make_record(**slow, status="cancelled"))

    row = summarise(make_part([*busy_records(), *others]))

    assert row["ttft_p99_s"] == pytest.approx(0.065)
    assert (row["requests_ok"], row["requests_failed"], row["requests_cancelled"]) == (8, 1, 1)


def test_clients_with_different_clocks_add_up():
    elsewhere_ns = 10**18
    late_start = [
        replace(
            make_record(sent_ns=elsewhere_ns + index * 125 * MS, ttft_ns=65 * MS),
            expert="law",
            request_id=f"u1-{index}",
        )
        for index in range(8)
    ]
    first = make_part(busy_records())
    second = make_part(late_start, elsewhere_ns, elsewhere_ns + SECOND, lag_p99_s=0.004, warmup_s=6.0)

    row = summarise(first, second, users=2)

    assert row["users_held"] == pytest.approx(2)
    assert row["requests_per_s"] == pytest.approx(14)
    assert row["window_s"] == pytest.approx(1)
    assert (row["client_lag_p99_s"], row["warmup_s"]) == (0.004, 6.0)
    assert row["expert_share"] == {"law": 0.5, "math": 0.5}
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
        *[make_failed(error_text="too early", phase="warmup")] * 9,
    ]

    assert metrics.commonest_error(records) == "status: HTTP 503: ask again"
    assert metrics.commonest_error(records[:1]) == "connect: Connection refused"
    assert metrics.commonest_error(busy_records()) is None


def test_an_answer_that_broke_off_is_told_with_its_status():
    failed = make_failed(error_kind="truncated", http_status=200, error_text="no [DONE]")

    assert metrics.commonest_error([failed]) == "truncated: HTTP 200: no [DONE]"


def test_one_client_whose_warm_up_was_cut_makes_the_level_unsteady():
    row = summarise(make_part(busy_records()), make_part(busy_records(), warmup_cut=True), users=2)

    assert row["invalid_reasons"] == ["not steady: warm-up ended before every user had finished a request"]


def test_a_level_whose_clients_left_nothing_is_an_invalid_row():
    row = summarise()

    assert not row["valid"]
    assert "interrupted" in row["invalid_reasons"]
    assert row["output_tokens_per_s"] is None


def test_a_level_interrupted_before_its_window_has_no_rates():
    row = summarise(make_part([make_record(phase="warmup")], start_ns=SECOND, end_ns=0, interrupted=True))

    assert (row["window_s"], row["requests_per_s"]) == (0.0, None)
    assert row["invalid_reasons"][0] == "interrupted"


def test_reasons_from_outside_come_first_and_make_the_level_invalid():
    row = summarise(make_part(busy_records()), reasons=["replica math-0 died"])

    assert (row["valid"], row["invalid_reasons"]) == (False, ["replica math-0 died"])


@given(
    st.lists(
        st.builds(
            make_record,
            sent_ns=st.integers(-SECOND, 2 * SECOND),
            gaps_us=st.lists(st.integers(0, 10**6), max_size=5),
            phase=st.sampled_from(["warmup", "measure", "drain"]),
            status=st.sampled_from(["ok", "failed", "cancelled"]),
            expert=st.sampled_from([None, "math", "law"]),
        ),
        max_size=5,
    ),
    st.sampled_from([0.001, math.nan]),
)
def test_no_summary_ever_holds_a_nan(records, lag_s):
    row = summarise(make_part(records, lag_p99_s=lag_s), gateway_lag_p99_s=lag_s)

    numbers = [value for value in row.values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in numbers)
    assert row["valid"] == (not row["invalid_reasons"])
