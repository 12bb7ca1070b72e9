"""Real runs for tests: verbs as subprocesses, and what they leave behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from erhpc.results.paths import RunPaths
from erhpc.results.store import read_levels, read_records

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "workload=short",
    "workload.measure_s=2",
    "workload.warmup_s=0.5",
    "workload.warmup_max_s=1.5",
    "workload.drain_s=10",
    "load.calibrate=false",
)


def run_verb(verb, *arguments, check=True, timeout=240, **options):
    """Run `python -m erhpc.<verb>` to its end; a failure shows what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"erhpc.{verb}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=options.pop("cwd", ROOT),
        **options,
    )
    assert not check or done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_verb(verb, *arguments, **options):
    """Start a verb whose output is read later."""
    return subprocess.Popen(
        [sys.executable, "-m", f"erhpc.{verb}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


def find_run(output):
    """The run folder that launch printed."""
    return RunPaths(Path(re.search(r"^run: (.+)$", output, re.MULTILINE)[1]))


def only_run(folder):
    """The one run below an output root."""
    (path,) = Path(folder).glob("*/*/plan.json")
    return RunPaths(path.parent)


def wait_until(condition, deadline_s=60.0, what="the condition"):
    """Poll until `condition()` is true and return its value."""
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {deadline_s} s")


def read_status(run):
    """The published status, {} before there is one."""
    return json.loads(run.status.read_text()) if run.status.exists() else {}


def is_measuring(run):
    """Whether a client reports progress."""
    return bool((read_status(run).get("progress") or {}).get("in_flight"))


def count_gateway_requests(run):
    """Requests that the gateway answered, without the one that proved it ready."""
    text = run.gateway_metrics.read_text()
    return sum(int(number) for number in re.findall(r"^erhpc_requests_total\{.*\} (\d+)$", text, re.MULTILINE)) - 1


def find_processes(run):
    """Command lines of processes that mention the run's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(run.root) in words:
            found.append(words)
    return found


def find_faults(run):
    """Why levels are not valid, but for what other work on this machine explains: lateness, and gaps it blurs."""
    reasons = [reason for reasons in read_levels(run.root)["invalid_reasons"] for reason in reasons]
    return [reason for reason in reasons if "-bound: " not in reason and not reason.startswith("gaps are blurred")]


def assert_records_are_the_requests(run):
    """Every request that the gateway saw is one record, and every user's requests are numbered without a gap.

    Returns those that count. What the end of a level cuts may not have reached the gateway, and fails nowhere.
    """
    records = read_records(run.root)
    counted = choose_counted(records)
    assert len(counted) <= count_gateway_requests(run) <= len(records)
    outcomes = re.findall(r'^erhpc_requests_total\{.*outcome="(\w+)"', run.gateway_metrics.read_text(), re.MULTILINE)
    assert set(outcomes) <= {"ok", "redirected", "cancelled"}
    for _, of_user in records.groupby(["level", "user"]):
        assert sorted(of_user["sequence"]) == list(range(len(of_user)))
    return counted


def choose_counted(records):
    """All but the records of the drain, which the end of a level cuts."""
    return records[records["phase"] != "drain"]
