from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import ArrivalConfig, ProfileConfig, ThinkTimeConfig, WorkloadConfig
from erhpc.results.validity import find_invalid_reasons


def make_row(**changes):
    """A quiet closed loop against which nothing speaks."""
    quiet = {
        "arrivals": "closed",
        "users": 100,
        "rate_per_s": None,
        "window_s": 30.0,
        "output_tokens_per_s": 500.0,
        "requests_ok": 100,
        "requests_failed": 0,
        "requests_cancelled": 0,
        "users_held": 99.0,
        "in_flight_start": 99,
        "in_flight_end": 100,
        "littles_law_ratio": 1.0,
        "due_per_s": 3.3,
        "ttft_p99_s": 0.1,
        "arrival_ks_p": None,
        "client_workers": 1,
        "client_cpu_share": 0.5,
        "client_margin": 3.0,
        "client_lag_p99_s": 0.001,
        "kernel_delay_p99_s": None,
        "kernel_stamped_share": 0.0,
        "coalesced_share": 0.0,
        "gateway_lag_p99_s": 0.001,
        "gateway_queue_p99_s": None,
        "engine_lag_p99_s": None,
        "steady": True,
    }
    return quiet | changes


def make_open_row(**changes):
    """A quiet open loop of 100 requests per second."""
    opened = {"arrivals": "poisson", "users": None, "rate_per_s": 100.0, "due_per_s": 100.0, "arrival_ks_p": 0.5}
    return make_row(**(opened | {"requests_ok": 3000} | changes))


CHANGING = WorkloadConfig(profile=ProfileConfig(kind="spike"))
"""A load that is not meant to stay the same."""


def find(row, workload=None, **facts):
    return find_invalid_reasons(row, interrupted=False, workload=workload or WorkloadConfig(), **facts)


def find_open(row, burstiness=1.0):
    arrivals = ArrivalConfig(kind=row["arrivals"], burstiness=burstiness)
    return find(row, WorkloadConfig(arrivals=arrivals, trace="given", rates_per_s=[1.0]))


@pytest.mark.parametrize("row", [make_row(), make_open_row()], ids=["closed loop", "open loop"])
def test_nothing_speaks_against_a_quiet_level(row):
    assert find(row) == []


def test_an_interrupted_level_needs_no_other_reason():
    assert find_invalid_reasons(
        make_row(users_held=1.0), interrupted=True, warmup_cut=True, workload=WorkloadConfig()
    ) == ["interrupted"]


def test_one_failure_in_a_hundred_is_tolerated_and_two_are_not():
    assert find(make_row(requests_ok=99, requests_failed=1)) == []
    assert find(make_row(requests_ok=98, requests_failed=2), commonest_error="connect: refused") == [
        "more than 1 % of requests failed (2 of 100); commonest: connect: refused"
    ]


def test_many_requests_cut_at_the_end_mean_that_the_window_was_too_short():
    (reason,) = find(make_row(requests_ok=80, requests_cancelled=20))

    assert reason == "window too short: 20 % of its requests were cut at the end"


@pytest.mark.parametrize(
    ("column", "who"),
    [("client_lag_p99_s", "client"), ("gateway_lag_p99_s", "gateway"), ("engine_lag_p99_s", "emulated-expert")],
)
def test_a_process_that_ran_late_is_named_as_the_bottleneck(column, who):
    assert find(make_row(**{column: 0.023})) == [f"{who}-bound: p99 lag 23.0 ms > 10.0 ms"]


def test_lag_is_judged_by_the_latency_it_could_hide_in():
    assert find(make_row(client_lag_p99_s=0.04, ttft_p99_s=1.0)) == []


@pytest.mark.parametrize(
    ("wait_s", "ttft_s", "limit_ms"),
    [(0.023, 0.1, 10.0), (0.06, 1.0, 50.0), (0.01, 0.1, None), (0.04, 1.0, None), (0.0, 0.1, None), (None, 0.1, None)],
)
def test_a_level_that_waited_for_the_gateway_measures_the_gateway(wait_s, ttft_s, limit_ms):
    reasons = find(make_row(gateway_queue_p99_s=wait_s, ttft_p99_s=ttft_s))

    told = "gateway-bound: p99 wait for a turn (gateway.max_in_flight)"
    assert reasons == ([f"{told} {wait_s * 1000:.1f} ms > {limit_ms:.1f} ms"] if limit_ms else [])


