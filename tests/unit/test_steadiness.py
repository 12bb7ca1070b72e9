"""Error rates of the steadiness test, by simulation with fixed seeds."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from erhpc.load.steadiness import MIN_STEPS, Sample, SteadinessTest

STEP_S = 0.5
TOKENS_PER_REQUEST = 64


def observe(samples, *, from_s=5.0, **test):
    """Whether the last look finds the level steady, and the time of the first look that does."""
    steadiness = SteadinessTest(**test)
    first_s = None
    for sample in samples:
        steadiness.add(sample)
        if first_s is None and sample.time_s >= from_s and steadiness.is_steady():
            first_s = sample.time_s
    return steadiness.is_steady(), first_s


def last_looks(make_samples, runs):
    """Share of the runs, each with a seed of its own, that are found steady at their end."""
    looks = []
    for seed in range(runs):
        steadiness = SteadinessTest()
        for sample in make_samples(np.random.default_rng(seed)):
            steadiness.add(sample)
        looks.append(steadiness.is_steady())
    return np.mean(looks)


def poisson(random, length_s, tokens_per_s, requests_per_s, *, growth=0.0, in_flight=100):
    """Samples of a fixed number in flight whose Poisson rates grow by `growth` over all."""
    times_s = np.arange(0, length_s + STEP_S, STEP_S)
    shape = 1 + growth * (times_s[1:] - STEP_S / 2) / length_s
    tokens = np.cumsum(random.poisson(tokens_per_s * STEP_S * shape))
    requests = np.cumsum(random.poisson(requests_per_s * STEP_S * shape))
    yield Sample(time_s=0.0, tokens=0, requests=0, in_flight=in_flight)
    for time_s, num_tokens, num_requests in zip(times_s[1:], tokens, requests, strict=True):
        yield Sample(time_s=time_s, tokens=num_tokens, requests=num_requests, in_flight=in_flight)


def sampled(starts_s, ends_s, length_s, ttft_share=0.1):
    """Samples of requests whose tokens come evenly after the first `ttft_share` of their time."""
    starts_s, ends_s = np.array(starts_s), np.array(ends_s)
    firsts_s = starts_s + ttft_share * (ends_s - starts_s)
    for time_s in np.arange(0, length_s + STEP_S, STEP_S):
        share = np.clip((time_s - firsts_s) / (ends_s - firsts_s), 0, 1)
        yield Sample(
            time_s=time_s,
            tokens=int(np.floor(share * TOKENS_PER_REQUEST).sum()),
            requests=int((ends_s <= time_s).sum()),
            in_flight=int(((starts_s <= time_s) & (ends_s > time_s)).sum()),
        )


def closed_loop(random, users, answer_s, *, length_s=60.0, sigma=0.0, ramp_s=1.0):
    """Users without pauses, whose answers take log-normal times; in step with each other if sigma is 0."""
    starts_s, ends_s = [], []
    for user in range(users):
        time_s = ramp_s * user / users
        while time_s < length_s:
            starts_s.append(time_s)
            time_s += answer_s * random.lognormal(-(sigma**2) / 2, sigma)
            ends_s.append(time_s)
    return sampled(starts_s, ends_s, length_s)


def open_loop(random, rate_per_s, answer_s, *, slots=100_000, length_s=60.0):
    """Poisson arrivals at a server with so many slots; what finds none waits in line."""
    arrivals_s = np.sort(random.uniform(0, length_s, random.poisson(rate_per_s * length_s)))
    free_s = [0.0] * min(slots, len(arrivals_s))
    ends_s = []
    for arrival_s in arrivals_s:
        begin_s = max(arrival_s, heapq.heappop(free_s))
        ends_s.append(begin_s + answer_s * random.lognormal(-0.125, 0.5))
        heapq.heappush(free_s, ends_s[-1])
    return sampled(arrivals_s, ends_s, length_s)


@pytest.mark.parametrize("length_s", [20, 60])
def test_a_long_steady_load_is_called_not_steady_in_less_than_one_look_of_twenty(length_s):
    steady = last_looks(lambda random: poisson(random, length_s, 3000, 50), runs=300)

    assert steady > 0.95


@pytest.mark.parametrize(("rate_per_s", "answer_s"), [(1, 5), (10, 2), (50, 5)])
def test_a_steady_open_loop_is_called_not_steady_in_less_than_one_look_of_twenty(rate_per_s, answer_s):
    steady = last_looks(lambda random: open_loop(random, rate_per_s, answer_s), runs=100)

    assert steady >= 0.95


@pytest.mark.parametrize("growth", [0.2, -0.2])
@pytest.mark.parametrize(("length_s", "tokens_per_s"), [(60, 3000), (20, 10_000)])
def test_a_ramp_of_a_fifth_over_all_that_was_seen_is_missed_in_less_than_one_look_of_twenty(
    length_s, tokens_per_s, growth
):
    steady = last_looks(
        lambda random: poisson(random, length_s, tokens_per_s, tokens_per_s / 64, growth=growth), runs=200
    )

    assert steady < 0.05


def test_a_load_that_grows_fourfold_is_never_called_steady():
    looks = [observe(poisson(np.random.default_rng(seed), 60, 3000, 50, growth=3.0)) for seed in range(20)]

    assert set(looks) == {(False, None)}


@pytest.mark.parametrize("users", [20, 300])
def test_a_ramp_of_users_is_never_called_steady(users):
    looks = [observe(closed_loop(np.random.default_rng(seed), users, 3.0, sigma=0.3, ramp_s=60.0)) for seed in range(5)]

    assert set(looks) == {(False, None)}


@pytest.mark.parametrize(("rate_per_s", "answer_s", "slots"), [(200, 5.0, 800), (20, 3.0, 30)])
def test_an_open_loop_above_capacity_is_never_called_steady(rate_per_s, answer_s, slots):
    looks = [observe(open_loop(np.random.default_rng(seed), rate_per_s, answer_s, slots=slots)) for seed in range(10)]

    assert set(looks) == {(False, None)}


@pytest.mark.parametrize(("answer_s", "sigma"), [(0.6, 0.0), (3.0, 0.0), (3.0, 0.5), (6.0, 0.5)])
def test_one_user_is_called_steady_within_half_a_minute(answer_s, sigma):
    looks = [observe(closed_loop(np.random.default_rng(seed), 1, answer_s, sigma=sigma)) for seed in range(20)]

    assert max(first_s for _, first_s in looks) <= 32


@pytest.mark.parametrize("answer_s", [1.3, 3.7, 8.0, 11.9])
def test_users_who_are_answered_in_step_are_called_steady(answer_s):
    samples = list(closed_loop(np.random.default_rng(1), 100, answer_s, ramp_s=0.01))

    steady, first_s = observe(samples)

    assert steady
    assert first_s <= 3 * answer_s + 20


def test_a_hundred_users_are_called_steady_before_patience_ends():
    looks = [observe(closed_loop(np.random.default_rng(seed), 100, 3.0, sigma=0.3)) for seed in range(10)]

    assert max(first_s for _, first_s in looks) <= 20


def test_no_load_is_called_steady_from_less_than_the_fewest_samples():
    steadiness = SteadinessTest()
    verdicts = []
    for number in range(MIN_STEPS + 1):
        steadiness.add(Sample(time_s=number / 2, tokens=1000 * number, requests=20 * number, in_flight=10))
        verdicts.append(steadiness.is_steady())

    assert verdicts == [False] * MIN_STEPS + [True]


@pytest.mark.parametrize("silent", ["tokens", "requests", "in_flight"])
def test_no_load_is_called_steady_in_which_nothing_comes(silent):
    steadiness = SteadinessTest()
    for number in range(120):
        counts = {"tokens": 1000 * number, "requests": 20 * number, "in_flight": 10} | {silent: 0}
        steadiness.add(Sample(time_s=number / 2, **counts))

    assert not steadiness.is_steady()


def test_a_pause_between_requests_belongs_to_the_cycle():
    """Users who think 4 s after answers of 4 s in step: only with the pause known, moments one cycle apart match."""
    starts_s = np.repeat(np.arange(0, 60, 8.0), 50)

    _, first_s = observe(sampled(starts_s, starts_s + 4.0, 60.0), think_time_s=4.0)

    assert first_s < 30


def test_less_patience_calls_a_slow_open_loop_steady_sooner():
    samples = list(open_loop(np.random.default_rng(3), 2, 1.0))

    _, patient_s = observe(samples)
    _, impatient_s = observe(samples, patience_s=10.0)

    assert impatient_s <= 12 < patient_s
