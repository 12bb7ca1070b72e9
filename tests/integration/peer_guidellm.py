"""What guidellm computes from given requests; run by the interpreter of an environment that has guidellm.

    python peer_guidellm.py CASES.json RESULTS.json

CASES holds by name `requests` (see `describe` in test_peer_formulas.py), `run_s`, `window_s` and `slo_ms`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from guidellm.benchmark.schemas.accumulator import GenerativeRequestsAccumulator
from guidellm.benchmark.schemas.metrics import GenerativeMetrics
from guidellm.schemas import DistributionSummary, GenerativeRequestStats, RequestInfo, RequestTimings, UsageMetrics
from guidellm.schemas.benchmark.goodput import GoodputSLO


def make_stats(request):
    sent_s, ttft_s, e2e_s = request["sent_s"], request["ttft_s"], request["e2e_s"]
    timings = RequestTimings(
        targeted_start=request["due_s"],
        request_start=sent_s,
        first_token_iteration=None if ttft_s is None else sent_s + ttft_s,
        last_token_iteration=None if e2e_s is None else sent_s + e2e_s,
        token_iterations=0 if ttft_s is None else len(request["gaps_s"]) + 1,
        request_end=request["end_s"],
        resolve_end=request["end_s"],
    )
    return GenerativeRequestStats(
        request_id="r",
        info=RequestInfo(timings=timings),
        input_metrics=UsageMetrics(text_tokens=request["tokens_in"]),
        output_metrics=UsageMetrics(text_tokens=request["tokens_out"]),
    )


def describe(stats, slo):
    e2el_ms = stats.request_latency * 1000
    return {
        "ttft_ms": stats.time_to_first_token_ms,
        "inter_token_latency_ms": stats.inter_token_latency_ms,
        "time_per_output_token_ms": stats.time_per_output_token_ms,
        "latency_s": stats.request_latency,
        "scheduled_latency_s": stats.request_scheduled_latency,
        "dispatch_delay_s": stats.request_dispatch_delay,
        "tokens_at": stats.output_tokens_timings,
        "conforms": slo.is_conforming(stats.time_to_first_token_ms, stats.inter_token_latency_ms, e2el_ms),
    }


def compute(case):
    found = [make_stats(request) for request in case["requests"]]
    slo = GoodputSLO(**{f"{name}_ms": bound for name, bound in case["slo_ms"].items()})
    ttfts_ms = [one.time_to_first_token_ms for one in found if one.time_to_first_token_ms is not None]
    itls_ms = [(one.inter_token_latency_ms or 0.0, (one.output_tokens or 1.0) - 1.0) for one in found]
    intervals_s = [(one.request_start_time, one.request_end_time) for one in found]
    touching = GenerativeRequestsAccumulator.model_construct(requests_stats=found)
    judged = [(one, request["ok"]) for one, request in zip(found, case["requests"], strict=True)]
    good, failed = [one for one, is_ok in judged if is_ok], [one for one, is_ok in judged if not is_ok]
    attainment, _, _ = GenerativeMetrics._compile_goodput(slo, good, failed, 0.0, case["run_s"])
    return {
        "requests": [describe(one, slo) for one in found],
        "ttft": DistributionSummary.from_values(ttfts_ms).model_dump(),
        "inter_token_latency": DistributionSummary.from_values(itls_ms).model_dump(),
        "concurrency": DistributionSummary.concurrency_distribution_from_timings(intervals_s).model_dump(),
        "attainment": attainment,
        "num_in_window": len(touching.get_within_range(0.0, case["window_s"])),
    }


source, target = map(Path, sys.argv[1:])
target.write_text(json.dumps({name: compute(case) for name, case in json.loads(source.read_text()).items()}))
