from __future__ import annotations

import math
from array import array
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.client.exchange import Exchange
from erhpc.config import SloConfig
from erhpc.results import metrics
from tests.unit.records import MS, SECOND, busy_records, make_failed, make_part, make_record

SLO = SloConfig(ttft_s=0.2, tpot_s=0.05, e2e_s=1.0)


def test_latencies_of_a_request_follow_their_definitions():
    record = make_record(sent_ns=5 * SECOND, ttft_ns=100 * MS, gaps_us=(20_000, 30_000, 10_000))

    assert metrics.ttft_s(record) == pytest.approx(0.100)
    assert metrics.e2e_s(record) == pytest.approx(0.160)
    assert metrics.tpot_s(record) == pytest.approx(0.020)
    assert metrics.normalised_s(record) == pytest.approx(0.040)
    assert metrics.itl_s([record]).tolist() == pytest.approx([0.020, 0.030, 0.010])


def test_an_open_loop_counts_from_when_the_request_was_due():
    late = {"scheduled_monotonic_ns": 4 * SECOND, "sent_monotonic_ns": 5 * SECOND}
    from_sent = make_record(sent_ns=5 * SECOND, ttft_ns=100 * MS, **late)
    from_due = make_record(sent_ns=5 * SECOND, ttft_ns=100 * MS, **late, latency_from="scheduled")

    assert (metrics.ttft_s(from_sent), metrics.ttft_s(from_due)) == pytest.approx((0.1, 1.1))
    assert metrics.e2e_s(from_due) == pytest.approx(1.16)
    assert metrics.normalised_s(from_due) == pytest.approx(1.16 / 4)
    assert metrics.tpot_s(from_due) == metrics.tpot_s(from_sent)
    assert metrics.in_flight_s(from_due) == pytest.approx(0.16)
    assert metrics.send_late_s(from_due) == 1.0


def test_time_per_output_token_counts_tokens_by_usage_not_arrivals():
    assert metrics.tpot_s(make_record(gaps_us=(40_000, 40_000), tokens_out=9)) == pytest.approx(0.010)


def test_a_single_token_has_no_time_per_output_token():
    assert metrics.tpot_s(make_record(gaps_us=())) is None


def test_a_request_without_a_token_has_no_latency():
    failed = make_failed()

    formulas = (metrics.ttft_s, metrics.e2e_s, metrics.tpot_s, metrics.normalised_s)
    assert [formula(failed) for formula in formulas] == [None] * 4
    assert metrics.itl_s([failed]).size == 0


arrivals_ns = st.lists(st.integers(0, 10 * SECOND), min_size=1, max_size=50).map(sorted)


@settings(deadline=None)
@given(arrivals_ns, st.integers(0, SECOND))
def test_gaps_add_up_to_the_time_from_the_first_token_to_the_last(arrivals, sent_before_ns):
    sent_ns = arrivals[0] - sent_before_ns
    exchange = Exchange(sent_ns=sent_ns, arrivals_ns=array("q", arrivals))
    gaps_us = exchange.gaps_us()
    times = {"first_token_monotonic_ns": arrivals[0], "last_token_monotonic_ns": arrivals[-1]}
    record = make_record(sent_ns=sent_ns, token_gaps_us=gaps_us, tokens_out=len(arrivals), **times)

    spanned_s = metrics.e2e_s(record) - metrics.ttft_s(record)
    assert metrics.itl_s([record]).sum() == pytest.approx(spanned_s, abs=0.6e-6)


@settings(deadline=None)
@given(
    st.integers(-SECOND, SECOND),
    st.integers(0, SECOND),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=50),
    st.integers(2, 300),
    st.sampled_from(["sent", "scheduled"]),
)
def test_first_token_and_time_per_further_token_make_the_whole_latency(sent_ns, ttft_ns, gaps_us, num_tokens, origin):
    late = {"scheduled_monotonic_ns": sent_ns - 5 * MS, "latency_from": origin}
    record = make_record(sent_ns, ttft_ns, gaps_us, tokens_out=num_tokens, **late)

    rest_s = metrics.tpot_s(record) * (num_tokens - 1)
    assert metrics.ttft_s(record) + rest_s == pytest.approx(metrics.e2e_s(record), abs=1e-9)
    assert metrics.normalised_s(record) * num_tokens == pytest.approx(metrics.e2e_s(record), abs=1e-9)