@pytest.mark.parametrize("share", [1.0, 0.995])
def test_a_late_loop_is_no_matter_where_the_kernel_stamped(share):
    kernel = {"kernel_stamped_share": share, "kernel_delay_p99_s": 0.023, "client_lag_p99_s": 0.023}

    assert find(make_row(**kernel)) == []
    assert find(make_row(**kernel), kept_late_p99_s=0.023) == ["client-bound: p99 of sending late 23.0 ms > 10.0 ms"]
    assert find(make_row(**kernel, ttft_p99_s=1.0), kept_late_p99_s=0.023) == []


@pytest.mark.parametrize("share", [0.9, 0.0, None])
def test_a_late_loop_is_in_the_latencies_that_it_stamped(share):
    loop = {"kernel_stamped_share": share, "kernel_delay_p99_s": 0.012, "client_lag_p99_s": 0.023}

    assert find(make_row(**loop)) == [
        "client-bound: p99 lag 23.0 ms > 10.0 ms",
        "client-bound: p99 delay from kernel to client 12.0 ms > 10.0 ms",
    ]


def test_a_client_whose_core_is_busy_is_the_bottleneck():
    assert find(make_row(client_cpu_share=0.85)) == []
    assert find(make_row(client_cpu_share=0.93)) == [
        "client-bound: a client process used 93 % of its core (limit 85 %)"
    ]


def test_a_client_that_could_take_few_more_tokens_is_the_bottleneck():
    assert find(make_row(client_margin=1.25)) == []
    assert find(make_row(client_margin=1.1)) == [
        "client-bound: it can take only 1.10 times these tokens per second (limit 1.25)"
    ]


def test_a_client_that_does_not_know_itself_is_not_blamed():
    unknown = {"client_cpu_share": None, "client_margin": None, "client_lag_p99_s": None, "coalesced_share": None}

    assert find(make_row(**unknown)) == []


def test_arrivals_that_carry_several_frames_blur_the_gaps():
    assert find(make_row(coalesced_share=0.05)) == []
    assert find(make_row(coalesced_share=0.073)) == [
        "gaps are blurred: 7.3 % of arrivals carried several frames (limit 5 %)"
    ]


@pytest.mark.parametrize(
    ("users", "held", "trusted"), [(1, 0.6, True), (1, 0.3, False), (4, 3.6, True), (100, 91, True), (100, 89, False)]
)
def test_users_must_be_held_but_half_a_user_is_no_defect(users, held, trusted):
    reasons = find(make_row(users=users, users_held=held))

    assert reasons == ([] if trusted else [f"users held {held:.1f} of {users}"])


def test_users_who_pause_need_not_be_in_flight():
    assert find(make_row(users_held=20.0), WorkloadConfig(think_time=ThinkTimeConfig(mean_s=1.0))) == []


def test_a_load_that_changes_within_the_window_is_not_held_against_a_constant_one():
    assert find(make_row(users_held=20.0), CHANGING) == []
    assert find(make_open_row(due_per_s=20.0, arrival_ks_p=1e-9), CHANGING) == []


def test_a_level_too_short_to_be_called_steady_is_held_against_what_was_asked():
    assert find(make_row(users_held=20.0, steady=None)) == ["users held 20.0 of 100"]
    assert len(find(make_open_row(due_per_s=20.0, arrival_ks_p=1e-9, steady=None))) == 2


def test_a_backlog_that_grows_is_a_finding_and_no_defect():
    assert find(make_open_row(in_flight_start=10, in_flight_end=900, littles_law_ratio=0.4)) == []


@pytest.mark.parametrize(("due_per_s", "trusted"), [(96.0, True), (94.0, False)])
def test_an_open_loop_must_offer_the_rate_it_was_asked_for(due_per_s, trusted):
    reasons = find(make_open_row(due_per_s=due_per_s))

    assert reasons == ([] if trusted else ["only 94.0 of 100.0 requests per second were due: less than 95 %"])


