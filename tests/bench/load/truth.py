"""Reads what the mock recorded and says what a right client would have reported. Pure; all clocks are CLOCK_MONOTONIC.

TTFT is the first token's time of sending minus the arrival of the request, a gap the time between two sendings of one
request: what a client sees on top of that is the client's own doing, or the loopback's (some 10 us).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NS_PER_MS = 1e6
NS_PER_S = 1e9
MAGIC = b"erhpctr1"
_HEADER = Struct("<8sqqqqq")


@dataclass(frozen=True)
class Latencies:
    """Mean and quantiles (numpy's linear interpolation), ms; None where a client does not say."""

    mean_ms: float | None
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Truth:
    """Requests in the order of their arrival; `sent_ns` holds the tokens of all, request after request."""

    ttft_ns: int
    """What the mock was told: TTFT and gap that make up the schedule."""
    gap_ns: int
    kernel_arrivals: int
    """Arrivals (of all requests since the reset) with a kernel timestamp rather than the clock at reading."""
    arrival_ns: Times
    ended_ns: Times
    """When the last byte, or the client, had gone; 0 while in flight."""
    num_tokens: Times
    sent_ns: Times

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def request_of_token(self) -> Times:
        """For each token the index of its request."""
        return np.repeat(np.arange(len(self)), self.num_tokens)

    @property
    def first_of_request(self) -> Times:
        """For each request the index of its first token."""
        return np.cumsum(self.num_tokens) - self.num_tokens

    @property
    def index_in_request(self) -> Times:
        """For each token its number within its request, from 0."""
        return np.arange(len(self.sent_ns)) - np.repeat(self.first_of_request, self.num_tokens)


def parse_truth(data: bytes) -> Truth:
    """Read the mock's binary block; raises ValueError if it is none."""
    magic, ttft_ns, gap_ns, kernel_arrivals, num_requests, num_tokens = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"no truth of the mock: it begins with {magic!r} instead of {MAGIC!r}")
    rows = np.frombuffer(data, dtype="<i8", count=3 * num_requests, offset=_HEADER.size).reshape(-1, 3)
    sent_ns = np.frombuffer(data, dtype="<i8", count=num_tokens, offset=_HEADER.size + rows.nbytes)
    truth = Truth(ttft_ns, gap_ns, kernel_arrivals, rows[:, 0], rows[:, 1], rows[:, 2], sent_ns)
    return select(truth, np.argsort(truth.arrival_ns, kind="stable"))


def select(truth: Truth, requests: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Truth:
    """The truth of some requests only, by index (in that order) or by mask."""
    indices = np.arange(len(truth))[requests]
    num_tokens = truth.num_tokens[indices]
    # Token j of a chosen request lies at its first token plus j.
    firsts = np.repeat(truth.first_of_request[indices], num_tokens)
    within = np.arange(num_tokens.sum()) - np.repeat(np.cumsum(num_tokens) - num_tokens, num_tokens)
    return Truth(
        truth.ttft_ns,
        truth.gap_ns,
        truth.kernel_arrivals,
        truth.arrival_ns[indices],
        truth.ended_ns[indices],
        num_tokens,
        truth.sent_ns[firsts + within],
    )


def last_requests(truth: Truth, count: int) -> Truth:
    """The last `count` requests to arrive: what a client measured after its probes and warm-up."""
    return select(truth, np.arange(max(0, len(truth) - count), len(truth)))


def arrived_between(truth: Truth, start_ns: int, end_ns: int) -> Truth:
    """The requests that arrived in [start, end)."""
    return select(truth, (truth.arrival_ns >= start_ns) & (truth.arrival_ns < end_ns))


def steady_window(truth: Truth, trim: float = 0.15) -> tuple[int, int]:
    """The span from the first to the last arrival, less `trim` of it at each end: no ramp and no drain."""
    first_ns, last_ns = int(truth.arrival_ns.min()), int(truth.arrival_ns.max())
    trimmed_ns = int((last_ns - first_ns) * trim)
    return first_ns + trimmed_ns, last_ns - trimmed_ns


def ttft_ms(truth: Truth) -> Floats:
    """True TTFT of each request that got a token, ms."""
    answered = truth.num_tokens > 0
    return (truth.sent_ns[truth.first_of_request[answered]] - truth.arrival_ns[answered]) / NS_PER_MS


def gaps_ms(truth: Truth) -> Floats:
    """All true gaps between tokens of a request, pooled, ms."""
    return np.diff(truth.sent_ns)[truth.index_in_request[1:] > 0] / NS_PER_MS


def lateness_ms(truth: Truth) -> Floats:
    """How late the mock sent each token, against arrival + TTFT + k * gap, ms."""
    due_ns = truth.arrival_ns[truth.request_of_token] + truth.ttft_ns + truth.index_in_request * truth.gap_ns
    return (truth.sent_ns - due_ns) / NS_PER_MS


def summarise(values_ms: Floats) -> Latencies:
    """Mean, p50 and p99; all None if there are no values."""
    if not values_ms.size:
        return Latencies(None, None, None)
    p50_ms, p99_ms = np.quantile(values_ms, [0.5, 0.99])
    return Latencies(float(values_ms.mean()), float(p50_ms), float(p99_ms))


def tokens_between(truth: Truth, start_ns: int, end_ns: int) -> int:
    """Tokens sent in [start, end)."""
    return int(((truth.sent_ns >= start_ns) & (truth.sent_ns < end_ns)).sum())


def tokens_per_s(truth: Truth, start_ns: int, end_ns: int) -> float:
    """Rate of sending over [start, end)."""
    return tokens_between(truth, start_ns, end_ns) * NS_PER_S / (end_ns - start_ns)


def whole_run_tokens_per_s(truth: Truth) -> float:
    """All tokens over the time from the first arrival to the last token: ramp and drain included."""
    return len(truth.sent_ns) * NS_PER_S / float(truth.sent_ns.max() - truth.arrival_ns.min())


def users_held(truth: Truth, start_ns: int, end_ns: int) -> float:
    """Mean number of requests in flight over [start, end), from their arrivals and ends."""
    ended_ns = np.where(truth.ended_ns != 0, truth.ended_ns, end_ns)
    overlaps_ns = np.minimum(ended_ns, end_ns) - np.maximum(truth.arrival_ns, start_ns)
    return float(np.maximum(overlaps_ns, 0).sum() / (end_ns - start_ns))


def possible_tokens_per_s(users: int, tokens: int, ttft_ms: float, gap_ms: float) -> float:
    """What `users` in a closed loop without pause get if the next request leaves as the last token comes."""
    return users * tokens / ((ttft_ms + (tokens - 1) * gap_ms) / 1000)
