"""The bench of gateways runs, and what it prints is about the gateway: not how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import runs
from tests.bench.load.environments import cache_folder
from tests.bench.load.mock import NoCompiler, compile_mock

pytestmark = pytest.mark.timeout(120)


def test_the_bench_measures_both_relays_beside_the_mock_alone(tmp_path):
    try:
        compile_mock(cache_folder())
    except NoCompiler as reason:
        pytest.skip(str(reason))
    output = tmp_path / "rows.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.bench.gateway", "--gateways", "fast,plain", "--phases", "requests",
            "--repeats", "1", "--seconds", "1", "--output", output,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = {row["gateway"]: row for row in json.loads(output.read_text())}
    assert set(rows) == {"direct", "erhpc", "erhpc, plain relay"}
    assert all(row["failures"] == {} and row["requests_per_s"] > 10 for row in rows.values())
    assert rows["direct"]["cpu_us_per_request"] is None
    assert all(row["cpu_us_per_request"] > 0 for name, row in rows.items() if name != "direct")
    assert "us CPU per request" in done.stdout
