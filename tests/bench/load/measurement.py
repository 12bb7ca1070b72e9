"""Holds a client's report against the truth of the same requests: one row per client, level and repeat."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.load import truth as truths
from tests.bench.load.case import Case, Report
from tests.bench.load.process import Cost
from tests.bench.load.truth import NS_PER_MS, Latencies, Truth


@dataclass(frozen=True)
class Measurement:
    """One client at one level once. Reported and true latencies are of the same requests."""

    client: str
    users: int
    repeat: int
    requests: int
    """Requests reported on."""
    true_requests: int
    reported_ttft: Latencies
    true_ttft: Latencies
    reported_gap: Latencies
    true_gap: Latencies
    reported_tokens_per_s: float | None
    true_tokens_per_s: float
    """Over the same span as the reported rate: the client's window, or its whole run."""
    possible_share: float
    """Rate in steady state over what the users would get from a client that is never late."""
    held: float
    """Mean number of requests in flight in steady state, as the mock sees it."""
    cpu_us_per_token: float
    """CPU time of all the client's processes in steady state over the tokens sent meanwhile."""
    peak_rss_bytes: int
    """From the first arrival to the last token: neither start-up nor the summing up."""
    mock_late_p99_ms: float
    """How late the mock was against its schedule: large values mean that the mock was short of CPU."""
    kernel_arrivals: float
    """Share of requests whose arrival has a kernel timestamp."""
    seconds: float
    """From the first arrival to the last token of these requests."""


def compare(client: str, repeat: int, case: Case, report: Report, whole: Truth, cost: Cost) -> Measurement:
    """`whole` is the truth of all requests of the client, its warm-up too; raises ValueError if none got a token."""
    if not len(whole.sent_ns):
        raise ValueError(f"{client} sent no request that got a token")
    same, true_tokens_per_s = _reported_on(case, report, whole)
    if not len(same):
        raise ValueError(f"none of the requests of {client} got all its tokens")
    steady = report.window_ns if report.window_ns and report.is_steady else truths.steady_window(same)
    nominal = truths.possible_tokens_per_s(
        case.users, case.tokens, whole.ttft_ns / NS_PER_MS, whole.gap_ns / NS_PER_MS
    )  # fmt: skip
    return Measurement(
        client=client,
        users=case.users,
        repeat=repeat,
        requests=report.requests,
        true_requests=len(same),
        reported_ttft=report.ttft,
        true_ttft=truths.summarise(truths.ttft_ms(same)),
        reported_gap=report.gap,
        true_gap=truths.summarise(truths.gaps_ms(same)),
        reported_tokens_per_s=report.tokens_per_s,
        true_tokens_per_s=true_tokens_per_s,
        possible_share=truths.tokens_per_s(whole, *steady) / nominal,
        held=truths.users_held(whole, *steady),
        cpu_us_per_token=cost.cpu_between_ns(*steady) / 1000 / max(1, truths.tokens_between(whole, *steady)),
        peak_rss_bytes=cost.peak_rss_between_bytes(int(whole.arrival_ns.min()), int(whole.sent_ns.max())),
        mock_late_p99_ms=truths.summarise(truths.lateness_ms(same)).p99_ms or 0.0,
        kernel_arrivals=whole.kernel_arrivals / len(whole),
        seconds=float(same.sent_ns.max() - same.arrival_ns.min()) / truths.NS_PER_S,
    )


def _reported_on(case: Case, report: Report, whole: Truth) -> tuple[Truth, float]:
    """The requests that the report is about, and the true token rate over the same span."""
    complete = truths.select(whole, whole.num_tokens == case.tokens)
    if report.window_ns is None:
        same = truths.last_requests(complete, report.requests)
        return same, truths.whole_run_tokens_per_s(same) if len(same) else 0.0
    return truths.arrived_between(complete, *report.window_ns), truths.tokens_per_s(whole, *report.window_ns)
