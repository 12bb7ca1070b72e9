"""Whole runs on this machine: they end well, end early, fail, wait for each other, and leave nothing behind.

Runs take the lock of the machine one after the other, and others may hold it: deadlines are generous.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from erhpc.results.paths import RunPaths
from erhpc.results.store import read_levels, read_records
from tests import runs

pytestmark = pytest.mark.timeout(400)

QUICK = ("cluster=local", *runs.QUICK, "workload.measure_s=1", "workload.warmup_s=0.2", "workload.drain_s=5")
EMULATED = ("engine=emulated", *QUICK)
TWO_EXPERTS = ("+experiment=llama3_70b_tp4", "router=round_robin", *EMULATED)
BASELINE = ("+experiment=baseline_llama3_8b_tp8", *EMULATED)
TINY = ("engine=vllm_cpu", "expert@experts.expert_0=tiny", "expert@experts.expert_1=tiny")
PATIENCE_S = 180
"""How long a run may wait for the machine."""


def await_job(folder):
    """The run below `folder` once it is submitted."""
    path = runs.wait_until(lambda: next(iter(folder.glob("*/*/job.json")), None), what="the job")
    return RunPaths(path.parent)


def await_traffic(run, levels=0):
    """Wait until a client reports progress after so many finished levels."""
    runs.wait_until(
        lambda: len(runs.read_status(run).get("levels", [])) == levels and runs.is_measuring(run),
        PATIENCE_S,
        "traffic",
    )


def find_pid(run, process):
    """The process that runs the spec of that name, None before it has started."""
    spec = os.fsencode(run.spec(process))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if spec in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
        except OSError:
            continue
    return None


def assert_nothing_is_left(run):
    runs.wait_until(lambda: runs.find_processes(run) == [], 20, "the end of every process")
    assert list(run.parts.iterdir()) == []
    job_id = json.loads(run.job.read_text())["job_id"]
    assert list(Path("/tmp").glob(f"erhpc-{job_id}-*")) == []


def test_a_run_on_two_emulated_nodes_ends_with_a_record_per_request(tmp_path):
    output = runs.run_verb(
        "launch", "+experiment=llama3_70b_tp4_2nodes", *EMULATED, "workload.users=[1,8]", f"output_root={tmp_path}"
    ).stdout

    run = runs.find_run(output)
    records, levels = runs.assert_records_are_the_requests(run), read_levels(run.root)
    manifest = json.loads(run.manifest.read_text())
    assert set(manifest["nodes"]) == {"local0", "local1"}
    assert {replica["node"] for replica in runs.read_status(run)["replicas"].values()} == {"local0", "local1"}
    assert list(levels["users"]) == [1, 8]
    assert set(records["status"]) == {"ok"}
    assert set(records["engine"]) == {"emulated"}
    assert len(set(records["replica"])) > 1
    assert "EMULATED" in output
    assert output.rstrip().endswith("finished")
    assert output.splitlines().count("finished") == 1
    assert_nothing_is_left(run)


def test_a_rehearsal_in_faster_time_serves_many_replicas_and_marks_every_level(tmp_path):
    faster = ("engine.speedup=20", "router=round_robin", "workload.users=[8]", f"output_root={tmp_path}")
    output = runs.run_verb("launch", "+experiment=llama3_8b_tp1", *EMULATED, *faster).stdout

    run = runs.find_run(output)
    records, levels = runs.assert_records_are_the_requests(run), read_levels(run.root)
    num_cores, specs = len(os.sched_getaffinity(0)), list((run.root / "specs").glob("expert-*.json"))
    assert len(specs) == (8 if num_cores >= 8 else max(1, num_cores // 2))
    assert {replica["state"] for replica in runs.read_status(run)["replicas"].values()} == {"ready"}
    assert len(set(records["replica"])) == 8
    assert levels["valid"].tolist() == [False]
    assert any(
        "rehearsal: the time of the emulated experts runs 20 times as fast" in reason
        for reason in levels["invalid_reasons"].iloc[0]
    )
    assert "rehearsal" in output
    assert_nothing_is_left(run)


def test_a_baseline_has_no_gateway_and_its_records_name_the_replica(tmp_path):
    output = runs.run_verb("launch", *BASELINE, "workload.users=[2]", f"output_root={tmp_path}").stdout

    run = runs.find_run(output)
    records = read_records(run.root)
    assert json.loads(run.endpoints.read_text())["gateway"] is None
    assert not run.log("gateway").exists()
    assert len(records) > 2
    assert set(zip(records["expert"], records["replica"], strict=True)) == {("baseline", "baseline-0")}
    again = runs.run_verb("plan", "--config-path", run.root, "--config-name", "config").stdout
    assert "levels: 2 users" in again
    assert set(runs.choose_counted(records)["status"]) == {"ok"}
    assert_nothing_is_left(run)


def test_an_expert_that_dies_in_the_middle_of_a_level_fails_the_run_and_marks_the_level(tmp_path):
    launch = runs.start_verb(
        "launch", *TWO_EXPERTS, "workload.users=[2,4]", "workload.measure_s=120", f"output_root={tmp_path}"
    )
    run = await_job(tmp_path)
    await_traffic(run)

    os.kill(find_pid(run, "expert-expert_1-0"), signal.SIGKILL)
    output, _ = launch.communicate(timeout=60)

    assert launch.returncode == 1, output
    levels = read_levels(run.root)
    assert list(levels["users"]) == [2]
    assert levels["valid"].tolist() == [False]
    assert any("broken off: expert-expert_1-0" in reason for reason in levels["invalid_reasons"].iloc[0])
    assert len(read_records(run.root)) > 0
    assert "failed: expert-expert_1-0 on local0" in output
    assert "killed by signal 9" in output
    assert_nothing_is_left(run)


def test_an_expert_that_dies_while_loading_fails_the_run_at_once(tmp_path):
    launch = runs.start_verb("launch", *TWO_EXPERTS, "workload.users=[2]", f"output_root={tmp_path}")
    run = await_job(tmp_path)

    os.kill(runs.wait_until(lambda: find_pid(run, "expert-expert_0-0"), PATIENCE_S, "an expert"), signal.SIGKILL)
    output, _ = launch.communicate(timeout=30)

    assert launch.returncode == 1, output
    assert "failed: expert-expert_0-0 on local0" in output
    assert len(read_levels(run.root)) == 0
    assert_nothing_is_left(run)


def test_an_engine_that_fails_at_its_start_fails_the_run_at_once_with_its_first_error(tmp_path):
    engine = tmp_path / "python"
    engine.write_text(
        "#!/bin/sh\n"
        "echo 'INFO 01-01 00:00:00 [core.py:1] Initializing'\n"
        "printf 'Traceback (most recent call last):\\n  File \"core.py\", line 7, in main\\n' >&2\n"
        "echo 'ValueError: No room for KV cache' >&2\n"
        "echo 'RuntimeError: Engine core initialization failed. See root cause above.' >&2\n"
        "exit 1\n"
    )
    engine.chmod(0o755)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")

    done = runs.run_verb(
        "launch",
        "+experiment=vllm_cpu_tiny",
        "router=round_robin",
        *QUICK,
        f"engine.python={engine}",
        f"experts.expert_0.weights={weights}",
        f"experts.expert_1.weights={weights}",
        f"output_root={tmp_path / 'runs'}",
        check=False,
    )

    run = runs.find_run(done.stdout)
    assert done.returncode == 1, done.stdout
    # Whichever is seen first: that the process has ended, or that it will never be ready.
    assert re.search(r"ValueError: No room for KV cache \(.*log: ", done.stdout.splitlines()[-1])
    assert "was not ready within" not in done.stdout
    assert_nothing_is_left(run)


def test_ctrl_c_at_launch_saves_the_levels_and_leaves_nothing(tmp_path):
    launch = runs.start_verb(
        "launch", *TWO_EXPERTS, "workload.users=[1,4,8]", "workload.measure_s=4", f"output_root={tmp_path}"
    )
    run = await_job(tmp_path)
    await_traffic(run, levels=1)

    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=60)

    assert launch.returncode == 130, output
    assert "cancelling" in output
    assert "Traceback" not in output
    levels = read_levels(run.root)
    assert levels["users"].tolist() == [1, 4]
    assert "interrupted" in levels["invalid_reasons"].iloc[-1]
    assert runs.read_status(run)["state"] == "interrupted"
    assert_nothing_is_left(run)


def test_a_detached_run_goes_on_alone_and_can_be_cancelled_later(tmp_path):
    done = runs.run_verb(
        "launch", *BASELINE, "workload.users=[2]", "workload.measure_s=300", "detach=true", f"output_root={tmp_path}"
    )
    run = runs.find_run(done.stdout)
    assert f"python -m erhpc.status {run.root}" in done.stdout
    await_traffic(run)

    shown = runs.run_verb("status", "--once", run.root)
    cancelled = runs.run_verb("status", "--cancel", run.root, check=False)

    assert "running: level 1 of 1: 2 users" in shown.stdout
    assert cancelled.returncode == 130, cancelled.stdout
    assert "interrupted: told to stop; levels saved: 1" in cancelled.stdout
    assert "interrupted" in read_levels(run.root)["invalid_reasons"].iloc[0]
    assert len(read_records(run.root)) > 0
    assert_nothing_is_left(run)


def test_several_runs_are_submitted_without_waiting_and_run_one_after_the_other(tmp_path):
    done = runs.run_verb(
        "launch", "--multirun", *BASELINE, "workload.users=[1],[2]", f"output_root={tmp_path}", timeout=60
    )
    submitted = [RunPaths(path.parent) for path in tmp_path.glob("*/*/job.json")]
    assert len(submitted) == 2
    assert done.stdout.count("follow it: python -m erhpc.status") == 2
    assert not any(runs.read_status(run).get("state") == "finished" for run in submitted)

    attached = runs.run_verb("status", *[run.root for run in submitted], timeout=PATIENCE_S)

    assert [run.root for run in submitted if f"run: {run.root}" not in attached.stdout] == []
    assert [runs.read_status(run)["state"] for run in submitted] == ["finished", "finished"]
    spans = sorted(
        (records["sent_monotonic_ns"].min(), records["end_monotonic_ns"].max())
        for records in (read_records(run.root) for run in submitted)
    )
    assert spans[0][1] < spans[1][0]
    for run in submitted:
        assert_nothing_is_left(run)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    """A classifier with three clusters."""
    folder = tmp_path_factory.mktemp("fit") / "router"
    runs.run_verb("fit", "clusters=3", f"output={folder}")
    return folder


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["workload.prompts=/no/such/prompts.jsonl"], ["InputError", "/no/such/prompts.jsonl"]),
        (["router=cluster", "router.artefact=ARTEFACT"], ["ConfigError", "3 clusters", "2 experts", "clusters=2"]),
        (["router=cluster", "router.artefact=/no/artefact"], ["InputError", "/no/artefact"]),
        (
            [*TINY, "experts.expert_0.weights=/no/weights"],
            ["InputError", "experts.expert_0.weights=/no/weights", "config.json"],
        ),
        ([*TINY, "engine.python=/no/python"], ["InputError", "/no/python", "make vllm-env"]),
    ],
    ids=["prompts", "clusters", "artefact", "weights", "interpreter"],
)
def test_what_is_missing_is_said_in_one_line_before_anything_is_submitted(tmp_path, artefact, overrides, words):
    given = [override.replace("ARTEFACT", str(artefact)) for override in overrides]

    done = runs.run_verb("launch", *TWO_EXPERTS, *given, f"output_root={tmp_path}", check=False)

    assert done.returncode == 2, done.stdout
    assert [word for word in words if word not in done.stderr] == []
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.glob("*/*")) == []


IMPATIENT = """
import dataclasses, sys
from datetime import UTC, datetime
from erhpc.cluster.preparation import prepare_run
from erhpc.cluster.submission import submit
from erhpc.composition import compose_experiment, to_config, to_yaml
from erhpc.config import ExperimentConfig
from erhpc.plan.building import build_plan
from erhpc.plan.site import Site, decide_setting
from jobs.node_agent import run_node

composed = compose_experiment(sys.argv[1:])
experiment = to_config(composed, ExperimentConfig)
plan = build_plan(experiment, decide_setting(experiment, Site()), python=sys.executable)
plan = dataclasses.replace(plan, walltime_s=12.0)
run = prepare_run(plan, to_yaml(experiment), datetime.now(UTC))
submit(plan, run, run_node)
print(f"run: {run.root}")
"""


def test_a_run_that_outlives_its_walltime_is_broken_off_and_keeps_what_it_measured(tmp_path):
    overrides = [*TWO_EXPERTS, "workload.users=[2]", "workload.measure_s=60", f"output_root={tmp_path}"]
    submitted = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *overrides], capture_output=True, text=True, check=True, cwd=runs.ROOT
    )
    run = runs.find_run(submitted.stdout)

    done = runs.run_verb("status", run.root, check=False)

    assert done.returncode == 1
    assert "walltime" in runs.read_status(run)["error"]
    levels = read_levels(run.root)
    assert levels["valid"].tolist() == [False]
    assert any("walltime" in reason for reason in levels["invalid_reasons"].iloc[0])
    assert len(read_records(run.root)) > 0
    assert_nothing_is_left(run)
