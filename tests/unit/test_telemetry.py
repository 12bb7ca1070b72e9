from __future__ import annotations

import asyncio

import pytest

from erhpc.results.telemetry import Lookback, LoopLag, TimedValues, parse_lookback


def test_a_quantile_counts_only_values_since_the_given_time():
    values = TimedValues(1000)
    for second in range(100):
        values.add(second, float(second))

    assert values.quantile(0.99, since_s=0) == 98
    assert values.quantile(0.5, since_s=90) == 94
    assert values.quantile(0.99, since_s=1000) == 0.0


def test_a_quantile_leaves_out_what_came_after_the_given_time():
    values = TimedValues(1000)
    for second in range(100):
        values.add(second, float(second))

    assert values.quantile(1.0, since_s=10, until_s=20) == 20
    assert values.quantile(0.0, since_s=10, until_s=20) == 10


def test_the_oldest_values_go_when_the_ring_is_full():
    values = TimedValues(10)
    for second in range(25):
        values.add(second, float(second))

    assert values.quantile(0.0, since_s=0) == 15
    assert values.quantile(1.0, since_s=0) == 24


def test_whoever_asks_for_no_window_gets_ten_seconds():
    assert parse_lookback({}) == Lookback(10.0, 0.0)
    assert parse_lookback({"window_s": "600"}) == Lookback(600.0, 0.0)
    assert parse_lookback({"ago_s": "3.5"}) == Lookback(10.0, 3.5)


@pytest.mark.parametrize("given", ["0", "-1", "600.1", "soon", "nan", "inf", ""])
def test_a_window_that_cannot_be_looked_back_on_is_refused(given):
    with pytest.raises(ValueError, match=f"window_s='{given}' is out of range. Allowed: above 0, at most 600"):
        parse_lookback({"window_s": given})


@pytest.mark.parametrize("given", ["-1", "600.1", "soon", "nan", "inf", ""])
def test_a_window_that_ended_when_nobody_remembers_is_refused(given):
    with pytest.raises(ValueError, match=f"ago_s='{given}' is out of range. Allowed: from 0, at most 600"):
        parse_lookback({"ago_s": given})


INTERVAL_S = 0.01


class LateClock:
    """A clock whose sleeps end late by the given seconds, one after the other, and then never end."""

    def __init__(self, *lags_s) -> None:
        self.now_s = 100.0
        self.is_spent = asyncio.Event()
        self._lags_s = list(lags_s)

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, delay_s):
        if not self._lags_s:
            self.is_spent.set()
            await asyncio.Event().wait()
        self.now_s += max(delay_s, 0) + self._lags_s.pop(0)


async def lag_after(*lags_s):
    clock = LateClock(*lags_s)
    lag = LoopLag(INTERVAL_S, clock=clock, sleep=clock.sleep)
    lag.start()
    await clock.is_spent.wait()
    await lag.stop()
    return lag


async def test_a_loop_in_time_has_no_lag():
    lag = await lag_after(*[0.0] * 100)

    assert lag.p99_s(Lookback(10)) == pytest.approx(0, abs=1e-9)


async def test_a_stall_weighs_in_the_percentile_by_its_length():
    lag = await lag_after(*[0.0] * 400, 0.5, *[0.0] * 400)

    assert 0.4 < lag.p99_s(Lookback(10)) <= 0.5


async def test_a_loop_whose_timers_round_to_whole_milliseconds_is_not_asked_over_and_over():
    now_s, num_sleeps, is_spent = 100.0, 0, asyncio.Event()

    async def sleep(delay_s):
        nonlocal now_s, num_sleeps
        num_sleeps += 1
        if num_sleeps == 100:
            is_spent.set()
            await asyncio.Event().wait()
        now_s += round(max(delay_s, 0), 3) + 0.0003  # what a turn of the loop takes itself

    lag = LoopLag(INTERVAL_S, clock=lambda: now_s, sleep=sleep)
    lag.start()
    await is_spent.wait()
    await lag.stop()

    assert now_s - 100.0 == pytest.approx(99 * INTERVAL_S, rel=0.02)
    assert lag.p99_s(Lookback(10)) < 0.001


async def test_the_window_forgets_an_older_stall():
    lag = await lag_after(0.5, *[0.0] * 400)

    assert lag.p99_s(Lookback(2)) < INTERVAL_S


async def test_a_window_that_has_ended_knows_no_later_stall():
    lag = await lag_after(*[0.0] * 400, 0.5)

    assert lag.p99_s(Lookback(2, ago_s=1)) < INTERVAL_S
    assert lag.p99_s(Lookback(2)) > 0.4


async def test_lag_that_was_never_started_is_zero_and_can_be_stopped():
    lag = LoopLag()
    await lag.stop()

    assert lag.p99_s(Lookback(10)) == 0.0
