from __future__ import annotations

import numpy as np
import pytest

from erhpc.config import LengthConfig
from erhpc.errors import ConfigError
from erhpc.workload.lengths import draw_tokens


def drawn(length: LengthConfig, count: int = 20_000) -> np.ndarray:
    random = np.random.default_rng(7)
    return np.array([draw_tokens(length, random) for _ in range(count)])


def test_a_fixed_length_is_its_mean():
    assert set(drawn(LengthConfig(kind="fixed", mean=64), 10)) == {64}


def test_a_uniform_length_reaches_both_ends_and_nothing_beyond():
    assert set(drawn(LengthConfig(kind="uniform", mean=4, low=3, high=6))) == {3, 4, 5, 6}


def test_a_lognormal_length_has_the_mean_that_was_asked_for():
    assert drawn(LengthConfig(kind="lognormal", mean=256, sigma=0.5, high=100_000)).mean() == pytest.approx(
        256, rel=0.02
    )


def test_a_lognormal_length_has_the_spread_that_was_asked_for():
    lengths = drawn(LengthConfig(kind="lognormal", mean=256, sigma=0.5, high=100_000))
    assert np.log(lengths).std() == pytest.approx(0.5, rel=0.03)


def test_a_lognormal_length_stays_within_its_bounds():
    lengths = drawn(LengthConfig(kind="lognormal", mean=50, sigma=2.0, low=10, high=100))
    assert (lengths.min(), lengths.max()) == (10, 100)


@pytest.mark.parametrize(("traced", "expected"), [(0, 1), (1, 1), (64, 64), (9000, 9000)])
def test_a_traced_length_is_that_of_the_row_and_at_least_one_token(traced, expected):
    random = np.random.default_rng(7)
    before = random.bit_generator.state

    assert draw_tokens(LengthConfig(kind="trace", low=5, high=100), random, traced) == expected
    assert random.bit_generator.state == before


def test_a_row_of_a_trace_changes_no_other_kind_of_length():
    assert draw_tokens(LengthConfig(mean=64), np.random.default_rng(7), 3) == 64


def test_a_traced_length_without_a_row_is_refused_with_what_to_set():
    with pytest.raises(ConfigError, match=r"Set workload\.trace=FILE"):
        draw_tokens(LengthConfig(kind="trace"), np.random.default_rng(7))
