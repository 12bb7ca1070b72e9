"""The schedule of an open loop is the process it is named after, whoever sends it; and users think as long as asked."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import ArrivalConfig, ProfileConfig, ThinkTimeConfig, WorkloadConfig
from erhpc.errors import ConfigError, InputError
from erhpc.workload.arrivals import draw_think_time_s, plan_arrivals
from erhpc.workload.traces import Trace

PROCESSES = [("poisson", 1.0), ("gamma", 0.25), ("gamma", 4.0), ("constant", 1.0)]
SPIKE = ProfileConfig(kind="spike", base=0.1, start_s=10, length_s=10)


def workload(kind="poisson", burstiness=1.0, **changes):
    trace = "trace.csv" if kind == "trace" else None
    return WorkloadConfig(arrivals=ArrivalConfig(kind=kind, burstiness=burstiness), trace=trace, **changes)


def due_s(asked, rate_per_s, count=10_000, seed=7):
    return np.array([arrival.due_s for arrival in islice(plan_arrivals(asked, rate_per_s, seed), count)])


def make_trace(at_s):
    rows = np.arange(len(at_s), dtype=np.int32)
    return Trace(at_s=np.asarray(at_s, dtype=np.float64), tokens_in=rows, tokens_out=rows + 1000)


def bursty_trace(bursts=400, size=5):
    """Bursts of `size` requests within a second, every ten seconds."""
    return make_trace([10.0 * burst + 0.2 * place for burst in range(bursts) for place in range(size)])


def dispersion_index(times_s, window_s):
    counts = np.histogram(times_s, bins=np.arange(window_s + 1))[0]
    return counts.var(ddof=1) / counts.mean()


@pytest.mark.parametrize("kind", ["poisson", "gamma", "constant"])
@pytest.mark.parametrize("profile", [ProfileConfig(), SPIKE, ProfileConfig(kind="steps")])
def test_arrivals_are_numbered_in_order_of_time(kind, profile):
    arrivals = list(islice(plan_arrivals(workload(kind, 0.1, profile=profile), 50, seed=7), 10_000))

    assert [arrival.number for arrival in arrivals] == list(range(10_000))
    assert all(before.due_s <= after.due_s for before, after in pairwise(arrivals))
    assert arrivals[0].due_s >= 0
    assert {(arrival.tokens_in, arrival.tokens_out) for arrival in arrivals} == {(None, None)}


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_a_seed_gives_one_schedule_and_another_seed_another(kind):
    asked = workload(kind, 2.0)

    assert due_s(asked, 50, 5000).tolist() == due_s(asked, 50, 5000).tolist()
    assert not set(due_s(asked, 50, 5000).tolist()) & set(due_s(asked, 50, 5000, seed=8).tolist())


def test_the_schedule_of_another_rate_is_the_same_process_faster():
    assert due_s(workload(), 100) == pytest.approx(due_s(workload(), 50) / 2)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
def test_the_shares_of_the_workers_add_up_to_the_schedule(num_workers):
    def share_of(worker):
        schedule = islice(plan_arrivals(workload(), 50, seed=7), 5000)
        return [arrival for arrival in schedule if arrival.number % num_workers == worker]

    dealt = [arrival for worker in range(num_workers) for arrival in share_of(worker)]

    assert sorted(dealt, key=lambda arrival: arrival.number) == list(islice(plan_arrivals(workload(), 50, 7), 5000))


# Bounds of about four standard errors, with 50,000 gaps and 1,000 seconds.
@pytest.mark.parametrize(("kind", "burstiness"), PROCESSES)
def test_a_process_has_the_rate_the_gaps_and_the_counts_of_its_name(kind, burstiness):
    cv = 0 if kind == "constant" else burstiness**-0.5
    times_s = due_s(workload(kind, burstiness), 50, 50_000)
    gaps_s = np.diff(times_s)

    assert len(times_s) / times_s[-1] == pytest.approx(50, rel=4 * cv / 50_000**0.5 + 1e-9)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)
    assert dispersion_index(times_s, 990) == pytest.approx(cv**2, rel=4 * (2 / 989) ** 0.5, abs=0.005)


@pytest.mark.parametrize(("kind", "burstiness"), PROCESSES[:3])
def test_gaps_know_nothing_of_the_gap_before(kind, burstiness):
    gaps_s = np.diff(due_s(workload(kind, burstiness), 50, 50_000))

    assert np.corrcoef(gaps_s[1:], gaps_s[:-1])[0, 1] == pytest.approx(0, abs=4 / 50_000**0.5)


def test_a_constant_process_drifts_nowhere():
    assert due_s(workload("constant"), 10, 100_000) == pytest.approx(np.arange(1, 100_001) / 10, abs=1e-9)


def test_the_number_of_arrivals_in_a_given_time_is_left_to_chance():
    counts = [np.searchsorted(due_s(workload(), 50, 1000, seed), 10.0) for seed in range(200)]

    # A Poisson count of mean 500 has the variance 500; four standard errors of that from 200 samples are 200.
    assert np.var(counts, ddof=1) == pytest.approx(500, abs=200)


def test_a_spike_comes_in_the_window_and_carries_the_whole_rate():
    times_s = due_s(workload(profile=SPIKE, warmup_s=5, measure_s=30), 1000, 30_000)
    counts = np.histogram(times_s, bins=[0, 15, 25, 35])[0]

    # The level's 5 s of warm-up and 10 s of window at a tenth, 10 s at all of it, 10 s at a tenth.
    assert counts == pytest.approx([1500, 10_000, 1000], rel=0.12)
    assert np.diff(times_s[(times_s > 15) & (times_s < 25)]).mean() == pytest.approx(0.001, rel=0.05)


def test_a_poisson_process_of_changing_rate_is_poisson_within_each_step():
    asked = workload(profile=ProfileConfig(kind="steps", steps=2), warmup_s=0, measure_s=1000)
    times_s = due_s(asked, 50, 40_000)

    assert dispersion_index(times_s[times_s < 500], 500) == pytest.approx(1, abs=4 * (2 / 499) ** 0.5)
    assert dispersion_index(times_s[times_s >= 500] - 500, 500) == pytest.approx(1, abs=4 * (2 / 499) ** 0.5)


def test_equal_gaps_follow_a_profile_exactly():
    asked = workload("constant", profile=ProfileConfig(kind="steps", steps=2), warmup_s=2, measure_s=8)

    assert due_s(asked, 1, 7) == pytest.approx([2, 4, 6, 7, 8, 9, 10])


def test_a_trace_begins_at_once_and_ends_when_it_ends():
    arrivals = list(plan_arrivals(workload("trace"), None, 7, make_trace([0, 1.5, 1.5, 9])))

    assert [(a.number, a.due_s, a.tokens_in, a.tokens_out) for a in arrivals] == [
        (0, 0, 0, 1000),
        (1, 1.5, 1, 1001),
        (2, 1.5, 2, 1002),
        (3, 9, 3, 1003),
    ]


def test_the_time_scale_multiplies_the_gaps_of_a_trace():
    arrivals = plan_arrivals(workload("trace", time_scale=0.5), None, 7, make_trace([0, 1, 9]))

    assert [arrival.due_s for arrival in arrivals] == [0, 0.5, 4.5]


def test_a_trace_at_its_own_rate_is_itself():
    trace = bursty_trace()
    asked = workload("trace", time_scale=0.5)
    arrivals = list(plan_arrivals(asked, 2 * trace.mean_rate_per_s, 7, trace))

    assert [arrival.due_s for arrival in arrivals] == (trace.at_s / 2).tolist()


@given(st.floats(0.01, 20), st.integers(0, 2**32), st.floats(0.1, 10))
@settings(deadline=None, max_examples=60)
def test_a_trace_comes_at_the_rate_asked_for(ratio, seed, time_scale):
    trace = bursty_trace()
    rate_per_s = ratio * trace.mean_rate_per_s / time_scale
    arrivals = list(plan_arrivals(workload("trace", time_scale=time_scale), rate_per_s, seed, trace))
    times_s = np.array([arrival.due_s for arrival in arrivals])

    whole = np.floor(ratio)
    expected = ratio * (trace.at_s.size - 1) + min(ratio, 1)
    variance = (ratio - whole) * (1 - (ratio - whole)) * trace.at_s.size
    assert len(arrivals) == pytest.approx(expected, abs=6 * variance**0.5 + 3)
    assert (np.diff(times_s) >= 0).all()
    assert 0 <= times_s[0] <= times_s[-1] <= trace.at_s[-1] * time_scale
    assert [arrival.number for arrival in arrivals] == list(range(len(arrivals)))


@given(st.floats(1, 6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_each_row_comes_k_or_k_plus_one_times_before_the_next(ratio, seed):
    trace = bursty_trace(bursts=50)
    arrivals = list(plan_arrivals(workload("trace"), ratio * trace.mean_rate_per_s, seed, trace))
    rows = np.array([arrival.tokens_in for arrival in arrivals])
    times_s = np.array([arrival.due_s for arrival in arrivals])

    copies = np.bincount(rows, minlength=trace.at_s.size)
    assert set(copies[:-1].tolist()) <= {int(ratio + 1e-9), int(ratio - 1e-9) + 1}
    assert copies[-1] == 1
    assert (times_s >= trace.at_s[rows]).all()
    assert (times_s <= np.append(trace.at_s[1:], trace.at_s[-1])[rows]).all()
    assert set(trace.at_s.tolist()) <= set(times_s.tolist())


def test_bursts_stay_bursts_when_a_trace_is_thinned():
    trace = bursty_trace(bursts=2000, size=20)
    own = dispersion_index(trace.at_s, 20_000)
    thinned = [arrival.due_s for arrival in plan_arrivals(workload("trace"), trace.mean_rate_per_s / 4, 7, trace)]

    # Thinning by p turns an index of 1 + x into 1 + p x.
    assert dispersion_index(thinned, 20_000) == pytest.approx(1 + (own - 1) / 4, rel=0.1)


def test_the_copies_of_a_trace_depend_on_the_seed_alone():
    trace = bursty_trace()
    rate_per_s = 2.5 * trace.mean_rate_per_s
    first, again, other = (list(plan_arrivals(workload("trace"), rate_per_s, seed, trace)) for seed in (7, 7, 8))

    assert first == again
    assert [arrival.due_s for arrival in first] != [arrival.due_s for arrival in other]


def test_a_trace_follows_a_profile_by_leaving_rows_out():
    trace = make_trace(np.arange(0, 35, 0.001))
    asked = workload("trace", profile=SPIKE, warmup_s=5, measure_s=30)
    times_s = [arrival.due_s for arrival in plan_arrivals(asked, None, 7, trace)]

    assert np.histogram(times_s, bins=[0, 15, 25, 35])[0] == pytest.approx([1500, 10_000, 1000], rel=0.12)


def test_a_rate_far_above_the_trace_is_planned_piece_by_piece():
    arrivals = plan_arrivals(workload("trace"), 1e6, 7, make_trace([0, 1, 2]))

    assert next(arrivals).due_s < 1e-4


@pytest.mark.parametrize(
    ("asked", "rate_per_s", "trace", "message"),
    [
        (workload("closed"), 5, None, "closed has no schedule"),
        (workload("poisson"), None, None, "needs a rate. Set workload.rates_per_s"),
        (workload("trace"), 5, None, "needs a trace. Set workload.trace"),
    ],
)
def test_what_is_missing_is_said_before_the_first_arrival(asked, rate_per_s, trace, message):
    with pytest.raises(ConfigError, match=message):
        plan_arrivals(asked, rate_per_s, 7, trace)


@pytest.mark.parametrize("at_s", [[0.0], [0.0, 0.0]])
def test_a_trace_without_length_can_be_replayed_but_not_scaled(at_s):
    trace = make_trace(at_s)

    assert [arrival.due_s for arrival in plan_arrivals(workload("trace"), None, 7, trace)] == at_s
    with pytest.raises(InputError, match="all of its rows come at one time"):
        plan_arrivals(workload("trace"), 5, 7, trace)


def thought_s(config, count=40_000):
    random = np.random.default_rng(7)
    return np.array([draw_think_time_s(config, random) for _ in range(count)])


# Four standard errors of a mean of 40,000 with a coefficient of variation of 1 are 2 %.
@pytest.mark.parametrize("kind", ["constant", "exponential", "lognormal"])
def test_think_times_have_the_mean_that_was_asked_for(kind):
    drawn_s = thought_s(ThinkTimeConfig(kind=kind, mean_s=3, sigma=0.8))

    assert drawn_s.mean() == pytest.approx(3, rel=0.02)
    assert drawn_s.min() > 0


def test_think_times_have_the_spread_of_their_kind():
    asked = ThinkTimeConfig(kind="constant", mean_s=3, sigma=0.8)

    assert thought_s(asked, 10).std() == 0
    assert thought_s(replace(asked, kind="exponential")).std() == pytest.approx(3, rel=0.05)
    assert np.log(thought_s(replace(asked, kind="lognormal"))).std() == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize("kind", ["constant", "exponential", "lognormal"])
def test_users_who_do_not_think_do_not_wait(kind):
    assert set(thought_s(ThinkTimeConfig(kind=kind, mean_s=0), 10)) == {0}
