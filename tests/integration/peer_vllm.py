"""What `vllm bench serve` computes from given requests; run by the interpreter of vLLM's environment.

    python peer_vllm.py CASES.json RESULTS.json

CASES holds by name `requests` (see `describe` in test_peer_formulas.py), `run_s` and `slo_ms`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.serve import calculate_metrics


def compute(case):
    outputs = [
        RequestFuncOutput(
            success=request["ok"],
            start_time=request["sent_s"],
            ttft=request["ttft_s"] or 0.0,
            latency=request["e2e_s"] or 0.0,
            itl=request["gaps_s"],
            output_tokens=request["tokens_out"],
            prompt_len=request["tokens_in"] or 0,
        )
        for request in case["requests"]
    ]
    metrics, _ = calculate_metrics([], outputs, case["run_s"], None, [50.0, 90.0, 95.0, 99.0], case["slo_ms"])
    return asdict(metrics)


source, target = map(Path, sys.argv[1:])
target.write_text(json.dumps({name: compute(case) for name, case in json.loads(source.read_text()).items()}))
