"""Distributions of times in the ledger."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.gateway.histogram import BOUNDS_S, Histogram, name_cells
from erhpc.gateway.ledger import Ledger

NAME = "erhpc_wait_seconds"
TIMES_NS = st.lists(st.integers(0, 100_000_000_000), max_size=60)


def histograms(number: int = 1) -> list[Histogram]:
    """Histograms of as many processes."""
    cells = list(name_cells(NAME))
    memory = bytearray(Ledger.size_bytes(len(cells), number))
    return [Histogram(Ledger(cells, num_rows=number, row=row, memory=memory), NAME) for row in range(number)]


def read_buckets(histogram: Histogram) -> dict[str, int]:
    """What the lines say, by upper bound."""
    found = [re.fullmatch(rf'{NAME}_bucket{{le="(\S+)"}} (\d+)', line) for line in histogram.lines()]
    return {match[1]: int(match[2]) for match in found if match}


def test_an_empty_histogram_has_no_mean_and_no_quantile():
    [histogram] = histograms()
    assert (histogram.num_values, histogram.mean_s, histogram.quantile_s(0.5)) == (0, None, None)
    assert set(read_buckets(histogram).values()) == {0}


@pytest.mark.parametrize("bound_s", BOUNDS_S)
def test_a_time_that_equals_a_bound_is_within_it_and_one_just_above_is_not(bound_s: float):
    [histogram] = histograms()
    histogram.add(round(bound_s * 1e9))
    assert read_buckets(histogram)[f"{bound_s:g}"] == 1
    histogram.add(round(bound_s * 1e9) + 1)
    assert read_buckets(histogram)[f"{bound_s:g}"] == 1
    assert read_buckets(histogram)["+Inf"] == 2


@given(TIMES_NS, TIMES_NS)
def test_the_lines_are_cumulative_and_tell_of_all_processes(first_ns: list[int], second_ns: list[int]):
    both = histograms(2)
    for histogram, times_ns in zip(both, (first_ns, second_ns), strict=True):
        for time_ns in times_ns:
            histogram.add(time_ns)
    times_ns = [*first_ns, *second_ns]
    assert list(both[0].lines()) == list(both[1].lines())
    buckets = read_buckets(both[0])
    assert list(buckets) == [*(f"{bound_s:g}" for bound_s in BOUNDS_S), "+Inf"]
    for bound_s in BOUNDS_S:
        assert buckets[f"{bound_s:g}"] == sum(time_ns <= round(bound_s * 1e9) for time_ns in times_ns)
    *_, total, number = both[0].lines()
    assert number == f"{NAME}_count {len(times_ns)}"
    assert buckets["+Inf"] == len(times_ns) == both[0].num_values
    assert float(total.removeprefix(f"{NAME}_sum ")) == pytest.approx(sum(times_ns) / 1e9)


@given(TIMES_NS.filter(bool), st.floats(0.01, 1))
def test_a_quantile_is_the_upper_end_of_the_bucket_that_holds_it(times_ns: list[int], share: float):
    [histogram] = histograms()
    for time_ns in times_ns:
        histogram.add(time_ns)
    bound_s = histogram.quantile_s(share)
    assert bound_s is not None
    below = [lower_s for lower_s in BOUNDS_S if lower_s < bound_s]
    assert sum(time_ns <= bound_s * 1e9 + 0.5 for time_ns in times_ns) >= share * len(times_ns)
    if below:
        assert sum(time_ns <= round(below[-1] * 1e9) for time_ns in times_ns) < share * len(times_ns)
    assert histogram.mean_s == pytest.approx(sum(times_ns) / len(times_ns) / 1e9)


def test_the_quantile_above_the_last_bound_is_infinite():
    [histogram] = histograms()
    histogram.add(10**12)
    assert histogram.quantile_s(0.99) == float("inf")
