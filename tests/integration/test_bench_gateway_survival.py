"""The benches of survival run and add up: not how well the gateway does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import runs
from tests.bench.load.environments import cache_folder
from tests.bench.load.mock import NoCompiler, compile_mock

pytestmark = pytest.mark.timeout(120)


def run(module: str, *arguments: str) -> str:
    """What it prints, after it has ended well."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=runs.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_soak_loses_no_request_and_says_so():
    try:
        compile_mock(cache_folder())
    except NoCompiler as reason:
        pytest.skip(str(reason))
    printed = run("tests.bench.gateway.soak", "minutes=0.05", "users=20")
    assert "lost: 0" in printed
    assert int(printed.partition("requests sent")[2].split()[0]) > 20
    assert "RSS slope" in printed


def test_the_bench_of_overload_prints_a_line_for_each_load():
    printed = run("tests.bench.gateway.overload", "--seconds", "0.3", "--admission", "on", "--loads", "0.5,3")
    lines = [line.split() for line in printed.splitlines()[2:]]
    assert [line[0] for line in lines] == ["0.5", "3.0"]
    assert all(int(line[2]) > 0 for line in lines)
