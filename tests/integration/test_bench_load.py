from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench.load.__main__ import CLIENTS, LEVELS, schedule
from tests.bench.load.case import Case, Report
from tests.bench.load.measurement import Measurement, compare
from tests.bench.load.process import ClientFailed, Cost, ProcessTree, run_client
from tests.bench.load.tables import level_tables
from tests.bench.load.truth import Latencies, Truth
from tests.bench.load.verdict import verdict_tables

CORE = min(os.sched_getaffinity(0))
MS = 1_000_000


def steady_truth(users: int = 2, requests_per_user: int = 10) -> Truth:
    """A closed loop of answers of two tokens after 100 and 120 ms; the next request leaves at once."""
    starts = np.repeat(np.arange(requests_per_user) * 120 * MS, users)
    sent_ns = (starts[:, None] + np.array([100, 120]) * MS).ravel()
    return Truth(100 * MS, 20 * MS, len(starts), starts, starts + 120 * MS, np.full(len(starts), 2), sent_ns)


def case_of(users: int = 2) -> Case:
    folder = Path("unused")
    return Case("http://unused", "mock", folder, users=users, tokens=2, seconds=1.2, requests=20, folder=folder)


def measured(client: str = "erhpc", *, users: int = 1000, repeat: int = 0, late_ms: float = 0.0) -> Measurement:
    report = Report(Latencies(100 + late_ms, 100.0, 100 + late_ms), Latencies(20.0, 20.0, 20.0), 16.0, 20)
    cost = Cost([0, 1200 * MS, 1300 * MS], cpu_ns=[0, 400_000, 900_000], rss_bytes=[2**20, 2**20, 2**22])
    found = compare(client, repeat, case_of(), report, steady_truth(), cost)
    return replace(found, users=users, held=float(users))


def test_a_measurement_compares_the_report_with_the_truth_of_the_same_requests():
    found = measured()

    assert found.true_requests == found.requests == 20
    assert found.true_ttft == Latencies(100.0, 100.0, 100.0)
    assert found.true_gap == Latencies(20.0, 20.0, 20.0)
    assert found.possible_share == pytest.approx(1.0, abs=0.05)
    assert found.true_tokens_per_s == pytest.approx(40 / 1.2)
    assert found.cpu_us_per_token == pytest.approx(10, rel=0.1)
    assert found.peak_rss_bytes == 2**20


def test_probes_and_answers_that_were_cut_are_left_out_of_the_comparison():
    whole = steady_truth()
    probe_ns, cut = np.array([-1000 * MS, -500 * MS]), np.array([-900 * MS, -800 * MS, -480 * MS])
    more = Truth(
        whole.ttft_ns, whole.gap_ns, 22, np.concatenate([probe_ns, whole.arrival_ns]),
        np.concatenate([probe_ns + MS, whole.ended_ns]), np.concatenate([[2, 1], whole.num_tokens]),
        np.concatenate([cut, whole.sent_ns]),
    )  # fmt: skip
    report = Report(Latencies(None, None, None), Latencies(None, None, None), None, 20)

    found = compare("peer", 0, case_of(), report, more, Cost([0, 1], [0, 0], [0, 0]))

    assert (found.true_requests, found.true_ttft.p99_ms) == (20, 100.0)
    assert found.held == pytest.approx(2)
    assert found.seconds == pytest.approx(1.2)


def test_a_client_that_sent_nothing_is_a_failure():
    nothing = replace(steady_truth(), **{name: np.array([], dtype=np.int64) for name in
                      ("arrival_ns", "ended_ns", "num_tokens", "sent_ns")})  # fmt: skip
    report = Report(Latencies(1.0, 1.0, 1.0), Latencies(1.0, 1.0, 1.0), 1.0, 1)

    with pytest.raises(ValueError, match="no request"):
        compare("peer", 0, case_of(), report, nothing, Cost([0], [0], [0]))


def test_tables_show_the_median_and_the_spread_of_the_repeats():
    late = [measured(repeat=repeat, late_ms=late_ms) for repeat, late_ms in enumerate((1.0, 5.0, 2.0))]

    text = level_tables([*late, measured("peer")], 1000)

    assert "median of 3 repeats" in text
    assert "+2.00 (+1.00..+5.00)" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("erhpc", "peer"))][:2] == [
        "erhpc",
        "peer",
    ]


def test_the_verdict_says_which_targets_are_missed_and_where_a_peer_is_better():
    text = verdict_tables([measured(late_ms=3.0), measured("peer", late_ms=0.5)])

    [mean] = [line for line in text.splitlines() if "TTFT mean within 1 %" in line]
    [gap] = [line for line in text.splitlines() if "gap p99 within 5 %" in line]
    [contest] = [line for line in text.splitlines() if "of 7" in line]
    assert mean.split()[-2:] == ["3.00", "NO"]
    assert gap.split()[-2:] == ["0.00", "yes"]
    assert contest.split("of 7")[1].split(",") == [contest.split("of 7")[1].split(",")[0], " TTFT p99"]
    assert "5 of 7" in contest


def test_another_client_begins_in_each_repeat():
    order = list(schedule(3, [1, 50], ["a", "b", "c"]))

    assert len(order) == len(set(order)) == 18
    assert [name for repeat, users, name in order if users == 1] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert LEVELS == (1, 50, 200, 500, 1000, 2000)
    assert "erhpc" in CLIENTS


def test_the_cost_of_a_client_counts_its_children_and_its_core(tmp_path: Path):
    burn = "import os, time\nwhile time.process_time() < 0.8: pass\nprint(os.sched_getaffinity(0))"
    both = "import subprocess, sys\n"
    both += f"subprocess.run([sys.executable, '-c', {burn!r}], check=True, start_new_session=True)\n{burn}"

    cost = run_client([sys.executable, "-c", both], {}, tmp_path, CORE, 60)

    # What is spent between the last look and the end of a process, half a second at most each, is not seen.
    assert 0.5e9 < cost.cpu_ns[-1] < 3e9
    assert cost.peak_rss_between_bytes(cost.times_ns[0], cost.times_ns[-1]) > 5_000_000
    assert (tmp_path / "stdout").read_text().splitlines() == [f"{{{CORE}}}"] * 2


def test_a_client_that_fails_or_hangs_is_told_with_its_last_words_and_leaves_no_process(tmp_path: Path):
    with pytest.raises(ClientFailed, match=r"exit code 3.*no such tokenizer"):
        run_client([sys.executable, "-c", "print('no such tokenizer'); exit(3)"], {}, tmp_path, CORE, 60)
    hang = "import os, subprocess, time\n"
    hang += "child = subprocess.Popen(['sleep', '100'], start_new_session=True)\n"
    hang += "print(os.getpid(), child.pid, flush=True)\ntime.sleep(100)"
    with pytest.raises(ClientFailed, match="exit code -9"):
        run_client([sys.executable, "-c", hang], {}, tmp_path, CORE, 1.0)

    parent, child = map(int, (tmp_path / "stdout").read_text().split())
    assert ProcessTree(parent).find() == ProcessTree(child).find() == set()
