"""Whether a level has stopped trending, so that its measuring window may open.

Pure: it is given samples of what all clients have seen, and knows neither clock nor client.

The test looks at the latter two thirds of what it has seen (the first third may be ramp-up) and asks of the token
rate, the rate of finished requests and the number in flight how much each changed. The change is found in pairs: a
moment of the window's end against the moment one lag before. The lag is half the window, cut to whole cycles; a
cycle is the time from request to request of one user, by Little's law from the samples themselves. So users who ask
and are answered in step, whose token rate swings fully with that period, look as steady as they are.

A change is no trend where it does not matter (5 % in 10 s, or one request in flight), or where chance explains it:

- rates: Student's t test, two-sided at 1 %, on the mean change in up to eight batches of paired moments. Finished
  requests are few, so their tolerance is at least that of Poisson counts. Where the number in flight wanders by
  chance, as it does in an open loop, rates wander with it: its tolerance is added.
- requests in flight: the number wanders like a random walk whose steps show in the samples, pulled back to its mean
  within a request's duration (an Ornstein-Uhlenbeck process; exact for M/M/inf). Two-sided at 2 %. In a closed loop
  without pauses there are no such steps and hence no tolerance.

Little noise is demanded before `patience_s`: a change of 15 % of the token rate (until half of it) and of 30 % of
the requests in flight must stand out. After it, only what cannot be chance speaks against the level; otherwise
one user, or one request per second, could never be called steady.

Error rates in simulations of 60 s, two samples per second (100 to 1,000 runs each; tests/unit/test_steadiness.py
repeats most of them with fewer):

- steady, but not called so at the end: 0.5 % at 3,000 Poisson tokens/s, 0 % in closed loops of 1 to 300 users (in
  step or not), 0 to 4.3 % in open loops of 1 to 50 requests/s. Never called steady in 60 s: 0 %.
- first called steady, median: closed loop of 100 users and answers of 3 s after 10 to 13 s, of 300 users and 10 s
  after 17 s, of one user and answers of 3 s after 9 s if they are regular, else 20 s; in step with answers of 6 to
  12 s after 20 s; open loop of 10 requests/s and fewer after 40 s.
- a ramp of +20 % over all that was seen, yet called steady at its end: 0 % for 3,000 Poisson tokens/s in 60 s and for
  10,000 in 20 s; 8 % for 1,000 in 60 s, 19 % for 3,000 in 20 s. In a closed loop of 100 users with log-normal answers
  (2,100 tokens/s in bursts) 32 %: what is noisier hides more.
- a ramp on its way, ever called steady: from 0 to 20 or 300 users, or to fourfold rates, 0 %; to double rates in 30 s
  2 %; in 60 s 64 %, all within the first 15 s, when it has grown by less than a quarter.
- an open loop above capacity, ever called steady: 0 % for 200 requests/s where 160 fit and for 20 where 10 fit, 3 %
  for 50 where 40 fit; 43 % for 20 where 16 fit (3 % at the end): so few cannot be told from chance sooner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot, inf, sqrt

import numpy as np
import numpy.typing as npt

MIN_STEPS = 8
"""Fewest steps between samples in a window: 4 s at two samples per second."""
MAX_SAMPLES = 240
"""Samples kept: two minutes at two per second. More add nothing but cost."""
WINDOW_SHARE = 2 / 3
HORIZON_S = 10.0
"""Changes are stated over this time, or over the window where that is longer: a short window must not hide a slope."""
IMMATERIAL_SHARE = 0.05
IMMATERIAL_REQUESTS = 1.0
RATE_PRECISION = 0.15
IN_FLIGHT_PRECISION = 0.3
PATIENCE_S = 40.0
RATE_PATIENCE_SHARE = 0.5
"""Of the patience: the token rate settles sooner than the queue of an open loop shows itself."""
MAX_BATCHES = 8
STUDENT_T = {3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707, 7: 3.499}
"""99.5 % quantiles of Student's t by degrees of freedom."""
NORMAL_RATE = 2.576
"""99.5 % quantile of the normal distribution."""
NORMAL_IN_FLIGHT = 2.326
"""99 % quantile of the normal distribution."""
CYCLE_SLACK = 0.02
"""A window that lacks this share of a cycle passes for a whole one."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What all clients together have seen up to one moment."""

    time_s: float
    tokens: int
    """Tokens that have arrived since the level began."""
    requests: int
    """Requests that have finished since the level began."""
    in_flight: int
    """Requests in flight at that moment."""


