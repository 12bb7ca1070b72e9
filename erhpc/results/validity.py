"""When a level is not to be trusted: limits, and a sentence for each that is passed.

Pure. It judges a level by the numbers of its row and knows neither how they were computed nor what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MAX_FAILED_SHARE = 0.01
MAX_CANCELLED_SHARE = 0.10
MIN_USERS_HELD_SHARE = 0.90
MISSING_USERS_TOLERATED = 0.5
"""With few users the gap between two requests of one user weighs more than a tenth; half a user is no defect."""
MAX_LAG_S = 0.010
MAX_LAG_SHARE_OF_TTFT = 0.05
LAGS = (("client_lag_p99_s", "client"), ("gateway_lag_p99_s", "gateway"), ("engine_lag_p99_s", "emulated-expert"))


def find_invalid_reasons(
    row: Mapping[str, Any],
    *,
    interrupted: bool,
    warmup_cut: bool = False,
    think_time_s: float = 0.0,
    commonest_error: str | None = None,
) -> list[str]:
    """Why a level is not to be trusted, judged by its own numbers; empty if nothing speaks against it.

    `row` needs these of LEVEL_COLUMNS: request counts, users, users_held, ttft_p99_s and the lags. Lag adds to the
    latencies it is measured beside; 10 ms is tolerated, or 5 % of TTFT p99 where that is more. `users_held` is not
    judged when users pause between requests. `commonest_error` is added where too many requests failed.
    """
    if interrupted:
        return ["interrupted"]  # whatever else is odd follows from that
    reasons = list(_find_request_reasons(row, commonest_error))
    reasons += _find_lag_reasons(row)
    if think_time_s == 0 and _lacks_users(row["users"], row["users_held"]):
        reasons.append(f"users held {row['users_held']:.1f} of {row['users']}")
    if warmup_cut:
        reasons.append("not steady: warm-up ended before every user had finished a request")
    return reasons


def _find_request_reasons(row: Mapping[str, Any], commonest_error: str | None) -> Iterable[str]:
    num_ok, num_failed, num_cancelled = row["requests_ok"], row["requests_failed"], row["requests_cancelled"]
    num_sent = num_ok + num_failed + num_cancelled
    if not num_ok:
        yield "no request sent in the window finished"
    if num_failed > MAX_FAILED_SHARE * num_sent:
        example = f"; commonest: {commonest_error}" if commonest_error else ""
        yield f"more than {100 * MAX_FAILED_SHARE:.0f} % of requests failed ({num_failed} of {num_sent}){example}"
    if num_cancelled > MAX_CANCELLED_SHARE * num_sent:
        yield f"window too short: {100 * num_cancelled / num_sent:.0f} % of its requests were cut at the end"


def _find_lag_reasons(row: Mapping[str, Any]) -> Iterable[str]:
    limit_s = max(MAX_LAG_S, MAX_LAG_SHARE_OF_TTFT * (row["ttft_p99_s"] or 0.0))
    for column, who in LAGS:
        lag_s = row[column]
        if lag_s is not None and lag_s > limit_s:
            yield f"{who}-bound: p99 lag {lag_s * 1000:.1f} ms > {limit_s * 1000:.1f} ms"


def _lacks_users(num_users: int, num_held: float | None) -> bool:
    if num_held is None:
        return False
    return num_users - num_held > max(MISSING_USERS_TOLERATED, (1 - MIN_USERS_HELD_SHARE) * num_users)
