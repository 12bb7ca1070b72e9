"""The search against oracles: monotone ones it must find the edge of, noisy ones it must survive."""

from __future__ import annotations

import random
from math import ceil, log, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import SearchConfig
from erhpc.load.search import Search


def run(config, oracle):
    """Feed the search until it ends; the values it asked for."""
    search = Search(config)
    asked = []
    while (value := search.next_value()) is not None:
        asked.append(value)
        search.add(value, oracle(value))
    return search.result(), asked


def most_levels(config):
    """Doublings from low to high, then halvings of a factor of two down to the tolerance."""
    doublings = ceil(log2(config.high / config.low)) + 1
    return doublings + ceil(log2(log(2) / log(1 + config.tolerance)))


users_configs = st.builds(
    lambda low, factor, tolerance: SearchConfig(
        kind="users", low=low, high=low * factor, tolerance=tolerance, max_levels=1000
    ),
    st.integers(1, 50),
    st.integers(1, 5000),
    st.floats(0.001, 1),
)
rate_configs = st.builds(
    lambda low, factor, tolerance: SearchConfig(
        kind="rate", low=low, high=low * factor, tolerance=tolerance, max_levels=1000
    ),
    st.floats(0.001, 50),
    st.floats(1, 5000),
    st.floats(0.001, 1),
)


@settings(deadline=None)
@given(users_configs, st.floats(0, 1))
def test_the_largest_number_of_users_is_found_within_the_tolerance(config, share):
    edge = round(config.low * (2 * config.high / config.low) ** share) - 1  # from low - 1 to beyond high

    result, asked = run(config, lambda users: users <= edge)

    assert all(users == int(users) for users in asked)
    if edge < config.low:
        assert (result.largest_met, result.smallest_missed) == (None, config.low)
    elif edge >= config.high:
        assert (result.largest_met, result.smallest_missed) == (config.high, None)
    else:
        assert result.largest_met <= edge < result.smallest_missed
        assert result.smallest_missed - result.largest_met <= max(1, config.tolerance * result.largest_met)


@settings(deadline=None)
@given(rate_configs, st.floats(0, 1))
def test_the_largest_rate_is_found_within_the_tolerance(config, share):
    edge = config.low * (config.high / config.low) ** share

    result, _ = run(config, lambda rate: rate <= edge)

    assert result.largest_met <= edge
    if result.smallest_missed is None:
        assert result.largest_met == config.high
    else:
        assert edge < result.smallest_missed <= (1 + config.tolerance) * result.largest_met * (1 + 1e-9)


@settings(deadline=None)
@given(rate_configs, st.floats(0, 1))
def test_a_search_of_rates_needs_at_most_the_levels_of_a_bisection(config, share):
    edge = config.low * (config.high / config.low) ** share

    _, asked = run(config, lambda rate: rate <= edge)

    assert len(asked) <= most_levels(config) + 1  # a rounded rate may leave a hair more than half


@settings(deadline=None)
@given(users_configs, st.floats(0, 1))
def test_a_search_of_users_needs_at_most_the_levels_of_a_bisection(config, share):
    edge = round(config.low * (config.high / config.low) ** share)

    _, asked = run(config, lambda users: users <= edge)

    widest = ceil(log2(config.high / config.low)) + 1 + ceil(log2(max(2, config.high)))
    assert len(asked) <= min(most_levels(config) + 1, widest)


@settings(deadline=None)
@given(st.one_of(users_configs, rate_configs), st.integers(0, 2**32))
def test_a_noisy_oracle_ends_the_search_and_only_invalid_levels_are_repeated(config, seed):
    noise = random.Random(seed)
    answers = {}

    def oracle(value):
        answers.setdefault(value, []).append(noise.choice([True, True, False, None]))
        return answers[value][-1]

    result, asked = run(config, oracle)

    assert len(asked) == len(result.levels) <= 2 * (most_levels(config) + 14)
    assert all(len(given) == 1 or (len(given) == 2 and given[0] is None) for given in answers.values())


def test_a_search_doubles_then_halves():
    result, asked = run(SearchConfig(kind="users", low=1, high=100), lambda users: users <= 11)

    assert asked == [1, 2, 4, 8, 16, 12, 10, 11]
    assert result.describe() == "11 users met the SLO, 12 users missed it (8 levels: the two are as near as asked)."


def test_a_search_of_rates_asks_for_rates_that_can_be_typed():
    _, asked = run(SearchConfig(kind="rate", low=1, high=100), lambda rate: rate <= 1.5)

    assert asked[:3] == [1, 2, 1.41421]


def test_a_low_that_is_missed_ends_the_search_at_once():
    result, asked = run(SearchConfig(kind="users", low=4, high=64), lambda users: False)

    assert asked == [4]
    assert result.describe() == "No load met the SLO, 4 users missed it (1 level: search.low=4 missed already)."


def test_a_high_that_is_met_ends_the_search_there():
    result, asked = run(SearchConfig(kind="users", low=3, high=20), lambda users: True)

    assert asked == [3, 6, 12, 20]
    assert result.describe() == "20 users met the SLO (4 levels: search.high=20 met)."


def test_an_invalid_level_is_repeated_once_and_counts_as_its_repeat_says():
    answers = iter([True, None, True, False, False])

    result, asked = run(SearchConfig(kind="users", low=1, high=100), lambda users: next(answers))

    assert asked == [1, 2, 2, 4, 3]
    assert (result.levels[1].met, result.levels[2].met) == (None, True)


def test_a_level_that_is_invalid_twice_ends_the_search():
    result, asked = run(SearchConfig(kind="users", low=1, high=100), lambda users: True if users < 8 else None)

    assert asked == [1, 2, 4, 8, 8]
    assert (result.largest_met, result.smallest_missed) == (4, None)
    assert result.reason == "8 users gave an invalid level twice"


def test_a_search_ends_at_the_most_levels():
    result, asked = run(SearchConfig(kind="users", low=1, high=4096, max_levels=3), lambda users: True)

    assert asked == [1, 2, 4]
    assert result.reason == "search.max_levels=3 reached"


def test_a_search_that_was_ended_asks_for_nothing_more_and_keeps_its_first_reason():
    search = Search(SearchConfig(kind="users"))
    search.add(1, True)
    search.end("time is up")
    search.end("told to stop")

    assert search.next_value() is None
    assert search.result().describe() == "1 user met the SLO (1 level: time is up)."


def test_a_value_that_was_not_asked_for_is_refused():
    search = Search(SearchConfig(kind="users"))

    with pytest.raises(ValueError, match="asked for 1, not for 2"):
        search.add(2, True)