def test_gaps_are_pooled_over_requests_so_a_stall_is_not_averaged_away():
    records = [make_record(gaps_us=(10_000,) * 99), make_record(token_gaps_us=[900_000])]

    assert metrics.itl_s(records).max() == pytest.approx(0.9)
    assert metrics.gaps_us(records).itemsize == 4


def test_quantiles_of_nothing_are_none():
    assert metrics.quantiles([]) is None
    assert metrics.quantiles(metrics.gaps_us([])) is None


def test_quantiles_interpolate_linearly_and_change_the_unit():
    assert metrics.quantiles(range(101)) == pytest.approx({"mean": 50, "p50": 50, "p90": 90, "p95": 95, "p99": 99})
    assert metrics.quantiles(np.arange(101, dtype=np.intc), per_unit=10)["p95"] == pytest.approx(9.5)


@settings(deadline=None)
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


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**6), max_size=50),
    st.integers(1, 200),
    st.integers(-499, 499),
    st.lists(st.integers(0, 60 * SECOND) | st.integers(-1000, 1000), max_size=8),
)
def test_windows_that_follow_each_other_count_every_token_once(gaps_us, num_tokens, rounding_ns, cuts_ns):
    last_ns = 100 * MS + max(0, sum(gaps_us) * 1000 + rounding_ns) if gaps_us else 100 * MS
    record = make_record(gaps_us=gaps_us, tokens_out=num_tokens, last_token_monotonic_ns=last_ns)
    # Small numbers stand for cuts close to the last token, where it matters how its time was rounded.
    cuts_ns = [cut + last_ns if abs(cut) <= 1000 else cut for cut in cuts_ns]
    edges_ns = [-2 * SECOND, *sorted(cuts_ns), 61 * SECOND]

    pieces = [metrics.tokens_between(record, start, end) for start, end in pairwise(edges_ns)]

    assert math.fsum(pieces) == pytest.approx(num_tokens)


def test_requests_and_prompt_tokens_count_when_the_request_ends_within_the_window():
    sent_before = make_record(sent_ns=-SECOND, end_monotonic_ns=0, phase="warmup")
    ends_at_the_end = make_record(end_monotonic_ns=SECOND)
    part = make_part([sent_before, ends_at_the_end, make_failed(end_monotonic_ns=500 * MS)])

    assert metrics.requests_per_s(part) == 1
    assert metrics.input_tokens_per_s(part) == 7


def test_requests_are_offered_when_they_are_due_whether_or_not_they_are_sent_in_time():
    never_answered = make_record(sent_ns=9 * SECOND, scheduled_monotonic_ns=500 * MS, status="cancelled")
    due_before = make_record(sent_ns=500 * MS, scheduled_monotonic_ns=-1)
    due_at_the_end = make_record(sent_ns=SECOND)

    assert metrics.due_per_s(make_part([never_answered, due_before, due_at_the_end])) == 1


def test_users_held_is_the_mean_number_of_requests_in_flight():
    crossing_both_edges = make_record(sent_ns=-SECOND, end_monotonic_ns=2 * SECOND)
    half_inside = make_record(sent_ns=500 * MS, end_monotonic_ns=2 * SECOND)
    outside = make_record(sent_ns=3 * SECOND, end_monotonic_ns=4 * SECOND)

    assert metrics.users_held(make_part([crossing_both_edges, half_inside, outside])) == pytest.approx(1.5)


