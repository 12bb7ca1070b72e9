"""The row that sums up a level: the formulas of `metrics` over its clients, the audit of its arrivals, the verdict.

Pure. It decides which records each column is computed from; what a formula is, `metrics` says, and when a level is
not to be trusted, `validity`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from erhpc.config import SloConfig, WorkloadConfig
from erhpc.results import metrics
from erhpc.results.audit import audit_arrivals
from erhpc.results.record import LEVEL_COLUMNS, ClientPart, LevelIdentity, RequestRecord
from erhpc.results.validity import find_invalid_reasons

NS_PER_S = 1e9
US_PER_S = 1e6

_RATES = (
    metrics.users_held,
    metrics.requests_per_s,
    metrics.due_per_s,
    metrics.input_tokens_per_s,
    metrics.output_tokens_per_s,
)


def summarise_level(
    identity: LevelIdentity,
    parts: Sequence[ClientPart],
    *,
    gateway_lag_p99_s: float | None,
    engine_lag_p99_s: float | None,
    reasons: Sequence[str],
    workload: WorkloadConfig,
    slo: SloConfig,
    capacity_tokens_per_s: float | None,
) -> dict[str, Any]:
    """One row with exactly LEVEL_COLUMNS from what the clients of a level measured.

    Rates of the clients are added up, latencies pooled; `warmup_s`, lag and CPU are the worst client's.

    Args:
        identity: which level it is, and what was asked for.
        parts: what each client process measured; none, if all were lost.
        gateway_lag_p99_s: how late the gateway ran; None without one.
        engine_lag_p99_s: how late the emulated experts ran; None for others.
        reasons: why the level is invalid as seen from outside (e.g. that a server died); they come first.
        workload: what was asked for.
        slo: what an answer must fulfil.
        capacity_tokens_per_s: what these clients can take, all together, by calibration; None if not calibrated.
    """
    sent = [record for part in parts for record in metrics.sent_in_window(part)]
    row = asdict(identity) | _summarise_clients(parts) | _summarise_flow(parts) | _summarise_requests(sent)
    row |= _summarise_promises(sent, parts, slo) | _audit(identity, parts, workload)
    row |= {"gateway_lag_p99_s": gateway_lag_p99_s, "engine_lag_p99_s": engine_lag_p99_s}
    row["client_margin"] = _ratio(capacity_tokens_per_s, row["output_tokens_per_s"])
    row = {name: _finite(value) for name, value in row.items()}
    found = find_invalid_reasons(
        row,
        interrupted=not parts or any(part.interrupted for part in parts),
        warmup_cut=any(part.warmup_cut for part in parts),
        workload=workload,
        kept_late_p99_s=_quantile([metrics.send_late_s(record) for record in sent if not record.new_connection], 0.99),
        clock_jumps=sum(part.clock_jumps for part in parts),
        clock_uncertainty_s=max((part.clock_uncertainty_ns for part in parts), default=0) / NS_PER_S,
        commonest_error=commonest_error(sent) or commonest_error(r for part in parts for r in part.records),
    )
    row |= {"valid": not (reasons or found), "invalid_reasons": list(dict.fromkeys([*reasons, *found]))}
    return {column.name: row[column.name] for column in LEVEL_COLUMNS}


def commonest_error(records: Iterable[RequestRecord]) -> str | None:
    """Kind, HTTP status and text of the commonest error of `records`; None if none failed.

    Texts may name a request or a replica, so errors are counted by kind and status first.
    """
    failed = [record for record in records if record.status == "failed"]
    if not failed:
        return None
    (kind, status), _ = Counter((record.error_kind, record.http_status) for record in failed).most_common(1)[0]
    alike = [record for record in failed if (record.error_kind, record.http_status) == (kind, status)]
    text, _ = Counter(" ".join((record.error_text or "").split()) for record in alike).most_common(1)[0]
    # The text of a refusal opens with its status already.
    known_status = f"HTTP {status}" if status is not None and not text.startswith(f"HTTP {status}") else ""
    return ": ".join(filter(None, (kind, known_status, text)))


def _summarise_clients(parts: Sequence[ClientPart]) -> dict[str, Any]:
    """What the clients are and what they say of themselves."""
    return {
        "started_utc": min((part.started_utc for part in parts), default=None),
        "window_start_utc": min(filter(None, (part.window_start_utc for part in parts)), default=None),
        "warmup_s": max((part.warmup_s for part in parts), default=None),
        "window_s": sum(map(metrics.window_s, parts)) / len(parts) if parts else 0.0,
        "client_workers": len(parts),
        "client_cpu_share": _worst(_ratio(part.cpu_s, metrics.window_s(part)) for part in parts),
        "worker_cpu_share": [_ratio(part.cpu_s, metrics.window_s(part)) for part in parts],
        "client_us_per_token": _us_per_token(parts),
        "client_lag_p99_s": _worst(part.lag_p99_s for part in parts),
        "client_lag_histogram": _add_histograms(parts),
        "kernel_delay_p99_s": _worst(part.kernel_delay_p99_s for part in parts),
        "clock_offset_s": max((abs(part.clock_offset_ns) for part in parts), default=0) / NS_PER_S,
        "steady": _all_steady(parts),
    }


def _summarise_flow(parts: Sequence[ClientPart]) -> dict[str, Any]:
    """How many requests and tokens passed through the window, and how many were under way."""
    row: dict[str, Any] = {rate.__name__: metrics.total(rate, parts) for rate in _RATES}
    tokens = (row["input_tokens_per_s"], row["output_tokens_per_s"])
    row["total_tokens_per_s"] = None if None in tokens else sum(tokens)
    row["littles_law_ratio"] = _ratio(metrics.total(metrics.users_by_littles_law, parts), row["users_held"])
    in_flight = metrics.count_in_flight(parts)
    row["in_flight_start"], row["in_flight_end"], row["in_flight_max"] = (
        (in_flight.start, in_flight.end, in_flight.most) if in_flight else (None, None, None)
    )
    return row


def _summarise_requests(sent: Sequence[RequestRecord]) -> dict[str, Any]:
    """Counts, latencies and shares of the requests sent in the window."""
    outcomes = Counter(record.status for record in sent)
    finished = metrics.finished_well(sent)
    late_s = [metrics.send_late_s(record) for record in sent]
    queue_s = list(metrics.known(record.gateway_queue_s for record in sent))
    queue = metrics.quantiles(queue_s) or {}
    row: dict[str, Any] = {f"requests_{status}": outcomes[status] for status in ("ok", "failed", "cancelled")}
    for name, found in (
        ("ttft", metrics.quantiles(metrics.known(map(metrics.ttft_s, finished)))),
        ("itl", metrics.quantiles(metrics.gaps_us(finished), per_unit=US_PER_S)),
        ("tpot", metrics.quantiles(metrics.known(map(metrics.tpot_s, finished)))),
        ("e2e", metrics.quantiles(metrics.known(map(metrics.e2e_s, finished)))),
        ("normalised", metrics.quantiles(metrics.known(map(metrics.normalised_s, finished)))),
    ):
        row |= {f"{name}_{key}_s": (found or {}).get(key) for key in ("mean", *dict(metrics.QUANTILES))}
    return row | {
        "expert_share": metrics.expert_share(finished),
        "gateway_queued_share": _ratio(sum(wait_s > 0 for wait_s in queue_s), len(queue_s)),
        "gateway_queue_mean_s": queue.get("mean"),
        "gateway_queue_p99_s": queue.get("p99"),
        "send_late_p50_s": _quantile(late_s, 0.50),
        "send_late_p99_s": _quantile(late_s, 0.99),
        "send_late_max_s": max(late_s, default=None),
        "kernel_stamped_share": metrics.kernel_stamped_share(sent),
        "coalesced_share": metrics.coalesced_share(sent),
    }


def _summarise_promises(sent: Sequence[RequestRecord], parts: Sequence[ClientPart], slo: SloConfig) -> dict[str, Any]:
    return {
        "slo_attainment": metrics.slo_attainment(sent, slo),
        "goodput_per_s": metrics.total(lambda part: metrics.goodput_per_s(part, slo), parts),
    }


def _audit(identity: LevelIdentity, parts: Sequence[ClientPart], workload: WorkloadConfig) -> dict[str, Any]:
    """How the requests of an open loop came, all clients together; nothing in a closed one."""
    window_ns = metrics.level_window_ns(parts)
    if identity.arrivals == "closed" or window_ns is None:
        return {"gap_cv": None, "dispersion_index": None, "arrival_ks_p": None}
    start_ns, end_ns = window_ns
    audit = audit_arrivals(
        metrics.sent_s(parts, start_ns),
        identity.arrivals,
        identity.rate_per_s,
        workload.arrivals.burstiness,
        window_s=(end_ns - start_ns) / NS_PER_S,
        due_s=metrics.due_s(parts, start_ns) if identity.arrivals == "trace" else None,
    )
    # Where the rate changes within the window, the gaps are of no one distribution; a trace is its own.
    is_testable = identity.arrivals == "trace" or workload.is_steady
    ks_p = audit.ks_p if is_testable else None
    return {"gap_cv": audit.gap_cv, "dispersion_index": audit.dispersion_index, "arrival_ks_p": ks_p}


def _us_per_token(parts: Sequence[ClientPart]) -> float | None:
    """CPU time of all clients per token that arrived in their windows; None if a client's is not known."""
    cpu_s = [part.cpu_s for part in parts if part.cpu_s is not None]
    if not parts or len(cpu_s) < len(parts):
        return None
    return _ratio(math.fsum(cpu_s) * US_PER_S, math.fsum(map(metrics.tokens_in_window, parts)))


def _add_histograms(parts: Sequence[ClientPart]) -> list[int]:
    probed = [part.lag_histogram for part in parts if part.lag_histogram]
    return [sum(counts) for counts in zip(*probed, strict=True)]


def _all_steady(parts: Sequence[ClientPart]) -> bool | None:
    verdicts = [part.steady for part in parts]
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in metrics.known(values) if math.isfinite(value)), default=None)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None


def _ratio(amount: float | None, per: float | None) -> float | None:
    return amount / per if amount is not None and per else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
