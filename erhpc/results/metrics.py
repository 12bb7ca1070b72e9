"""The formulas: what TTFT, ITL, TPOT, E2E and throughput are, and the row that sums up a level.

Pure numpy on records. It knows no file and no table, and judges nothing (`validity` does). A value that cannot be
computed is None, never NaN.

Two populations are kept apart. Latencies are over requests *sent* in the window (phase `measure`) that finished
well, so that none is cut by the window's edge. Rates are over what *arrived* in the window, whenever it was sent,
so that requests crossing an edge count by the part that lies inside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from erhpc.results.record import LEVEL_COLUMNS, ClientPart, LevelIdentity, RequestRecord
from erhpc.results.validity import find_invalid_reasons

NS_PER_S = 1e9
NS_PER_US = 1000
US_PER_S = 1e6
QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99))

Floats = npt.NDArray[np.float64]


def ttft_s(record: RequestRecord) -> float | None:
    """Time to first token, seconds: first token minus sent. None if no token came."""
    if record.first_token_monotonic_ns is None:
        return None
    return (record.first_token_monotonic_ns - record.sent_monotonic_ns) / NS_PER_S


def e2e_s(record: RequestRecord) -> float | None:
    """End-to-end latency, seconds: last token minus sent; usage and end-of-stream frames excluded."""
    if record.last_token_monotonic_ns is None:
        return None
    return (record.last_token_monotonic_ns - record.sent_monotonic_ns) / NS_PER_S


def tpot_s(record: RequestRecord) -> float | None:
    """Time per output token, seconds: (last - first token) / (tokens - 1); excludes TTFT. None below 2 tokens."""
    first_ns, last_ns = record.first_token_monotonic_ns, record.last_token_monotonic_ns
    if first_ns is None or last_ns is None or record.tokens_out < 2:
        return None
    return (last_ns - first_ns) / NS_PER_S / (record.tokens_out - 1)


def itl_s(records: Iterable[RequestRecord]) -> Floats:
    """Inter-token latencies, seconds: gaps between successive arrivals of tokens, pooled over all records.

    One gap per arrival, so where a frame carries several tokens this is no time per token (see `tpot_s`).
    """
    gaps_us = [np.asarray(record.token_gaps_us, dtype=np.float64) for record in records]
    return np.concatenate(gaps_us) / US_PER_S if gaps_us else np.empty(0)


def quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """Mean, p50, p90, p95 and p99 (numpy's linear interpolation) in the unit of `values`; None if there are none."""
    array = values if isinstance(values, np.ndarray) else np.fromiter(values, dtype=np.float64)
    if not array.size:
        return None
    found = np.quantile(array, [share for _, share in QUANTILES])
    return {"mean": float(array.mean())} | {
        name: float(value) for (name, _), value in zip(QUANTILES, found, strict=True)
    }


def measured_records(part: ClientPart) -> list[RequestRecord]:
    """The population of latencies: requests sent in the window that finished well."""
    return [record for record in part.records if record.phase == "measure" and record.status == "ok"]


def window_s(part: ClientPart) -> float:
    """Length of the measuring window of one client, seconds; 0 if it was interrupted before the window."""
    return max(0.0, (part.window_end_monotonic_ns - part.window_start_monotonic_ns) / NS_PER_S)


def requests_per_s(part: ClientPart) -> float | None:
    """Requests that finished well within the window, per second."""
    return _per_second(part, len(_finished_in_window(part)))


def input_tokens_per_s(part: ClientPart) -> float | None:
    """Prompt tokens of the requests that finished well within the window, per second."""
    return _per_second(part, sum(record.tokens_in or 0 for record in _finished_in_window(part)))


def output_tokens_per_s(part: ClientPart) -> float | None:
    """Answer tokens that arrived within the window, per second: of every phase, of unfinished requests too."""
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    return _per_second(part, sum(tokens_between(record, start_ns, end_ns) for record in part.records))


def users_held(part: ClientPart) -> float | None:
    """Mean number of requests in flight (sent, not ended) over the window."""
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    overlaps_ns = (
        min(record.end_monotonic_ns, end_ns) - max(record.sent_monotonic_ns, start_ns) for record in part.records
    )
    return _per_second(part, sum(max(0, overlap_ns) for overlap_ns in overlaps_ns) / NS_PER_S)


def tokens_between(record: RequestRecord, start_ns: int, end_ns: int) -> float:
    """Tokens of one record that arrived in [start, end).

    With N tokens by the engine's usage in A arrivals, the first included, each arrival counts N / A tokens:
    exact for one token per arrival, and never more than N in all.
    """
    if record.first_token_monotonic_ns is None or record.first_token_monotonic_ns >= end_ns:
        return 0.0
    num_arrivals = len(record.token_gaps_us) + 1
    since_first_ns = np.cumsum([0, *record.token_gaps_us], dtype=np.int64) * NS_PER_US
    low, high = np.searchsorted(since_first_ns, np.array([start_ns, end_ns]) - record.first_token_monotonic_ns)
    return int(high - low) * record.tokens_out / num_arrivals


def expert_share(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Share of `records` that each expert answered, by name; records without a known expert are left out."""
    answers = Counter(record.expert for record in records if record.expert is not None)
    return {expert: answers[expert] / answers.total() for expert in sorted(answers)}


def commonest_error(records: Iterable[RequestRecord]) -> str | None:
    """Kind, HTTP status and text of the commonest error of requests sent in the window; None if none failed.

    Texts may name a request or a replica, so errors are counted by kind and status first.
    """
    failed = [record for record in records if record.phase == "measure" and record.status == "failed"]
    if not failed:
        return None
    (kind, status), _ = Counter((record.error_kind, record.http_status) for record in failed).most_common(1)[0]
    alike = [record for record in failed if (record.error_kind, record.http_status) == (kind, status)]
    text, _ = Counter(" ".join((record.error_text or "").split()) for record in alike).most_common(1)[0]
    # The text of a refusal opens with its status already.
    known_status = f"HTTP {status}" if status is not None and not text.startswith(f"HTTP {status}") else ""
    return ": ".join(filter(None, (kind, known_status, text)))


def summarise_level(
    identity: LevelIdentity,
    parts: Sequence[ClientPart],
    gateway_lag_p99_s: float | None,
    engine_lag_p99_s: float | None,
    reasons: Sequence[str],
    think_time_s: float = 0.0,
) -> dict[str, Any]:
    """One row with exactly LEVEL_COLUMNS from what the clients of a level measured.

    Clients have clocks of their own: every part is measured against its own window and rates are added up;
    latencies are pooled; `warmup_s` and lag are the worst client's. `reasons` (e.g. that a server died) come
    first among those that make the level invalid.
    """
    row = (
        asdict(identity)
        | _summarise_clients(parts)
        | {rate.__name__: _total(rate, parts) for rate in _RATES}
        | _summarise_latencies([record for part in parts for record in measured_records(part)])
        | {"gateway_lag_p99_s": _finite(gateway_lag_p99_s), "engine_lag_p99_s": _finite(engine_lag_p99_s)}
    )
    found = find_invalid_reasons(
        row,
        interrupted=not parts or any(part.interrupted for part in parts),
        warmup_cut=any(part.warmup_cut for part in parts),
        think_time_s=think_time_s,
        commonest_error=commonest_error(record for part in parts for record in part.records),
    )
    row |= {"valid": not (reasons or found), "invalid_reasons": list(dict.fromkeys([*reasons, *found]))}
    return {column.name: row[column.name] for column in LEVEL_COLUMNS}


_RATES: tuple[Callable[[ClientPart], float | None], ...] = (
    users_held,
    requests_per_s,
    input_tokens_per_s,
    output_tokens_per_s,
)


def _summarise_clients(parts: Sequence[ClientPart]) -> dict[str, Any]:
    sent = Counter(record.status for part in parts for record in part.records if record.phase == "measure")
    return {
        "started_utc": min((part.started_utc for part in parts), default=None),
        "warmup_s": max((part.warmup_s for part in parts), default=None),
        "window_s": sum(window_s(part) for part in parts) / len(parts) if parts else 0.0,
        "requests_ok": sent["ok"],
        "requests_failed": sent["failed"],
        "requests_cancelled": sent["cancelled"],
        "client_lag_p99_s": max((part.lag_p99_s for part in parts if math.isfinite(part.lag_p99_s)), default=None),
    }


def _summarise_latencies(records: list[RequestRecord]) -> dict[str, Any]:
    values: dict[str, Iterable[float]] = {
        "ttft": _known(map(ttft_s, records)),
        "itl": itl_s(records),
        "tpot": _known(map(tpot_s, records)),
        "e2e": _known(map(e2e_s, records)),
    }
    row: dict[str, Any] = {"expert_share": expert_share(records)}
    for name, latencies_s in values.items():
        found = quantiles(latencies_s) or {}
        row |= {f"{name}_{key}_s": found.get(key) for key in ("mean", *dict(QUANTILES))}
    return row


def _finished_in_window(part: ClientPart) -> list[RequestRecord]:
    start_ns, end_ns = part.window_start_monotonic_ns, part.window_end_monotonic_ns
    return [record for record in part.records if record.status == "ok" and start_ns <= record.end_monotonic_ns < end_ns]


def _per_second(part: ClientPart, amount: float) -> float | None:
    length_s = window_s(part)
    return amount / length_s if length_s else None


def _total(rate: Callable[[ClientPart], float | None], parts: Sequence[ClientPart]) -> float | None:
    rates = list(_known(map(rate, parts)))
    return math.fsum(rates) if rates else None


def _known(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
