from __future__ import annotations

import pytest

from erhpc.results.validity import find_invalid_reasons


def test_one_failure_in_a_hundred_is_tolerated_and_two_are_not():
    def failures(num_failed):
        row = {"requests_ok": 100 - num_failed, "requests_failed": num_failed, "requests_cancelled": 0}
        return find_invalid_reasons(make_row(**row), interrupted=False)

    assert failures(1) == []
    assert failures(2) == ["more than 1 % of requests failed (2 of 100)"]


def make_row(**changes):
    quiet = {
        "requests_ok": 100,
        "requests_failed": 0,
        "requests_cancelled": 0,
        "users": 100,
        "users_held": 99.0,
        "ttft_p99_s": 0.1,
        "client_lag_p99_s": 0.001,
        "gateway_lag_p99_s": 0.001,
        "engine_lag_p99_s": None,
    }
    return quiet | changes


def test_many_requests_cut_at_the_end_mean_that_the_window_was_too_short():
    row = make_row(requests_ok=80, requests_cancelled=20)

    (reason,) = find_invalid_reasons(row, interrupted=False)

    assert reason == "window too short: 20 % of its requests were cut at the end"


@pytest.mark.parametrize(
    ("column", "who"),
    [("client_lag_p99_s", "client"), ("gateway_lag_p99_s", "gateway"), ("engine_lag_p99_s", "emulated-expert")],
)
def test_a_process_that_ran_late_is_named_as_the_bottleneck(column, who):
    (reason,) = find_invalid_reasons(make_row(**{column: 0.023}), interrupted=False)

    assert reason == f"{who}-bound: p99 lag 23.0 ms > 10.0 ms"


def test_lag_is_judged_by_the_latency_it_could_hide_in():
    assert find_invalid_reasons(make_row(client_lag_p99_s=0.04, ttft_p99_s=1.0), interrupted=False) == []


@pytest.mark.parametrize(
    ("users", "held", "trusted"), [(1, 0.6, True), (1, 0.3, False), (4, 3.6, True), (100, 91, True), (100, 89, False)]
)
def test_users_must_be_held_but_half_a_user_is_no_defect(users, held, trusted):
    reasons = find_invalid_reasons(make_row(users=users, users_held=held), interrupted=False)

    assert reasons == ([] if trusted else [f"users held {held:.1f} of {users}"])


def test_users_who_pause_need_not_be_in_flight():
    assert find_invalid_reasons(make_row(users_held=20.0), interrupted=False, think_time_s=2.0) == []


def test_a_warm_up_that_was_cut_makes_the_level_invalid():
    reasons = find_invalid_reasons(make_row(), interrupted=False, warmup_cut=True)

    assert reasons == ["not steady: warm-up ended before every user had finished a request"]