def test_a_client_without_a_window_has_no_rates():
    part = make_part(busy_records(), start_ns=SECOND, end_ns=0)

    rates = (metrics.requests_per_s, metrics.due_per_s, metrics.output_tokens_per_s, metrics.users_held)
    assert [rate(part) for rate in rates] == [None] * 4
    assert metrics.total(metrics.requests_per_s, [part]) is None
    assert metrics.count_in_flight([part]) is None


def test_one_user_without_a_pause_is_one_request_in_flight_never_two():
    part = make_part(busy_records(10), start_ns=125 * MS, end_ns=1125 * MS)

    assert metrics.count_in_flight([part]) == metrics.InFlight(start=1, end=1, most=1)


def test_a_backlog_shows_in_what_is_in_flight_at_the_end():
    stuck = [make_record(sent_ns=index * 100 * MS, end_monotonic_ns=5 * SECOND) for index in range(1, 6)]
    burst = [make_record(sent_ns=50 * MS, end_monotonic_ns=90 * MS) for _ in range(9)]

    assert metrics.count_in_flight([make_part([*stuck, *burst])]) == metrics.InFlight(start=0, end=5, most=9)


def test_requests_of_clients_with_different_clocks_are_counted_together():
    first = make_record(sent_ns=0, end_monotonic_ns=600 * MS)
    second = make_record(sent_ns=7 * SECOND + 500 * MS, end_monotonic_ns=7 * SECOND + 900 * MS)
    elsewhere = {"start_ns": 7 * SECOND, "end_ns": 8 * SECOND, "clock_offset_ns": 7 * SECOND}

    parts = [make_part([first]), make_part([second], **elsewhere)]

    assert metrics.count_in_flight(parts) == metrics.InFlight(start=1, end=0, most=2)
    assert metrics.sent_s(parts, 0).tolist() == [0.0, 0.5]


def test_times_keep_every_nanosecond_however_long_the_machine_is_up():
    up_ns = 2**60 + 1
    part = make_part([make_record(sent_ns=up_ns + 3)], start_ns=up_ns, end_ns=up_ns + SECOND)

    assert metrics.sent_s([part], up_ns).tolist() == [3e-9]
    assert metrics.due_s([part], up_ns).tolist() == [3e-9]


@st.composite
def steady_parts(draw):
    """Users who ask, are served for a while and pause, over and over, each in their own phase."""
    service_ns, pause_ns = draw(st.integers(1 * MS, 400 * MS)), draw(st.integers(0, 300 * MS))
    period_ns, num_periods = service_ns + pause_ns, draw(st.integers(1, 6))
    records = [
        make_record(sent_ns=sent_ns, end_monotonic_ns=sent_ns + service_ns)
        for phase_ns in draw(st.lists(st.integers(0, period_ns - 1), min_size=1, max_size=6))
        for sent_ns in range(phase_ns - 2 * period_ns, (num_periods + 2) * period_ns, period_ns)
    ]
    return make_part(records, end_ns=num_periods * period_ns)


@settings(deadline=None)
@given(steady_parts())
def test_littles_law_holds_where_the_load_is_steady(part):
    assert metrics.users_by_littles_law(part) == pytest.approx(metrics.users_held(part), rel=1e-9)
    in_flight = metrics.count_in_flight([part])
    assert in_flight.start == in_flight.end <= in_flight.most
    assert metrics.users_held(part) <= in_flight.most * (1 + 1e-9)


def test_littles_law_finds_fewer_users_where_a_backlog_grows():
    growing = [make_record(sent_ns=n * 50 * MS, end_monotonic_ns=n * 50 * MS + n * 100 * MS) for n in range(20)]
    part = make_part(growing)

    assert metrics.users_by_littles_law(part) < 0.5 * metrics.users_held(part)


def test_every_bound_must_hold_for_an_answer_to_meet_the_slo():
    good = {"ttft_ns": 200 * MS, "gaps_us": (50_000, 50_000)}

    assert metrics.meets_slo(make_record(**good), SLO)
    assert not metrics.meets_slo(make_record(**good | {"ttft_ns": 201 * MS}), SLO)
    assert not metrics.meets_slo(make_record(**good | {"gaps_us": (50_000, 50_001)}), SLO)
    assert not metrics.meets_slo(make_record(**good | {"gaps_us": (40_000,) * 21}), SLO)
    assert not metrics.meets_slo(make_record(**good, status="failed"), SLO)
    assert metrics.meets_slo(make_record(ttft_ns=900 * MS, gaps_us=()), SloConfig(e2e_s=1.0))