class SteadinessTest:
    """Collects samples from the beginning of a level; they should be evenly spaced, about two per second."""

    def __init__(self, think_time_s: float = 0.0, patience_s: float = PATIENCE_S) -> None:
        """`think_time_s` is the mean pause of a user; `patience_s` how long noise is held against the level."""
        self._think_time_s = think_time_s
        self._patience_s = patience_s
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._start_s = inf

    def add(self, sample: Sample) -> None:
        """Take the next sample; its counts are cumulative."""
        self._start_s = min(self._start_s, sample.time_s)
        self._samples.append(sample)

    def is_steady(self) -> bool:
        """Whether nothing has trended in the latter two thirds of the samples; costs 0.2 ms."""
        num_steps = max(MIN_STEPS, round(WINDOW_SHARE * (len(self._samples) - 1)))
        if len(self._samples) <= num_steps:
            return False
        samples = list(self._samples)[-num_steps - 1 :]
        if not _shows_anything(samples):
            return False
        window = _Window(samples, self._think_time_s)
        in_flight = window.find_in_flight_drift()
        tokens = window.find_rate_drift(window.tokens, in_flight.tolerance)
        requests = window.find_rate_drift(window.requests, in_flight.tolerance, is_poisson=True)
        return not any(drift.is_trend for drift in (in_flight, tokens, requests)) and (
            self._is_precise(in_flight, IN_FLIGHT_PRECISION, self._patience_s)
            and self._is_precise(tokens, RATE_PRECISION, RATE_PATIENCE_SHARE * self._patience_s)
        )

    def _is_precise(self, drift: _Drift, precision: float, patience_s: float) -> bool:
        return drift.tolerance <= precision or self._samples[-1].time_s - self._start_s >= patience_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drift:
    """How much something changed, how much of that may be chance, how much would not matter; shares of its mean."""

    change: float
    tolerance: float
    immaterial: float = IMMATERIAL_SHARE

    @property
    def is_trend(self) -> bool:
        return abs(self.change) > max(self.tolerance, self.immaterial)


class _Window:
    """Columns of the samples under test, and which moments are compared with which."""

    def __init__(self, samples: Sequence[Sample], think_time_s: float) -> None:
        self.tokens = np.array([sample.tokens for sample in samples], dtype=np.float64)
        self.requests = np.array([sample.requests for sample in samples], dtype=np.float64)
        self._in_flight = np.array([sample.in_flight for sample in samples], dtype=np.float64)
        self._times_s = np.array([sample.time_s for sample in samples])
        self._length_s = _total(self._times_s)
        self._step_s = self._length_s / (len(samples) - 1)
        self._mean_in_flight = float(self._in_flight.mean())
        # Little's law: in flight = rate x duration.
        self._duration_s = self._mean_in_flight * self._length_s / _total(self.requests)
        self._lag_s = self._find_lag_s(self._duration_s + think_time_s)
        self._scale = max(self._length_s, HORIZON_S) / self._lag_s

    def find_rate_drift(self, counts: Floats, wander: float, *, is_poisson: bool = False) -> _Drift:
        """The drift of a rate, from its cumulative counts; `wander` is the tolerance of the requests in flight."""
        now, before = self._pair(counts)
        per_step = _total(counts) * self._step_s / self._length_s
        changes = (np.diff(now) - np.diff(before)) / per_step
        batches = [batch.mean() for batch in np.array_split(changes, min(MAX_BATCHES, len(changes)))]
        tolerance = STUDENT_T[len(batches) - 1] * float(np.std(batches, ddof=1)) / sqrt(len(batches))
        if is_poisson:
            tolerance = max(tolerance, NORMAL_RATE * sqrt(2 / (per_step * len(changes))))
        return _Drift(
            change=float(changes.mean()) * self._scale,
            tolerance=hypot(tolerance * self._scale, wander),
        )

    def find_in_flight_drift(self) -> _Drift:
        """The drift of the number in flight; its chance steps are what the change still varies by from step to step.

        The mean of n changes of a random walk over a lag of n steps of variance v has the variance 2/3 n v; if it
        is pulled back by the factor k per step and n is long, (1 + k) / (1 - k)^2 / n v. In between, the smaller
        of the two rules, smoothly.
        """
        now, before = self._pair(self._in_flight)
        changes = (now - before) / self._mean_in_flight
        num = len(changes)
        step_variance = float(np.diff(changes).var(ddof=1)) / 2
        kept = exp(-self._step_s / self._duration_s)
        variance = step_variance / (3 / (2 * num) + num * (1 - kept) ** 2 / (1 + kept))
        return _Drift(
            change=float(changes.mean()) * self._scale,
            tolerance=NORMAL_IN_FLIGHT * sqrt(variance) * self._scale,
            immaterial=max(IMMATERIAL_SHARE, IMMATERIAL_REQUESTS / self._mean_in_flight),
        )

    def _find_lag_s(self, cycle_s: float) -> float:
        half_s = self._length_s / 2
        num_cycles = int(half_s / cycle_s + CYCLE_SLACK)
        return min(half_s, num_cycles * cycle_s) if num_cycles else half_s

    def _pair(self, column: Floats) -> tuple[Floats, Floats]:
        """Values at evenly spaced moments of the last lag, and those one lag before, between samples by their line."""
        num_steps = max(MIN_STEPS // 2, int(self._lag_s / self._step_s))
        times_s = self._times_s[-1] - self._step_s * np.arange(num_steps, -1, -1)
        return (
            np.interp(times_s, self._times_s, column),
            np.interp(times_s - self._lag_s, self._times_s, column),
        )


def _shows_anything(samples: Sequence[Sample]) -> bool:
    """Whether tokens came and requests were in flight, and in either half of the window a request finished."""
    first, middle, last = samples[0], samples[len(samples) // 2], samples[-1]
    return (
        last.tokens > first.tokens
        and last.requests > middle.requests > first.requests
        and any(sample.in_flight for sample in samples)
    )


def _total(column: Floats) -> float:
    return float(column[-1] - column[0])
