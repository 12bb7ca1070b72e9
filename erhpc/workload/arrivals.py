"""When the requests of an open loop are due, and how long a user of a closed loop thinks.

It is pure: it draws from seeds and generators that it is given, and knows no clock. The schedule is one process for
the whole level, whatever the number of client processes: each of W workers goes through the same one and takes the
arrivals whose number modulo W is its own, so that their union is the process that was asked for. (Workers that each
draw a process of their own need streams of their own: with one seed for all, each gap comes W times.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import ceil, log

import numpy as np
import numpy.typing as npt
from numpy.random import PCG64, Generator, SeedSequence

from erhpc.config import ArrivalConfig, ThinkTimeConfig, WorkloadConfig
from erhpc.errors import ConfigError, InputError
from erhpc.workload.profile import Profile
from erhpc.workload.traces import Trace

STREAM = 2**32 - 1
"""Spawn key of the arrivals' random stream: beyond that of every user, each of whom has its number."""
BLOCK = 4096
"""Arrivals drawn at a time: numpy then costs nothing beside the sending, and memory stays flat."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of an open loop."""

    number: int
    """Which request of the level it is, from 0, in order of time."""
    due_s: float
    """When it is due, seconds since the level began."""
    tokens_in: int | None
    """Prompt tokens of the trace's row; None without a trace. So too below for the answer."""
    tokens_out: int | None


def plan_arrivals(
    workload: WorkloadConfig, rate_per_s: float | None, seed: int, trace: Trace | None = None
) -> Iterator[Arrival]:
    """The schedule of a level in order of time: endless, or as long as the trace.

    Times are absolute and never depend on when earlier requests were sent. poisson, gamma and constant: the first
    request comes one gap after the level began, and the number of requests in a given time is as random as the
    process makes it. (vLLM's benchmark rescales the gaps so that the last of N requests is due at exactly N / rate,
    which takes that randomness away; here nothing is rescaled.) A profile that is not flat bends them by its inverse
    integral, its window beginning at workload.warmup_s: a Poisson process stays one, of changing rate.

    trace: the first row is due at 0, all gaps are multiplied by workload.time_scale, and the schedule ends with the
    trace. With a rate, or a profile, each row comes as often as they say on average: rows are left out at random
    below the trace's own rate; above it each comes k or k + 1 times, the copies at random times before the next
    row, so that bursts stay bursts. Times are not shifted when the first row is left out.

    Raises:
        ConfigError: the loop is closed, or the rate or the trace is missing.
        InputError: a rate is asked of a trace whose rows all come at one time.
    """
    kind = workload.arrivals.kind
    random = Generator(PCG64(SeedSequence(seed, spawn_key=(STREAM,))))
    profile = Profile(workload.profile, workload.measure_s)
    if not workload.arrivals.is_open:
        raise ConfigError("workload.arrivals.kind=closed has no schedule. Set poisson, gamma, constant or trace.")
    if kind == "trace":
        if trace is None:
            raise ConfigError("workload.arrivals.kind=trace needs a trace. Set workload.trace=FILE.")
        ratio = 1.0 if rate_per_s is None else rate_per_s / _own_rate_per_s(trace, workload.time_scale)
        return _replay(trace, workload, ratio, profile, random)
    if rate_per_s is None:
        raise ConfigError(f"workload.arrivals.kind={kind} needs a rate. Set workload.rates_per_s, e.g. [1,10,100].")
    return _follow(profile, workload.warmup_s, rate_per_s, _draw_units(workload.arrivals, random))


def draw_think_time_s(config: ThinkTimeConfig, random: Generator) -> float:
    """One pause of a user, seconds.

    The mean of a log-normal variable is exp(mu + sigma^2 / 2), so mu = ln(mean) - sigma^2 / 2.
    """
    if config.kind == "constant" or not config.mean_s:
        return config.mean_s
    if config.kind == "exponential":
        return float(random.exponential(config.mean_s))
    return float(random.lognormal(log(config.mean_s) - config.sigma**2 / 2, config.sigma))


def _follow(profile: Profile, warmup_s: float, rate_per_s: float, units: Iterator[float]) -> Iterator[Arrival]:
    begun_s = profile.cumulative(-warmup_s)
    for number, unit in enumerate(units):
        yield Arrival(number, warmup_s + profile.time_at(begun_s + unit / rate_per_s), None, None)


def _draw_units(config: ArrivalConfig, random: Generator) -> Iterator[float]:
    """Times of a process of one arrival per unit of time, endless."""
    reached = 0.0
    while True:
        times = reached + np.cumsum(_draw_gaps(config, random))
        reached = float(times[-1])
        yield from times.tolist()


def _draw_gaps(config: ArrivalConfig, random: Generator) -> Floats:
    """BLOCK gaps of mean 1. Of shape k and scale 1 / k, a gamma variable has the variance 1 / k."""
    if config.kind == "constant":
        return np.ones(BLOCK)
    if config.kind == "gamma":
        return random.standard_gamma(config.burstiness, BLOCK) / config.burstiness
    return random.standard_exponential(BLOCK)


def _own_rate_per_s(trace: Trace, time_scale: float) -> float:
    if trace.mean_rate_per_s is None:
        raise InputError(
            "The trace has no rate that workload.rates_per_s could scale: all of its rows come at one time. "
            "Give a trace that lasts, or leave workload.rates_per_s empty."
        )
    return trace.mean_rate_per_s / time_scale


def _replay(
    trace: Trace, workload: WorkloadConfig, ratio: float, profile: Profile, random: Generator
) -> Iterator[Arrival]:
    numbers = count()
    num_rows = max(1, BLOCK // ceil(ratio))
    for first in range(0, trace.at_s.size, num_rows):
        # With the row after the block, which bounds the copies of its last.
        at_s = trace.at_s[first : first + num_rows + 1] * workload.time_scale
        shares = np.array([profile.share(t_s - workload.warmup_s) for t_s in at_s[:num_rows].tolist()])
        rows, due_s = _copy_rows(at_s, ratio * shares, random)
        tokens = (trace.tokens_in[first + rows].tolist(), trace.tokens_out[first + rows].tolist())
        for due, tokens_in, tokens_out in zip(due_s.tolist(), *tokens, strict=True):
            yield Arrival(next(numbers), due, tokens_in, tokens_out)


def _copy_rows(at_s: Floats, expected: Floats, random: Generator) -> tuple[npt.NDArray[np.intp], Floats]:
    """Which row each arrival of a block comes from, and when it is due, in order of time.

    `expected` says how often each row comes on average. `at_s` holds one more row, except at the trace's end; the
    last row of all has no gap for copies to fall into and comes once at most.
    """
    gaps_s = np.diff(at_s)
    if gaps_s.size < expected.size:
        gaps_s = np.append(gaps_s, 0.0)
        expected = np.append(expected[:-1], min(1.0, expected[-1]))
    whole = np.floor(expected)
    copies = (whole + (random.random(expected.size) < expected - whole)).astype(np.intp)
    rows = np.repeat(np.arange(expected.size), copies)
    is_extra = np.diff(rows, prepend=-1) == 0
    due_s = at_s[rows] + is_extra * random.random(rows.size) * gaps_s[rows]
    order = np.argsort(due_s, kind="stable")
    return rows[order], due_s[order]