def test_one_token_meets_a_bound_on_the_time_per_token_and_none_meets_nothing():
    nothing_said = make_failed(status="ok", error_kind=None)

    assert metrics.meets_slo(make_record(gaps_us=()), SloConfig(tpot_s=0.001))
    assert not any(
        metrics.meets_slo(nothing_said, SloConfig(**{bound: 9.0})) for bound in ("ttft_s", "tpot_s", "e2e_s")
    )


def test_a_failed_request_misses_the_slo_and_one_that_was_cut_is_left_out():
    cut = make_record(status="cancelled", ttft_ns=100 * MS)

    assert metrics.slo_attainment([make_record(), make_failed()], SLO) == 0.5
    assert metrics.slo_attainment([make_record(), cut], SLO) == 1.0
    assert metrics.slo_attainment([cut], SLO) is None


@pytest.mark.parametrize(
    ("waited_ns", "slo", "judged"),
    [
        (300 * MS, SloConfig(ttft_s=0.2), True),
        (100 * MS, SloConfig(ttft_s=0.2), False),
        (300 * MS, SloConfig(e2e_s=0.2), True),
        (300 * MS, SloConfig(tpot_s=0.2), False),
    ],
)
def test_a_request_that_was_cut_after_it_had_broken_a_bound_missed_the_slo(waited_ns, slo, judged):
    unanswered = make_failed(status="cancelled", error_kind="cancelled", end_monotonic_ns=waited_ns)

    assert metrics.slo_attainment([unanswered], slo) == (0.0 if judged else None)


def test_without_an_slo_there_is_neither_attainment_nor_goodput():
    assert metrics.slo_attainment(busy_records(), SloConfig()) is None
    assert metrics.goodput_per_s(make_part(busy_records()), SloConfig()) is None


def test_goodput_counts_answers_that_finished_within_the_window_and_met_the_slo():
    records = [*busy_records(), make_failed(end_monotonic_ns=500 * MS), make_record(ttft_ns=300 * MS)]

    assert metrics.goodput_per_s(make_part(records), SLO) == 7


records = st.builds(
    make_record,
    sent_ns=st.integers(-SECOND, 2 * SECOND),
    ttft_ns=st.integers(0, 400 * MS),
    gaps_us=st.lists(st.integers(0, 10**5), max_size=5),
    status=st.sampled_from(["ok", "failed", "cancelled"]),
)
bounds_s = st.none() | st.floats(0, 1)


@settings(deadline=None)
@given(st.lists(records, max_size=8), bounds_s, bounds_s, bounds_s)
def test_attainment_is_a_share_and_goodput_no_more_than_throughput(found, ttft_s, tpot_s, e2e_s):
    slo, part = SloConfig(ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s), make_part(found)

    attainment, goodput_per_s = metrics.slo_attainment(found, slo), metrics.goodput_per_s(part, slo)

    assert attainment is None or 0 <= attainment <= 1
    assert (goodput_per_s is None) == (not slo.is_given)
    assert (goodput_per_s or 0.0) <= metrics.requests_per_s(part)


def test_shares_of_arrivals_and_stamps_are_of_requests_that_got_tokens():
    found = [
        make_record(gaps_us=(1,) * 7, coalesced=2, stamped_by="kernel"),
        make_record(gaps_us=(), stamped_by="loop"),
        make_failed(),
    ]

    assert metrics.coalesced_share(found) == pytest.approx(2 / 9)
    assert metrics.kernel_stamped_share(found) == 0.5
    assert metrics.coalesced_share([make_failed()]) is None
    assert metrics.kernel_stamped_share([make_failed()]) is None