@pytest.mark.parametrize(
    ("arrivals", "burstiness", "due_per_s", "trusted"),
    [
        ("poisson", 1.0, 0.6, True),
        ("poisson", 1.0, 0.4, False),
        ("gamma", 0.25, 0.1, True),
        ("gamma", 9.0, 0.7, False),
        ("constant", 1.0, 29 / 30, True),
        ("constant", 1.0, 28 / 30, False),
    ],
)
def test_requests_that_were_missing_by_chance_are_no_defect(arrivals, burstiness, due_per_s, trusted):
    few = {"arrivals": arrivals, "rate_per_s": 1.0, "requests_ok": 30}

    assert (find_open(make_open_row(**few, due_per_s=due_per_s), burstiness) == []) is trusted


def test_a_trace_at_its_own_rate_is_offered_as_it_is():
    assert find_open(make_open_row(arrivals="trace", rate_per_s=None)) == []
    assert find_open(make_open_row(arrivals="trace", due_per_s=20.0)) == []


def test_arrivals_of_another_distribution_are_named():
    assert find(make_open_row(requests_ok=501, arrival_ks_p=0.000012)) == [
        "arrivals are not poisson: p = 1e-05 over 500 gaps (limit 0.001)"
    ]


@pytest.mark.parametrize(("num_requests", "trusted"), [(100, True), (101, False)])
def test_arrivals_are_not_judged_by_a_handful(num_requests, trusted):
    assert (find(make_open_row(requests_ok=num_requests, arrival_ks_p=1e-9)) == []) is trusted


def test_a_small_difference_that_only_many_arrivals_can_show_is_tolerated():
    # Distances of 0.04 and 0.06 between the distribution functions, over 10,000 gaps.
    assert find(make_open_row(requests_ok=10_001, arrival_ks_p=2.5e-14)) == []
    assert len(find(make_open_row(requests_ok=10_001, arrival_ks_p=1e-31))) == 1


def test_a_gross_difference_is_found_over_any_number_of_arrivals():
    assert len(find(make_open_row(requests_ok=3_000_000, arrival_ks_p=0.0))) == 1


def test_a_warm_up_that_was_cut_makes_the_level_invalid():
    reasons = find(make_row(steady=False), warmup_cut=True)

    assert reasons == ["not steady: warm-up ended before every user had finished a request"]


def test_a_level_that_was_not_steady_says_how_it_changed():
    row = make_row(steady=False, in_flight_start=12, in_flight_end=88, littles_law_ratio=0.714)

    assert find(row) == [
        "not steady: rates still changed when the window began "
        "(12 requests in flight at its start, 88 at its end; Little's law gives 0.71 of the users held)"
    ]


def test_an_open_loop_that_is_not_steady_is_overloaded_which_is_a_finding():
    assert find_open(make_open_row(steady=False, in_flight_start=10, in_flight_end=900)) == []


def test_a_wall_clock_that_is_set_spoils_what_the_kernel_stamps():
    assert find(make_row(kernel_stamped_share=1.0), clock_jumps=2)[0].startswith("the wall clock was set 2 times")
    assert find(make_row(kernel_stamped_share=0.0), clock_jumps=2) == []


def test_clocks_matter_only_between_several_clients():
    assert find(make_row(client_workers=4), clock_uncertainty_s=0.0009) == []
    assert find(make_row(client_workers=1), clock_uncertainty_s=0.0023) == []
    assert find(make_row(client_workers=4), clock_uncertainty_s=0.0023) == [
        "clocks of the clients are known only to 2.3 ms (limit 1.0 ms)"
    ]


maybe = st.none() | st.floats(0, 1e6)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(make_row())), maybe), st.booleans())
def test_a_number_that_is_missing_or_odd_never_breaks_the_verdict(numbers, opened):
    counts = {"requests_ok", "requests_failed", "requests_cancelled", "client_workers", "window_s"}
    changes = {name: value for name, value in numbers.items() if name not in counts | {"arrivals", "steady"}}

    reasons = find((make_open_row if opened else make_row)(**changes))

    assert all(reason and "nan" not in reason for reason in reasons)
