"""Whether the requests of an open loop were sent as the process that was asked for.

Pure, on the times of sending; it judges nothing. A value that cannot be computed is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_WINDOW_S = 10
"""Shortest window with an index of dispersion: its standard error is then 0.47, already half of what Poisson has."""
RESOLUTION_S = 0.001
"""Shorter gaps all pass for one: no client sends two requests within microseconds of each other, as a bursty process
wants, and no server could tell."""
EXACT_GAPS = 2_000
"""Gaps up to which two samples are compared exactly; the approximation beyond is good to a few per cent of p."""

Times = npt.NDArray[np.float64] | Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalAudit:
    """What the requests of an open loop look like as they were sent."""

    gap_cv: float | None = None
    """Coefficient of variation of the gaps: Poisson 1, gamma 1 / sqrt(burstiness), constant 0."""
    dispersion_index: float | None = None
    """Variance over mean of the requests per second: Poisson 1, constant about 0.25 / rate at most."""
    ks_p: float | None = None
    """p-value of the test of Kolmogorov and Smirnov that the gaps are of the distribution asked for."""


def audit_arrivals(
    sent_s: Times,
    kind: str,
    rate_per_s: float | None = None,
    burstiness: float = 1.0,
    *,
    window_s: float | None = None,
    due_s: Times | None = None,
) -> ArrivalAudit:
    """Audit the times of sending, `sent_s`: (num_requests,) seconds in order, against the open loop's `kind`.

    The times count from the beginning of a window of `window_s` (None: from the first request to the last), and
    only those within are audited. Where the load follows a profile, give its `cumulative` of the times and of the
    window's length instead: in that time the process has a constant rate.

    **Index of dispersion.** Counted per whole second of the window. For Poisson its standard error is
    sqrt(2 / (n - 1)) over n seconds, 0.26 in a window of 30 s (from the chi-squared distribution of n - 1 degrees
    that (n - 1) times the index follows): only values further than about three of it from 1 say something. None
    below 10 s. Well above 1: requests come in bunches, as when W workers draw one and the same random stream and
    each gap comes W times (about W); the test of the gaps need not show it, since their distribution is right.

    Seconds without a request count as 0. At rate r a share exp(-r) of the seconds of a Poisson process is empty: at
    one per second a third, which is as it should be; at ten per second 5 in 100,000. Several empty seconds at such
    rates are a client that stood still, or a trace that pauses; each adds about r / n to the index, and the requests
    held back, sent at once, more. A gamma process has about 1 / burstiness, if a second holds many gaps.

    **Test of the gaps.** poisson: against the exponential distribution of `rate_per_s`; gamma: against gamma of
    shape `burstiness` and that rate. trace: the gaps as sent against those of `due_s`, the times as planned, as two
    samples; since one follows from the other, p is near 1 unless sending was late. constant: None, since a
    distribution that allows one value is refused by any rounding; `gap_cv`, near 0, tells how regular it was. With
    tens of thousands of requests deviations that matter to no one make p small: read it beside the other two.
    """
    inside_s = _cut(sent_s, window_s)
    gaps_s = np.diff(inside_s)
    return ArrivalAudit(
        gap_cv=_gap_cv(gaps_s),
        dispersion_index=_dispersion_index(inside_s, window_s),
        ks_p=_ks_p(gaps_s, kind, rate_per_s, burstiness, None if due_s is None else np.diff(_cut(due_s, window_s))),
    )


def _cut(times_s: Times, window_s: float | None) -> npt.NDArray[np.float64]:
    times = np.asarray(times_s, dtype=np.float64)
    return times if window_s is None else times[(times >= 0) & (times < window_s)]


def _gap_cv(gaps_s: npt.NDArray[np.float64]) -> float | None:
    if gaps_s.size < 2 or not gaps_s.any():
        return None
    return float(gaps_s.std(ddof=1) / gaps_s.mean())


def _dispersion_index(times_s: npt.NDArray[np.float64], window_s: float | None) -> float | None:
    if not times_s.size:
        return None
    start_s = float(times_s[0]) if window_s is None else 0.0
    length_s = float(times_s[-1]) - start_s if window_s is None else window_s
    if length_s < MIN_WINDOW_S:
        return None
    seconds = math.floor(length_s)
    counts = np.bincount((times_s - start_s).astype(np.int64), minlength=seconds)[:seconds]
    return float(counts.var(ddof=1) / counts.mean()) if counts.any() else None


def _ks_p(
    gaps_s: npt.NDArray[np.float64],
    kind: str,
    rate_per_s: float | None,
    burstiness: float,
    planned_s: npt.NDArray[np.float64] | None,
) -> float | None:
    if not gaps_s.size:
        return None
    # Only a level that is audited should wait for it: importing scipy.stats takes most of a second.
    from scipy import stats

    found: Any = None
    if kind == "trace" and planned_s is not None and planned_s.size:
        if np.array_equal(np.sort(gaps_s), np.sort(planned_s)):
            return 1.0  # scipy divides by the distance
        # The exact method knows no equal values, and warns where they bring it down.
        together = np.concatenate([gaps_s, planned_s])
        is_exact = together.size <= 2 * EXACT_GAPS and np.unique(together).size == together.size
        found = stats.ks_2samp(gaps_s, planned_s, method="exact" if is_exact else "asymp")
    elif kind in ("poisson", "gamma") and rate_per_s:
        shape = burstiness if kind == "gamma" else 1.0
        cdf = stats.gamma(shape, scale=1 / (rate_per_s * shape)).cdf
        return float(stats.kstwo.sf(_distance(np.sort(gaps_s), cdf), gaps_s.size))
    return None if found is None else float(found.pvalue)


def _distance(sorted_gaps_s: npt.NDArray[np.float64], cdf: Callable[[Any], Any]) -> float:
    """Largest distance between the distribution of the gaps and the one asked for, from RESOLUTION_S on."""
    num_gaps = sorted_gaps_s.size
    num_below = int(np.searchsorted(sorted_gaps_s, RESOLUTION_S))
    expected = cdf(sorted_gaps_s[num_below:])
    ranks = np.arange(num_below, num_gaps)
    distances = [abs(num_below / num_gaps - float(cdf(RESOLUTION_S)))]
    if expected.size:
        distances += [float(np.max(expected - ranks / num_gaps)), float(np.max((ranks + 1) / num_gaps - expected))]
    return max(distances)
