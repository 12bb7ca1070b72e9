"""How often a request may be made again, and after which answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.gateway.retries import RESERVE, SHARE, RetryBudget, is_failure, is_retried, is_sign_of_life


def spend(budget: RetryBudget, failures: list[bool]) -> int:
    """Retries that are made when these requests fail."""
    num_retries = 0
    for fails in failures:
        budget.note_request()
        num_retries += fails and budget.take()
    return num_retries


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), max_size=40))
def test_retries_never_exceed_the_share_and_the_reserve(bursts: list[tuple[int, int]]):
    budget = RetryBudget()
    num_requests = num_retries = 0
    for requests, tries in bursts:
        for _ in range(requests):
            budget.note_request()
        num_requests += requests
        num_retries += sum(budget.take() for _ in range(tries))
        assert num_retries <= SHARE * num_requests + RESERVE + 1e-6


@pytest.mark.parametrize("failing", [0.2, 0.5, 1.0])
def test_in_the_long_run_a_tenth_of_all_requests_may_be_retried(failing: float):
    draws = random.Random(1)
    num_retries = spend(RetryBudget(), [draws.random() < failing for _ in range(100_000)])
    assert 9_900 <= num_retries <= 10_010 + 1


def test_rare_failures_are_all_retried():
    draws = random.Random(2)
    failures = [draws.random() < 0.03 for _ in range(20_000)]
    assert spend(RetryBudget(), failures) == sum(failures)


def test_a_quiet_time_saves_no_more_than_the_reserve():
    budget = RetryBudget()
    assert spend(budget, [False] * 10_000) == 0
    assert sum(budget.take() for _ in range(100)) == RESERVE


@pytest.mark.parametrize(
    ("status", "with_time", "without", "counts", "lives"),
    [
        (200, False, False, False, True),
        (400, False, False, False, True),
        (404, False, False, False, True),
        (429, True, False, False, False),
        (500, False, False, False, False),
        (502, True, True, True, False),
        (503, True, False, False, False),
        (504, True, True, True, False),
    ],
)
def test_what_a_status_says(status: int, with_time: bool, without: bool, counts: bool, lives: bool):
    assert is_retried(status, says_when=True) is with_time
    assert is_retried(status, says_when=False) is without
    assert is_failure(status) is counts
    assert is_sign_of_life(status) is lives
