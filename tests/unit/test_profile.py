"""A profile is a step function with an integral that can be inverted; users follow it in whole numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import ProfileConfig
from erhpc.workload.profile import Profile, num_active

STEPS = Profile(ProfileConfig(kind="steps", steps=4), measure_s=40)
SPIKE = Profile(ProfileConfig(kind="spike", base=0.2, start_s=10, length_s=5), measure_s=30)
FLAT = Profile(ProfileConfig(), measure_s=30)

lengths_s = st.floats(0.1, 1e4)
profiles = st.builds(
    Profile,
    st.one_of(
        st.just(ProfileConfig()),
        st.builds(ProfileConfig, kind=st.just("steps"), steps=st.integers(2, 100)),
        st.builds(
            ProfileConfig,
            kind=st.just("spike"),
            base=st.floats(0.001, 1),
            start_s=st.floats(0, 1e4),
            length_s=st.floats(0.001, 1e4),
        ),
    ),
    lengths_s,
)
times_s = st.floats(-1e4, 2e4)


def test_a_flat_profile_is_the_whole_load_at_all_times():
    assert [FLAT.share(t_s) for t_s in (-100, 0, 15, 1000)] == [1, 1, 1, 1]
    assert FLAT.cumulative(-7) == -7
    assert FLAT.changes() == []


def test_steps_divide_the_window_equally_and_end_with_the_whole_load():
    assert [STEPS.share(t_s) for t_s in (0, 9.99, 10, 20, 30, 40)] == [0.25, 0.25, 0.5, 0.75, 1, 1]
    assert STEPS.changes() == [(10, 0.5), (20, 0.75), (30, 1)]


def test_a_spike_begins_and_ends_on_time():
    assert [SPIKE.share(t_s) for t_s in (0, 9.99, 10, 14.99, 15, 30)] == [0.2, 0.2, 1, 1, 0.2, 0.2]
    assert SPIKE.changes() == [(10, 1), (15, 0.2)]


@pytest.mark.parametrize("profile", [FLAT, STEPS, SPIKE])
def test_before_the_window_the_load_is_as_at_its_beginning(profile):
    assert profile.share(-1000) == profile.share(0)
    assert profile.cumulative(-10) == pytest.approx(-10 * profile.share(0))


def test_a_spike_at_once_holds_from_before_the_window():
    profile = Profile(ProfileConfig(kind="spike", base=0.1, start_s=0, length_s=5), measure_s=30)

    assert (profile.share(-1), profile.share(0), profile.share(5)) == (1, 1, 0.1)
    assert profile.changes() == [(5, 0.1)]


def test_a_spike_as_high_as_its_base_changes_nothing():
    profile = Profile(ProfileConfig(kind="spike", base=1.0), measure_s=30)

    assert profile.changes() == []


def test_the_integral_adds_up_the_parts_of_the_window():
    assert SPIKE.cumulative(30) == pytest.approx(0.2 * 10 + 5 + 0.2 * 15)
    assert STEPS.cumulative(40) == pytest.approx(10 * (0.25 + 0.5 + 0.75 + 1))


@given(profiles, times_s)
@settings(deadline=None)
def test_the_inverse_finds_the_time_again(profile, t_s):
    # A share of 0.001 magnifies the rounding of the integral a thousand times.
    assert profile.time_at(profile.cumulative(t_s)) == pytest.approx(t_s, rel=1e-7, abs=1e-7)


@given(profiles, st.lists(times_s, min_size=2))
@settings(deadline=None)
def test_what_is_in_order_stays_in_order(profile, values):
    found = [profile.time_at(value) for value in sorted(values)]

    assert all(before <= after for before, after in pairwise(found))


@given(profiles, times_s)
@settings(deadline=None)
def test_the_changes_tell_the_share_at_any_time(profile, t_s):
    told = [profile.share(0), *(share for change_s, share in profile.changes() if change_s <= t_s)]

    assert profile.share(t_s) == told[-1]


@given(st.integers(1, 1_000_000), st.integers(1, 100), st.integers(1, 100))
@settings(deadline=None)
def test_active_users_are_rounded_up(users, step, steps):
    share = min(step, steps) / steps

    assert num_active(users, share) == -(-users * min(step, steps) // steps)


def test_rounding_wakes_no_further_user():
    assert 25 * 0.28 > 7
    assert num_active(25, 0.28) == 7


def test_a_tenth_of_one_user_is_one_user():
    assert num_active(1, 0.001) == 1
