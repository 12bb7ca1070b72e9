"""When a level is not to be trusted: limits, and a sentence for each that is passed.

Pure. It judges a level by the numbers of its row and knows neither how they were computed nor what becomes of them.
An overloaded server is a finding and no defect: that a backlog grew or answers took long invalidates nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from erhpc.config import WorkloadConfig

MAX_FAILED_SHARE = 0.01
MAX_CANCELLED_SHARE = 0.10
MIN_USERS_HELD_SHARE = 0.90
MISSING_USERS_TOLERATED = 0.5
"""With few users the gap between two requests of one user weighs more than a tenth; half a user is no defect."""
MAX_LAG_S = 0.010
MAX_LAG_SHARE_OF_TTFT = 0.05
"""Lateness adds to what is measured beside it: a twentieth of the latency is tolerated, and always 10 ms."""
MIN_KERNEL_STAMPED_SHARE = 0.99
"""With fewer requests stamped by the loop not even a p99 is theirs."""
MAX_CLIENT_CPU_SHARE = 0.85
"""A process that is busy for more of its core has queues of its own: at 85 % they hold five to six events on average
(M/M/1), and bursts of tokens wait for each other."""
MIN_CLIENT_MARGIN = 1.25
"""Calibration drifts by some percent from run to run; with less in hand the client may be what limits the tokens."""
MAX_COALESCED_SHARE = 0.05
"""Above it the p95 of the gaps is of arrivals that carried several tokens each."""
MIN_COALESCED_OF = 1000
"""Tokens: with fewer a single stall of the machine passes for a client that is too slow."""
MIN_DUE_SHARE = 0.95
"""A rate that was missed by more is another load point; levels of a sweep lie further apart."""
DUE_TOLERANCE_SIGMAS = 3.0
"""Requests due in a window vary by chance; a shortfall within three standard deviations is no defect."""
MIN_KS_P = 0.001
"""One level in a thousand is blamed by chance."""
MIN_KS_GAPS = 100
"""With fewer gaps the test finds only gross errors."""
MIN_KS_DISTANCE = 0.05
"""With many gaps the test finds even what the resolution of timers does to them; distribution functions that differ
by less than this are taken as the same."""
MAX_CLOCK_UNCERTAINTY_S = 0.001
"""Windows of several clients and the order of their requests are known no better than their clocks; a millisecond is
far below any TTFT."""
OVERLOAD_SIGNS = ("no request sent in the window finished", "more than ", "window too short")
"""How reasons begin that come of a server that could not take the load, and say nothing against the client."""
SERVER_LAGS = (("gateway_lag_p99_s", "gateway"), ("engine_lag_p99_s", "emulated-expert"))


def find_invalid_reasons(
    row: Mapping[str, Any],
    *,
    interrupted: bool,
    warmup_cut: bool = False,
    workload: WorkloadConfig,
    kept_late_p99_s: float | None = None,
    clock_jumps: int = 0,
    clock_uncertainty_s: float = 0.0,
    commonest_error: str | None = None,
) -> list[str]:
    """Why a level is not to be trusted, judged by its own numbers; empty if nothing speaks against it.

    Args:
        row: LEVEL_COLUMNS but for the verdict.
        interrupted: a client was stopped, or left nothing.
        warmup_cut: the window began before every user had finished a request.
        workload: what was asked for: whether users pause, how arrivals were to come, whether the load was to change.
        kept_late_p99_s: 99th percentile of sent minus scheduled over requests for which no connection was opened:
            a server that is slow to accept makes requests late as well, and is not the client's fault.
        clock_jumps: how often the wall clock of a client was set during the window.
        clock_uncertainty_s: how well the worst of the clients' clocks was compared with the conductor's.
        commonest_error: added where too many requests failed.
    """
    if interrupted:
        return ["interrupted"]  # whatever else is odd follows from that
    return [
        *_find_request_reasons(row, commonest_error),
        *_find_client_reasons(row, kept_late_p99_s),
        *_find_server_reasons(row),
        *_find_load_reasons(row, workload),
        *_find_arrival_reasons(row, workload),
        *_find_steadiness_reasons(row, warmup_cut),
        *_find_clock_reasons(row, clock_uncertainty_s, clock_jumps),
    ]


def _find_request_reasons(row: Mapping[str, Any], commonest_error: str | None) -> Iterable[str]:
    num_ok, num_failed, num_cancelled = row["requests_ok"], row["requests_failed"], row["requests_cancelled"]
    num_sent = _count_sent(row)
    example = f"; commonest: {commonest_error}" if commonest_error else ""
    if not num_ok:
        yield f"no request sent in the window finished{'' if num_failed else example}"
    if num_failed > MAX_FAILED_SHARE * num_sent:
        yield f"more than {100 * MAX_FAILED_SHARE:.0f} % of requests failed ({num_failed} of {num_sent}){example}"
    if num_cancelled > MAX_CANCELLED_SHARE * num_sent:
        yield f"window too short: {100 * num_cancelled / num_sent:.0f} % of its requests were cut at the end"


def _find_client_reasons(row: Mapping[str, Any], kept_late_p99_s: float | None) -> Iterable[str]:
    """A client that was the bottleneck.

    Where the loop stamps, its lag is in every latency. The kernel's stamps are right however late the loop is; a
    late loop then shows in requests that leave late.
    """
    if (row["kernel_stamped_share"] or 0.0) < MIN_KERNEL_STAMPED_SHARE:
        yield from _find_lag(row, row["client_lag_p99_s"], "client-bound: p99 lag")
        yield from _find_lag(row, row["kernel_delay_p99_s"], "client-bound: p99 delay from kernel to client")
    else:
        yield from _find_lag(row, kept_late_p99_s, "client-bound: p99 of sending late")
    cpu_share, margin, coalesced = row["client_cpu_share"], row["client_margin"], row["coalesced_share"]
    if cpu_share is not None and cpu_share > MAX_CLIENT_CPU_SHARE:
        limit = f"{100 * MAX_CLIENT_CPU_SHARE:.0f} %"
        yield f"client-bound: a client process used {100 * cpu_share:.0f} % of its core (limit {limit})"
    if margin is not None and margin < MIN_CLIENT_MARGIN:
        yield f"client-bound: it can take only {margin:.2f} times these tokens per second (limit {MIN_CLIENT_MARGIN})"
    num_tokens = (row["output_tokens_per_s"] or 0.0) * row["window_s"]
    if coalesced is not None and coalesced > MAX_COALESCED_SHARE and num_tokens > MIN_COALESCED_OF:
        limit = f"{100 * MAX_COALESCED_SHARE:.0f} %"
        yield f"gaps are blurred: {100 * coalesced:.1f} % of arrivals carried several frames (limit {limit})"


def _find_server_reasons(row: Mapping[str, Any]) -> Iterable[str]:
    """Servers of erhpc's own that were the bottleneck.

    Waiting for a turn in the gateway is judged like lag: where the p99 of it, over all requests, is more than 10 ms and
    more than a twentieth of the p99 of TTFT, of which it is part, the level measures gateway.max_in_flight.
    """
    for column, who in SERVER_LAGS:
        yield from _find_lag(row, row[column], f"{who}-bound: p99 lag")
    yield from _find_lag(row, row["gateway_queue_p99_s"], "gateway-bound: p99 wait for a turn (gateway.max_in_flight)")


def _find_lag(row: Mapping[str, Any], lag_s: float | None, what: str) -> Iterable[str]:
    limit_s = max(MAX_LAG_S, MAX_LAG_SHARE_OF_TTFT * (row["ttft_p99_s"] or 0.0))
    if lag_s is not None and lag_s > limit_s:
        yield f"{what} {lag_s * 1000:.1f} ms > {limit_s * 1000:.1f} ms"


def _find_load_reasons(row: Mapping[str, Any], workload: WorkloadConfig) -> Iterable[str]:
    """Users that were missing; nothing in an open loop, nor where the number of users changes within the window."""
    num_users, num_held = row["users"], row["users_held"]
    if num_users is None or num_held is None or workload.think_time.mean_s or not workload.is_steady:
        return
    if num_users - num_held > max(MISSING_USERS_TOLERATED, (1 - MIN_USERS_HELD_SHARE) * num_users):
        yield f"users held {num_held:.1f} of {num_users}"


def _find_arrival_reasons(row: Mapping[str, Any], workload: WorkloadConfig) -> Iterable[str]:
    """Requests that did not come as asked; nothing in a closed loop, nor where the rate changes within the window."""
    if row["arrivals"] == "closed" or not workload.is_steady:
        return
    rate_per_s, due_per_s, ks_p = row["rate_per_s"], row["due_per_s"], row["arrival_ks_p"]
    if None not in (rate_per_s, due_per_s) and _lacks_requests(row, workload.arrivals.burstiness):
        share = f"{100 * MIN_DUE_SHARE:.0f} %"
        yield f"only {due_per_s:.1f} of {rate_per_s:.1f} requests per second were due: less than {share}"
    num_gaps = _count_sent(row) - 1
    if ks_p is not None and num_gaps >= MIN_KS_GAPS and ks_p < (limit := _ks_limit(num_gaps)):
        yield f"arrivals are not {row['arrivals']}: p = {ks_p:.1g} over {num_gaps} gaps (limit {limit:.1g})"


def _ks_limit(num_gaps: int) -> float:
    """p-value below which gaps are not of the distribution asked for.

    A distance d over n gaps has at most the p-value 2 exp(-2 n d^2) (Dvoretzky, Kiefer and Wolfowitz; Massart 1990).
    """
    return min(MIN_KS_P, max(2 * math.exp(-2 * num_gaps * MIN_KS_DISTANCE**2), sys.float_info.min))


def _lacks_requests(row: Mapping[str, Any], burstiness: float) -> bool:
    """Whether fewer requests were due than asked for, by more than chance.

    The number in a window of a renewal process has about the variance mean * cv^2 (1 / burstiness for gamma gaps,
    0 for constant ones, where one more or less falls into the window).
    """
    asked, due = row["rate_per_s"] * row["window_s"], row["due_per_s"] * row["window_s"]
    spread = {"poisson": 1.0, "gamma": 1 / burstiness}.get(row["arrivals"], 0.0)
    tolerated = max(1.0, DUE_TOLERANCE_SIGMAS * math.sqrt(asked * spread))
    return bool(due < min(MIN_DUE_SHARE * asked, asked - tolerated))


def _find_steadiness_reasons(row: Mapping[str, Any], warmup_cut: bool) -> Iterable[str]:
    if warmup_cut:
        yield "not steady: warm-up ended before every user had finished a request"
    elif row["steady"] is False and row["arrivals"] == "closed":  # in an open loop: overloaded, which is a finding
        ratio = row["littles_law_ratio"]
        littles_law = f"; Little's law gives {ratio:.2f} of the users held" if ratio is not None else ""
        in_flight = f"{row['in_flight_start']} requests in flight at its start, {row['in_flight_end']} at its end"
        yield f"not steady: rates still changed when the window began ({in_flight}{littles_law})"


def _find_clock_reasons(row: Mapping[str, Any], clock_uncertainty_s: float, clock_jumps: int) -> Iterable[str]:
    if clock_jumps and row["kernel_stamped_share"]:
        yield f"the wall clock was set {clock_jumps} times in the window: the kernel's stamps about it are off"
    if row["client_workers"] > 1 and clock_uncertainty_s > MAX_CLOCK_UNCERTAINTY_S:
        limit = f"{MAX_CLOCK_UNCERTAINTY_S * 1000:.1f} ms"
        yield f"clocks of the clients are known only to {clock_uncertainty_s * 1000:.1f} ms (limit {limit})"


def _count_sent(row: Mapping[str, Any]) -> int:
    return int(row["requests_ok"] + row["requests_failed"] + row["requests_cancelled"])
