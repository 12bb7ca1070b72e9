"""`python -m erhpc.load` as a subprocess, against a server that erhpc did not start."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager

from tests import runs

QUICK = (
    "workload.output_tokens.kind=fixed",
    "workload.output_tokens.mean=8",
    "workload.warmup_s=0.5",
    "workload.warmup_max_s=0.5",
    "workload.measure_s=1",
    "load.calibrate=false",
)
TTFT_MS = 40


@contextmanager
def null_expert(ttft_ms=TTFT_MS):
    """The URL of a server that answers at a set pace for as long as the context is open."""
    command = [sys.executable, "-m", "jobs.null_expert", "--ttft-ms", str(ttft_ms), "--gap-ms", "5"]
    with subprocess.Popen(
        [*command, "--max-life-s", "180"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=runs.ROOT
    ) as process:
        try:
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.stdin.close()


def load(url, folder, *overrides, **options):
    return runs.run_verb("load", f"url={url}", *QUICK, f"output_root={folder}", *overrides, **options)


def find_run(done):
    return runs.find_run(done.stdout)
