from __future__ import annotations

import pytest

from erhpc.config import ArrivalConfig, SearchConfig, WorkloadConfig
from erhpc.plan.levels import LoadPoint, list_points

GIVEN = SearchConfig()


def test_a_closed_loop_has_a_point_for_each_number_of_users():
    points = list_points(WorkloadConfig(users=[1, 10], rates_per_s=[]), GIVEN)

    assert points == (LoadPoint(users=1), LoadPoint(users=10))


def test_an_open_loop_has_a_point_for_each_rate_and_ignores_the_users():
    workload = WorkloadConfig(users=[1, 10], rates_per_s=[0.5, 20], arrivals=ArrivalConfig(kind="poisson"))

    assert list_points(workload, GIVEN) == (LoadPoint(rate_per_s=0.5), LoadPoint(rate_per_s=20))


def test_a_trace_without_rates_has_one_point_at_its_own_rate():
    workload = WorkloadConfig(trace="day.csv", arrivals=ArrivalConfig(kind="trace"))

    assert list_points(workload, GIVEN) == (LoadPoint(),)


def test_a_trace_with_rates_has_a_point_for_each():
    workload = WorkloadConfig(trace="day.csv", arrivals=ArrivalConfig(kind="trace"), rates_per_s=[3])

    assert list_points(workload, GIVEN) == (LoadPoint(rate_per_s=3),)


def test_a_search_has_no_given_points():
    assert list_points(WorkloadConfig(users=[1, 10]), SearchConfig(kind="users")) == ()


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (LoadPoint(users=100), "100 users"),
        (LoadPoint(users=1), "1 user"),
        (LoadPoint(rate_per_s=12.5), "12.5 requests/s"),
        (LoadPoint(rate_per_s=250.0), "250 requests/s"),
        (LoadPoint(), "trace at its own rate"),
    ],
)
def test_a_point_is_described_in_words(point, words):
    assert point.describe() == words


def test_a_searched_value_becomes_a_point_of_its_kind():
    assert LoadPoint.from_search("users", 12.0) == LoadPoint(users=12)
    assert LoadPoint.from_search("rate", 12.0) == LoadPoint(rate_per_s=12.0)


def test_a_point_with_users_and_a_rate_is_refused():
    with pytest.raises(ValueError, match="not both"):
        LoadPoint(users=1, rate_per_s=1.0)
