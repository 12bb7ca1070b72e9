"""The formulas: what TTFT, ITL, TPOT, E2E, throughput, goodput and the rest are, with units and population.

Pure numpy on records. It knows no file, no table and no row (`summary` does), and judges nothing (`validity` does).
What cannot be computed is None, never NaN. Quantiles interpolate linearly (numpy's default).

Three populations are kept apart. Latencies are over requests *sent* in the window (phase `measure`) that finished
well, so that none is cut by the window's edge; the load is kept up until they have (phase `drain`, which counts for
nothing). Rates are over what *arrived* in the window, whenever it was sent, so that requests crossing an edge count by
the part that lies inside. What was promised (SLO attainment) is over all requests sent in the window, failed ones
included. Every client's part is measured against its own window, by its own clock; only what needs the order of events
of several clients is brought to the conductor's clock.

What others compute from the same records (tests/integration/test_peer_formulas.py holds this table against them):

    here                               `vllm bench serve` 0.32             guidellm 0.8
    TTFT: from sent; open loop: due    from sent, always                   from sent, always
    ITL: one gap per arrival, pooled   the same                            none: its "inter-token latency" is our TPOT
    TPOT: over tokens - 1              the same                            the same, called inter-token latency
    E2E: origin to the last token      sent to the last token              sent to the end of the stream
    normalised: E2E / tokens           none                                from sent, called time per output token
    quantiles: linear                  the same                            a value that occurred; its TPOT and ITL
                                                                           weigh each request by its tokens
    latencies: sent in the window      all that finished                   all that touched the window
    token rate: arrivals in window     tokens of finished requests over    arrivals in window, as if evenly spread
                                       the run, ramp and drain included    between first and last token
    most in flight: at one moment      within one second: many times as    the same
                                       many where answers are short
    SLO: failed requests miss it       no share, only goodput              the same
    SLO: one token meets a TPOT bound  the same (TPOT 0)                   left out of the share
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from erhpc.config import SloConfig
from erhpc.results.record import ClientPart, RequestRecord

NS_PER_S = 1e9
NS_PER_US = 1000
US_PER_S = 1e6
QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99))

Floats = npt.NDArray[np.float64]
Nanoseconds = npt.NDArray[np.int64]


def origin_ns(record: RequestRecord) -> int:
    """Where the latencies of a request count from, client's clock: sent, or scheduled in an open loop.

    In an open loop a request that leaves late because the client or the server was busy waited nevertheless;
    counting from sending would hide that ("coordinated omission"; wrk2 and MLPerf's LoadGen count alike).
    """
    return record.scheduled_monotonic_ns if record.latency_from == "scheduled" else record.sent_monotonic_ns


def ttft_s(record: RequestRecord) -> float | None:
    """Time to first token, seconds: first token minus origin. None if no token came."""
    if record.first_token_monotonic_ns is None:
        return None
    return (record.first_token_monotonic_ns - origin_ns(record)) / NS_PER_S


def e2e_s(record: RequestRecord) -> float | None:
    """End-to-end latency, seconds: last token minus origin; usage and end-of-stream frames excluded."""
    if record.last_token_monotonic_ns is None:
        return None
    return (record.last_token_monotonic_ns - origin_ns(record)) / NS_PER_S


def tpot_s(record: RequestRecord) -> float | None:
    """Time per output token, seconds: (last - first token) / (tokens - 1); excludes TTFT. None below 2 tokens."""
    first_ns, last_ns = record.first_token_monotonic_ns, record.last_token_monotonic_ns
    if first_ns is None or last_ns is None or record.tokens_out < 2:
        return None
    return (last_ns - first_ns) / NS_PER_S / (record.tokens_out - 1)


def normalised_s(record: RequestRecord) -> float | None:
    """Normalised latency, seconds per token: E2E / tokens (Orca, OSDI 2022; vLLM, SOSP 2023). None without tokens."""
    latency_s = e2e_s(record)
    return latency_s / record.tokens_out if latency_s is not None and record.tokens_out > 0 else None


def in_flight_s(record: RequestRecord) -> float:
    """How long the request was in flight, seconds: from sending until the answer ended or failed."""
    return (record.end_monotonic_ns - record.sent_monotonic_ns) / NS_PER_S


def send_late_s(record: RequestRecord) -> float:
    """How much later than due the bytes of the request left, seconds; connecting, where necessary, included."""
    return (record.sent_monotonic_ns - record.scheduled_monotonic_ns) / NS_PER_S


def gaps_us(records: Iterable[RequestRecord]) -> npt.NDArray[np.intc]:
    """Inter-token latencies, microseconds: gaps between successive arrivals of tokens, pooled over all records.

    One gap per arrival, so where an arrival carries several tokens this is no time per token (see `tpot_s`).
    Four bytes per gap: a level may hold 10^8 of them.
    """
    pool = array("i")
    for record in records:
        pool.extend(record.token_gaps_us)
    return np.frombuffer(pool, dtype=np.intc)


def itl_s(records: Iterable[RequestRecord]) -> Floats:
    """`gaps_us` in seconds."""
    return gaps_us(records) / US_PER_S


def quantiles(values: Iterable[float] | npt.NDArray[Any], per_unit: float = 1.0) -> dict[str, float] | None:
    """Mean, p50, p90, p95 and p99 of `values` / `per_unit`; None if there are none."""
    array_of = values if isinstance(values, np.ndarray) else np.fromiter(values, dtype=np.float64)
    if not array_of.size:
        return None
    found = np.quantile(array_of, [share for _, share in QUANTILES])
    names = ("mean", *(name for name, _ in QUANTILES))
    return {name: float(value) / per_unit for name, value in zip(names, (array_of.mean(), *found), strict=True)}


def sent_in_window(part: ClientPart) -> list[RequestRecord]:
    """Requests sent in the window, whatever became of them."""
    return [record for record in part.records if record.phase == "measure"]


def finished_well(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Those of `records` whose answer is complete."""
    return [record for record in records if record.status == "ok"]


def measured_records(part: ClientPart) -> list[RequestRecord]:
    """The population of latencies: requests sent in the window that finished well."""
    return finished_well(sent_in_window(part))


def window_s(part: ClientPart) -> float:
    """Length of the measuring window of one client, seconds; 0 if it was interrupted before the window."""
    return max(0.0, (part.window_end_monotonic_ns - part.window_start_monotonic_ns) / NS_PER_S)


def requests_per_s(part: ClientPart) -> float | None:
    """Requests that finished well within the window, per second."""
    return _per_second(part, len(finished_well(_ended_in_window(part))))


def due_per_s(part: ClientPart) -> float | None:
    """Requests that were due within the window, sent or not, per second: the load that was really offered."""
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    return _per_second(part, sum(start_ns <= record.scheduled_monotonic_ns < end_ns for record in part.records))


def input_tokens_per_s(part: ClientPart) -> float | None:
    """Prompt tokens of the requests that finished well within the window, per second."""
    return _per_second(part, sum(record.tokens_in or 0 for record in finished_well(_ended_in_window(part))))


def tokens_in_window(part: ClientPart) -> float:
    """Answer tokens that arrived within the window: of every phase, of unfinished and failed requests too."""
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    return math.fsum(tokens_between(record, start_ns, end_ns) for record in part.records)


def output_tokens_per_s(part: ClientPart) -> float | None:
    """`tokens_in_window` per second."""
    return _per_second(part, tokens_in_window(part))


def tokens_between(record: RequestRecord, start_ns: int, end_ns: int) -> float:
    """Tokens of one record that arrived in [start, end).

    With N tokens by the engine's usage in A arrivals, the first included, each arrival counts N / A tokens:
    exact for one token per arrival, and never more than N in all.
    """
    first_ns, last_ns = record.first_token_monotonic_ns, record.last_token_monotonic_ns
    if first_ns is None or last_ns is None or first_ns >= end_ns or last_ns < start_ns:
        return 0.0
    if start_ns <= first_ns and last_ns < end_ns:
        return record.tokens_out
    num_arrivals = len(record.token_gaps_us) + 1
    since_first_ns = np.zeros(num_arrivals, dtype=np.int64)
    np.cumsum(np.asarray(record.token_gaps_us, dtype=np.int64) * NS_PER_US, out=since_first_ns[1:])
    # Gaps are whole microseconds; the last arrival is known better, and must agree with the shortcuts above.
    np.minimum(since_first_ns, last_ns - first_ns, out=since_first_ns)
    since_first_ns[-1] = last_ns - first_ns
    low, high = np.searchsorted(since_first_ns, [start_ns - first_ns, end_ns - first_ns])
    return int(high - low) * record.tokens_out / num_arrivals


def users_held(part: ClientPart) -> float | None:
    """Mean number of requests in flight (sent, not ended) over the window."""
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    overlaps_ns = (
        min(record.end_monotonic_ns, end_ns) - max(record.sent_monotonic_ns, start_ns) for record in part.records
    )
    return _per_second(part, sum(max(0, overlap_ns) for overlap_ns in overlaps_ns) / NS_PER_S)


def users_by_littles_law(part: ClientPart) -> float | None:
    """Mean number of requests in flight by Little's law, L = lambda W (Operations Research 9(3), 1961).

    lambda is the rate of requests that ended within the window, W their mean time in flight; failed ones are
    included, for they were in flight as well. It equals `users_held` where the level is steady; it is smaller where
    a backlog grows, and differs by chance where few requests end within the window.
    """
    return _per_second(part, math.fsum(map(in_flight_s, _ended_in_window(part))))


@dataclass(frozen=True, slots=True)
class InFlight:
    """Requests in flight of all clients together, at the edges of the window and at its busiest moment."""

    start: int
    end: int
    most: int


def count_in_flight(parts: Sequence[ClientPart]) -> InFlight | None:
    """Requests of all clients that were sent and had not ended, on the conductor's clock; None without a window."""
    window_ns = level_window_ns(parts)
    if window_ns is None:
        return None
    start_ns, end_ns = window_ns
    sent_ns = _sorted_ns(parts, lambda record: record.sent_monotonic_ns)
    ended_ns = _sorted_ns(parts, lambda record: record.end_monotonic_ns)
    # The number only rises when a request is sent, so its maximum is found there or at the beginning.
    moments_ns = np.concatenate(([start_ns, end_ns], sent_ns[(sent_ns > start_ns) & (sent_ns < end_ns)]))
    counts = np.searchsorted(sent_ns, moments_ns, side="right") - np.searchsorted(ended_ns, moments_ns, side="right")
    return InFlight(start=int(counts[0]), end=int(counts[1]), most=int(counts.max()))


def level_window_ns(parts: Sequence[ClientPart]) -> tuple[int, int] | None:
    """Start and end of the window on the conductor's clock: the earliest start and the latest end of its clients."""
    windows = [part for part in parts if window_s(part)]
    if not windows:
        return None
    start_ns = min(part.window_start_monotonic_ns - part.clock_offset_ns for part in windows)
    return start_ns, max(part.window_end_monotonic_ns - part.clock_offset_ns for part in windows)


def sent_s(parts: Sequence[ClientPart], start_ns: int) -> Floats:
    """When the requests of all clients were sent, ascending: seconds since `start_ns` of the conductor's clock."""
    return (_sorted_ns(parts, lambda record: record.sent_monotonic_ns) - start_ns) / NS_PER_S


def due_s(parts: Sequence[ClientPart], start_ns: int) -> Floats:
    """When the requests of all clients were due, ascending: seconds since `start_ns` of the conductor's clock."""
    return (_sorted_ns(parts, lambda record: record.scheduled_monotonic_ns) - start_ns) / NS_PER_S


def meets_slo(record: RequestRecord, slo: SloConfig) -> bool:
    """Whether a request finished well and within every bound given.

    One token has no time per output token, and meets that bound: it waited for nothing after its first. An answer
    without any token meets no bound.
    """
    bounds = [(ttft_s(record), slo.ttft_s), (e2e_s(record), slo.e2e_s)]
    if record.tokens_out != 1:
        bounds.append((tpot_s(record), slo.tpot_s))
    return record.status == "ok" and all(
        bound_s is None or (value_s is not None and value_s <= bound_s) for value_s, bound_s in bounds
    )


def slo_attainment(records: Iterable[RequestRecord], slo: SloConfig) -> float | None:
    """Share of `records` (those sent in the window) that met the SLO; None without an SLO or a request to judge.

    Failed requests count against it: answers that never came are no better than late ones. A request that was cut
    at the end of the level counts against it if it had already broken a bound; otherwise it is left out, because
    the level's end cut it and not the server, and nobody knows what it would have done.
    """
    if not slo.is_given:
        return None
    judged = [record for record in records if record.status != "cancelled" or _has_broken_slo(record, slo)]
    return sum(meets_slo(record, slo) for record in judged) / len(judged) if judged else None


def goodput_per_s(part: ClientPart, slo: SloConfig) -> float | None:
    """Requests that finished within the window and met the SLO, per second; None without an SLO."""
    if not slo.is_given:
        return None
    return _per_second(part, sum(meets_slo(record, slo) for record in _ended_in_window(part)))


def coalesced_share(records: Iterable[RequestRecord]) -> float | None:
    """Share of the arrivals of tokens that carried more than one frame with tokens; None without any arrival."""
    answered = _with_tokens(records)
    num_arrivals = sum(len(record.token_gaps_us) + 1 for record in answered)
    return sum(record.coalesced for record in answered) / num_arrivals if num_arrivals else None


def kernel_stamped_share(records: Iterable[RequestRecord]) -> float | None:
    """Share of the requests with tokens whose arrivals the kernel stamped; None if none had any."""
    answered = _with_tokens(records)
    return sum(record.stamped_by == "kernel" for record in answered) / len(answered) if answered else None


def expert_share(records: Iterable[RequestRecord]) -> dict[str, float]:
    """Share of `records` that each expert answered, by name; records without a known expert are left out."""
    answers = Counter(record.expert for record in records if record.expert is not None)
    return {expert: answers[expert] / answers.total() for expert in sorted(answers)}


def total(rate: Callable[[ClientPart], float | None], parts: Iterable[ClientPart]) -> float | None:
    """A rate of all clients together: the sum of those of each; None if no client has a window."""
    rates = list(known(map(rate, parts)))
    return math.fsum(rates) if rates else None


def known(values: Iterable[float | None]) -> Iterable[float]:
    """Those of `values` that are not None."""
    return (value for value in values if value is not None)


def _ended_in_window(part: ClientPart) -> list[RequestRecord]:
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    return [record for record in part.records if start_ns <= record.end_monotonic_ns < end_ns]


def _per_second(part: ClientPart, amount: float) -> float | None:
    length_s = window_s(part)
    return amount / length_s if length_s else None


def _sorted_ns(parts: Iterable[ClientPart], time_of: Callable[[RequestRecord], int]) -> Nanoseconds:
    """Times of all clients on the conductor's clock."""
    times = [np.fromiter(map(time_of, part.records), np.int64) - part.clock_offset_ns for part in parts]
    return np.sort(np.concatenate(times))


def _with_tokens(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    return [record for record in records if record.first_token_monotonic_ns is not None]


def _has_broken_slo(record: RequestRecord, slo: SloConfig) -> bool:
    """Whether a request that was cut had missed TTFT or E2E by then, for certain; TPOT needs the whole answer."""
    waited_s = (record.end_monotonic_ns - origin_ns(record)) / NS_PER_S
    first_s = ttft_s(record)
    bounds = ((waited_s if first_s is None else first_s, slo.ttft_s), (waited_s, slo.e2e_s))
    return any(bound_s is not None and value_s > bound_s for value_s, bound_s in bounds)
