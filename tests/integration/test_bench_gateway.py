"""The bench of gateways runs, and what it prints is about the gateway: not how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests import runs
from tests.bench.gateway.measurement import Row
from tests.bench.gateway.phases import AT_ONCE, REQUESTS, STREAMS
from tests.bench.gateway.tables import all_tables
from tests.bench.load.environments import cache_folder
from tests.bench.load.mock import NoCompiler, compile_mock

pytestmark = pytest.mark.timeout(120)
NUM_PROCESSES = {"direct": 0, "erhpc": 2, "erhpc, plain relay": 2, "erhpc, 2 processes": 3, "erhpc, redirect": 2}


def test_the_bench_measures_each_way_of_erhpc_beside_the_mock_alone(tmp_path):
    try:
        compile_mock(cache_folder())
    except NoCompiler as reason:
        pytest.skip(str(reason))
    output = tmp_path / "rows.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.bench.gateway", "--gateways", "fast,plain,processes,redirect",
            "--phases", "requests", "--max-users", "8", "--repeats", "1", "--seconds", "0.5", "--output", output,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["gateway"]: row for row in json.loads(output.read_text())}
    assert {name: row["num_processes"] for name, row in rows.items()} == NUM_PROCESSES
    assert all(row["failures"] == {} and row["requests_per_s"] > 10 for row in rows.values())
    assert all(row["frames_per_s"] == pytest.approx(row["requests_per_s"], rel=0.5) for row in rows.values())
    assert rows["direct"]["cpu_us_per_request"] is None
    assert all(row["cpu_us_per_request"] > 0 for name, row in rows.items() if name != "direct")
    assert "us CPU/request" in done.stdout


def row_of(gateway: str, phase: str, **values: object) -> Row:
    nothing = dict.fromkeys(Row.__dataclass_fields__)
    return Row(**{**nothing, "gateway": gateway, "phase": phase, "users": 1000, "failures": {}, "repeat": 0, **values})


def line_of(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(beginning))


def test_targets_compare_with_the_best_rival_under_the_same_load():
    rows = [
        row_of("erhpc", STREAMS, cpu_us_per_frame=17.0),
        row_of("erhpc, classifying", STREAMS, cpu_us_per_frame=19.0),
        row_of("nginx", STREAMS, cpu_us_per_frame=10.0),
        row_of("sglang-router 0", STREAMS, cpu_us_per_frame=40.0),
        row_of("vllm-router 0", STREAMS, cpu_us_per_frame=20.0),
        row_of("vllm-router 1", STREAMS, cpu_us_per_frame=1.0, users=20),
    ]

    text = all_tables(rows)

    assert "0.85 (0.85..0.85) met" in line_of(text, "CPU/frame by best Rust router")
    assert "1.70 (1.70..1.70) missed" in line_of(text, "CPU/frame by nginx")
    assert "1.00 (1.00..1.00) @20" in line_of(text, "vllm-router 1")


def test_the_mock_alone_is_subtracted_from_means_and_not_from_percentiles():
    rows = [
        row_of("direct", AT_ONCE, ttft_mean_ms=50.0, ttft_p99_ms=60.0),
        row_of("direct", AT_ONCE, ttft_mean_ms=70.0, ttft_p99_ms=60.0, repeat=1),
        row_of("erhpc", AT_ONCE, ttft_mean_ms=80.0, ttft_p99_ms=91.0),
        row_of("erhpc", AT_ONCE, ttft_mean_ms=110.0, ttft_p99_ms=91.0, repeat=1),
        row_of("litellm", AT_ONCE, ttft_mean_ms=200.0, ttft_p99_ms=300.0, users=20),
    ]

    times = all_tables(rows).partition("Time to the first token")[2]

    assert line_of(times, "erhpc").split()[1:3] == ["35.0", "(30.0..40.0)"]
    assert line_of(times, "erhpc").split()[-2:] == ["91.0", "(91.0..91.0)"]
    assert line_of(times, "litellm").split()[1] == "-"


def test_a_rate_that_left_the_core_idle_is_told_to_be_no_limit():
    busy = row_of("erhpc", REQUESTS, requests_per_s=5000.0, core_share=0.97)
    idle = replace(busy, gateway="nginx", core_share=0.5)

    text = all_tables([busy, idle])

    assert ">5,000" in line_of(text, "nginx")
    assert ">5,000" not in line_of(text, "erhpc")
