"""The audit recognises the process it was told about, and refuses those that public generators send in its name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.results.audit import ArrivalAudit, audit_arrivals

RATE_PER_S = 50.0
WINDOW_S = 100.0
STANDARD_ERROR = math.sqrt(2 / (WINDOW_S - 1))


def renewals_s(shape, seed=0, count=10_000):
    """Times of a process with gamma gaps of mean 1 / RATE_PER_S, well beyond the window."""
    return np.cumsum(np.random.default_rng(seed).gamma(shape, 1 / (RATE_PER_S * shape), count))


def audit(times_s, kind="poisson", burstiness=1.0, **options):
    return audit_arrivals(times_s, kind, RATE_PER_S, burstiness, window_s=WINDOW_S, **options)


def test_a_poisson_process_passes_as_one():
    found = audit(renewals_s(1))

    assert found.gap_cv == pytest.approx(1, abs=0.05)
    assert found.dispersion_index == pytest.approx(1, abs=3 * STANDARD_ERROR)
    assert found.ks_p > 0.01


def test_p_values_of_right_processes_are_evenly_spread():
    found = [audit(renewals_s(1, seed)).ks_p for seed in range(200)]

    # Four standard errors of a share of 10 % in 200 are 8 %.
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.08)
    assert np.median(found) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("shape", [0.25, 4.0])
def test_a_gamma_process_passes_as_its_own_and_as_no_other(shape):
    times_s = renewals_s(shape)
    found = audit(times_s, "gamma", shape)

    assert found.gap_cv == pytest.approx(shape**-0.5, rel=0.05)
    assert found.dispersion_index == pytest.approx(1 / shape, rel=4 * STANDARD_ERROR)
    assert found.ks_p > 0.01
    assert audit(times_s, "gamma", 1.0).ks_p < 1e-6
    assert audit(times_s, "poisson").ks_p < 1e-6


def test_a_poisson_process_of_another_rate_is_refused():
    assert audit(renewals_s(1) * 1.2).ks_p < 1e-6


def test_a_constant_process_is_told_by_its_gaps_and_has_no_p():
    found = audit(np.arange(10_000) / RATE_PER_S, "constant")

    assert found.gap_cv == pytest.approx(0, abs=1e-9)
    assert found.dispersion_index == pytest.approx(0, abs=0.01)
    assert found.ks_p is None


def test_a_constant_process_that_is_none_shows():
    assert audit(renewals_s(1), "constant").gap_cv == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("workers", [4, 10])
def test_workers_that_draw_the_same_stream_are_found_out(workers):
    """Each gap then comes as often as there are workers: in each bunch the requests of all of them."""
    gaps_s = np.random.default_rng(0).exponential(1 / RATE_PER_S, 10_000)
    found = audit(np.cumsum(np.repeat(gaps_s, workers)))

    assert found.gap_cv == pytest.approx(1, abs=0.2)
    assert found.dispersion_index > 1 + 10 * STANDARD_ERROR
    assert found.dispersion_index == pytest.approx(workers, rel=0.5)


def test_a_replay_on_time_has_the_gaps_of_its_plan():
    due_s = renewals_s(0.2)

    assert audit(due_s + 1e-6, "trace", due_s=due_s).ks_p > 0.5


def test_a_replay_by_a_client_that_sends_in_batches_is_refused():
    due_s = renewals_s(1)

    assert audit(np.ceil(due_s * 5) / 5, "trace", due_s=due_s).ks_p < 1e-6


def test_a_replay_without_its_plan_has_no_p():
    found = audit(renewals_s(1), "trace")

    assert found.ks_p is None
    assert found.gap_cv is not None


def test_a_second_in_which_the_client_stood_still_raises_the_index():
    times_s = renewals_s(1)
    stalled_s = np.where((times_s >= 40) & (times_s < 43), 43.0, times_s)

    assert audit(stalled_s).dispersion_index > 3


def test_a_client_that_stops_before_the_window_ends_is_found_out():
    times_s = renewals_s(1)

    assert audit(times_s[times_s < 70]).dispersion_index > 10


def test_a_slow_poisson_process_has_empty_seconds_and_an_index_of_one():
    times_s = np.cumsum(np.random.default_rng(1).exponential(2, 1000))
    found = audit_arrivals(times_s, "poisson", 0.5, window_s=1000)

    assert found.dispersion_index == pytest.approx(1, abs=4 * math.sqrt(2 / 999))


def test_only_the_window_is_audited():
    times_s = renewals_s(1)
    inside_s = times_s[times_s < WINDOW_S]
    around_s = np.concatenate([np.linspace(-5, -0.1, 700), inside_s, np.full(300, WINDOW_S)])

    assert audit(around_s) == audit(inside_s)


def test_without_a_window_the_requests_themselves_are_its_edges():
    found = audit_arrivals(renewals_s(1) + 1e6, "poisson", RATE_PER_S)

    assert found.dispersion_index == pytest.approx(1, abs=4 * math.sqrt(2 / 199))


@pytest.mark.parametrize("window_s", [5, 9.99])
def test_a_short_window_has_no_index(window_s):
    found = audit_arrivals(renewals_s(1), "poisson", RATE_PER_S, window_s=window_s)

    assert found.dispersion_index is None
    assert found.gap_cv is not None


@pytest.mark.parametrize("kind", ["poisson", "gamma", "constant", "trace"])
@pytest.mark.parametrize("window_s", [None, 100.0])
def test_nothing_is_said_of_no_request(kind, window_s):
    assert audit_arrivals([], kind, RATE_PER_S, window_s=window_s, due_s=[]) == ArrivalAudit()


def test_requests_that_were_all_sent_at_once_have_no_coefficient_of_variation():
    found = audit_arrivals([3.0, 3.0, 3.0], "poisson", RATE_PER_S)

    assert (found.gap_cv, found.dispersion_index) == (None, None)


def test_a_closed_loop_is_asked_for_no_distribution():
    assert audit_arrivals(renewals_s(1), "closed").ks_p is None


@given(
    st.lists(st.floats(0, 200), max_size=40),
    st.sampled_from(["closed", "poisson", "gamma", "constant", "trace"]),
    st.one_of(st.none(), st.floats(1e-3, 1e6)),
    st.floats(0.01, 10_000),
    st.one_of(st.none(), st.floats(0.1, 1000)),
    st.one_of(st.none(), st.lists(st.floats(0, 200), max_size=40)),
)
@settings(deadline=None, max_examples=200)
def test_what_cannot_be_computed_is_none_and_never_nan(sent_s, kind, rate_per_s, burstiness, window_s, due_s):
    due_s = None if due_s is None else sorted(due_s)
    found = audit_arrivals(sorted(sent_s), kind, rate_per_s, burstiness, window_s=window_s, due_s=due_s)

    for value in (found.gap_cv, found.dispersion_index, found.ks_p):
        assert value is None or math.isfinite(value)
    assert found.ks_p is None or 0 <= found.ks_p <= 1


def test_gaps_that_no_client_can_keep_apart_pass_for_one():
    random = np.random.default_rng(3)
    gaps_s = random.gamma(0.25, 4 / 60, 2000)  # half of them below a millisecond, many below a microsecond

    found = audit_arrivals(np.cumsum(np.maximum(gaps_s, 50e-6)), "gamma", 60.0, 0.25)

    assert found.ks_p > 0.01
