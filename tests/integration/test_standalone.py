"""`python -m erhpc.load` against a server that erhpc did not start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from erhpc.results.paths import RunPaths
from erhpc.results.store import read_levels, read_records
from tests import runs
from tests.bench.load.mock import NoCompiler, compile_mock, serving
from tests.bench.twin.emulation import list_specs
from tests.bench.twin.emulation import serving as emulated

pytestmark = pytest.mark.timeout(200)

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


def test_an_emulated_expert_in_faster_time_gives_no_level_that_is_trusted(tmp_path):
    specs = list_specs(1, speedup=20)
    with emulated(specs, tmp_path):
        done = load(f"http://127.0.0.1:{specs[0].port}", tmp_path, "users=[2]")

    levels = read_levels(find_run(done).root)
    assert set(levels["engine"]) == {"emulated"}
    assert levels["valid"].tolist() == [False]
    assert "rehearsal: the time of the emulated experts runs 20 times as fast" in levels["invalid_reasons"].iloc[0]


def test_levels_of_users_are_measured_and_reported(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[1,8]")

    run = find_run(done)
    levels, records = read_levels(run.root), runs.choose_counted(read_records(run.root))
    assert list(levels["users"]) == [1, 8]
    assert levels["valid"].all(), list(levels["invalid_reasons"])
    assert set(levels["engine"]) == {"emulated"}  # as the null expert says of itself
    assert levels["num_gpus"].isna().all()
    assert set(records["status"]) == {"ok"}
    assert set(records["stamped_by"]) == {"kernel"}
    assert levels["ttft_p50_s"].to_numpy() == pytest.approx(np.full(2, TTFT_MS / 1000), abs=0.005)
    assert "null" in done.stdout  # the model that the server lists
    assert "EMULATED" in done.stdout
    assert (run.report / "overview.png").exists()
    assert not run.key.exists()
    manifest = json.loads(run.manifest.read_text())
    assert (manifest["url"], manifest["model"], manifest["engine"]) == (url, "null", "emulated")


def test_levels_of_an_open_loop_are_measured_by_their_rate(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "rates_per_s=[20,80]", "workload.arrivals.kind=poisson", "load.processes=2")

    run = find_run(done)
    levels = read_levels(run.root)
    assert list(levels["rate_per_s"]) == [20, 80]
    assert levels["users"].isna().all()
    assert list(levels["client_workers"]) == [2, 2]
    assert set(read_records(run.root)["latency_from"]) == {"scheduled"}
    assert levels["gap_cv"].between(0.4, 1.6).all()
    assert (run.report / "overview_rate.png").exists()


def test_a_client_knows_what_it_costs_and_how_far_it_is_off(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[4]", "load.calibrate=true")

    run = find_run(done)
    calibration = json.loads(run.calibration.read_text())
    level = read_levels(run.root).iloc[0]
    assert 0 < calibration["us_per_token"] < 1000
    assert abs(calibration["ttft_error_mean_s"]) < 0.005
    assert level["client_margin"] == pytest.approx(
        calibration["capacity_tokens_per_s"] / level["output_tokens_per_s"], rel=1e-6
    )
    assert level["client_margin"] > 10


def test_a_search_finds_the_largest_number_of_users_within_the_slo(tmp_path):
    # Every answer takes TTFT_MS: a bound below it is missed at once, one above it is met up to the end.
    with null_expert() as url:
        found = load(url, tmp_path, "search.kind=users", "search.high=4", "slo.ttft_s=1.0")
        missed = load(url, tmp_path, "search.kind=users", "search.high=4", f"slo.ttft_s={TTFT_MS / 2000}")

    result = json.loads(find_run(found).search.read_text())
    assert (result["largest_met"], result["smallest_missed"]) == (4, None)
    assert list(read_levels(find_run(found).root)["users"]) == [1, 2, 4]
    assert "4 users met the SLO" in found.stdout
    assert json.loads(find_run(missed).search.read_text())["largest_met"] is None
    assert "no load met the SLO" in missed.stdout


def test_a_sweep_stops_when_the_slo_is_missed_too_often(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[1,2,3,4]", f"slo.ttft_s={TTFT_MS / 2000}", "stop.slo_misses=2")

    assert list(read_levels(find_run(done).root)["users"]) == [1, 2]
    assert "missed the SLO" in done.stdout


def test_a_trace_is_replayed_at_its_own_rate(tmp_path):
    trace = tmp_path / "trace.csv"
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"2023-11-16 18:15:{s:02d}.5,20,{3 + s}" for s in range(3))]
    trace.write_text("\n".join(rows) + "\n")
    with null_expert() as url:
        replay = (f"workload.trace={trace}", "workload.arrivals.kind=trace", "workload.output_tokens.kind=trace")
        done = load(url, tmp_path, *replay, "workload.warmup_s=0", "workload.measure_s=30")

    records = read_records(find_run(done).root)
    assert list(records["max_tokens"]) == [3, 4, 5]
    assert np.diff(records["scheduled_monotonic_ns"].to_numpy()) == pytest.approx([1e9, 1e9], abs=1e3)


def test_an_interrupted_load_keeps_what_it_measured_and_leaves_no_process(tmp_path):
    with null_expert() as url:
        process = runs.start_verb(
            "load", f"url={url}", *QUICK, "workload.measure_s=60", "users=[5]", f"output_root={tmp_path}"
        )
        runs.wait_until(lambda: list(tmp_path.glob("*/*/specs/client-000-0.json")), what="the client")
        spec = next(iter(tmp_path.glob("*/*/specs/client-000-0.json")))
        run = RunPaths(spec.parent.parent)
        runs.wait_until(lambda: any(str(spec) in words for words in runs.find_processes(run)), what="the client")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)

    assert process.returncode == 130, output
    assert list(read_levels(run.root)["invalid_reasons"].iloc[0]) == ["interrupted"]
    assert runs.find_processes(run) == []


def test_a_file_without_a_key_is_refused_before_the_server_is_asked(tmp_path):
    (tmp_path / "key").write_text(" \n")
    done = load("http://127.0.0.1:9", tmp_path / "runs", "users=[1]", f"key={tmp_path}/key", check=False)
    assert f"key={tmp_path}/key is empty. Give a file with the key." in done.stderr


def test_the_key_reaches_the_server_and_is_left_nowhere(tmp_path):
    key = tmp_path / "key"
    key.write_text("sesame\n")
    with null_expert() as url:
        done = load(url, tmp_path / "runs", "users=[1]", f"key={key}")

    run = find_run(done)
    texts = [path for path in run.root.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]
    assert texts == []
    assert read_levels(run.root)["valid"].all()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("url=ftp://host",), "http://"),
        (("url=http://127.0.0.1:9", "users=[0]"), "workload.users"),
        (("url=http://127.0.0.1:9", "rates_per_s=[1]"), "workload.arrivals.kind"),
        (("url=http://127.0.0.1:9", "search.kind=users"), "slo.ttft_s"),
        (("url=http://127.0.0.1:9", "workload.trace=absent.csv", "model=m", "load.calibrate=false"), "absent.csv"),
        (("users=[1]",), "url"),
        (("url=http://127.0.0.1:9", "workload.prompts=absent.jsonl"), "absent.jsonl"),
        (("url=http://127.0.0.1:9", "workload.tokenizer=absent.json", "workload=synthetic"), "absent.json"),
        (("url=http://127.0.0.1:9", "load.nodes=1"), "load.processes"),
        (("url=http://127.0.0.1:9", "workload.mixture={math:1}"), "+workload.mixture"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_with_what_to_do(tmp_path, overrides, expected):
    done = runs.run_verb("load", *overrides, f"output_root={tmp_path}", check=False)

    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_a_server_that_erhpc_knows_nothing_of_is_external_and_its_numbers_bear_no_mark(tmp_path):
    try:
        program = compile_mock(tmp_path)
    except NoCompiler as reason:
        pytest.skip(str(reason))
    with serving(program, ttft_ms=30, gap_ms=5, lifetime_s=60) as mock:
        done = load(mock.url, tmp_path, "users=[2]")

    assert set(read_levels(find_run(done).root)["engine"]) == {"external"}
    assert "load (external)" in done.stdout
    assert "EMULATED" not in done.stdout


def test_a_server_that_is_not_there_is_named(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: refused for as long as it is held
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        done = runs.run_verb("load", f"url={url}", f"output_root={tmp_path}", check=False)

    assert done.returncode == 2
    assert url in done.stderr
    assert not list(Path(tmp_path).iterdir())


def test_a_proxy_of_the_environment_is_not_asked(tmp_path):
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    with null_expert() as url:
        done = load(url, tmp_path, "users=[1]", env=environment)

    assert set(runs.choose_counted(read_records(find_run(done).root))["status"]) == {"ok"}


def test_a_server_that_fails_every_request_is_a_finding_and_no_crash(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[3]", "workload.timeout_s=0.1", "workload.output_tokens.mean=64")

    level = read_levels(find_run(done).root).iloc[0]
    assert not level["valid"]
    assert any("timeout_total" in reason for reason in level["invalid_reasons"])
    assert set(runs.choose_counted(read_records(find_run(done).root))["error_kind"]) == {"timeout_total"}
