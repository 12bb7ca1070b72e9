"""`python -m erhpc.load` against a server that erhpc did not start."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from erhpc.results.paths import RunPaths
from erhpc.results.store import read_levels, read_records
from tests import runs
from tests.bench.load.mock import NoCompiler, compile_mock, serving
from tests.bench.twin.emulation import list_specs
from tests.bench.twin.emulation import serving as emulated
from tests.standalone import QUICK, find_run, load, null_expert

pytestmark = pytest.mark.timeout(200)


def test_an_emulated_expert_in_faster_time_gives_no_level_that_is_trusted(tmp_path):
    specs = list_specs(1, speedup=20)
    with emulated(specs, tmp_path):
        done = load(f"http://127.0.0.1:{specs[0].port}", tmp_path, "users=[2]")

    levels = read_levels(find_run(done).root)
    assert set(levels["engine"]) == {"emulated"}
    assert levels["valid"].tolist() == [False]
    assert "rehearsal: the time of the emulated experts runs 20 times as fast" in levels["invalid_reasons"].iloc[0]


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
    assert runs.find_faults(run) == []


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
