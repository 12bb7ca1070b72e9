"""Whole runs on a real Slurm: they end well, end early, fail, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal

import pytest

from erhpc.results.store import read_levels, read_records
from tests import runs

TWO_NODES = (
    "+experiment=llama3_70b_tp4_2nodes",
    "engine=emulated",
    "cluster=slurm",
    "cluster.request_gpus=true",
    "cluster.cpus_per_node=4",
    *runs.QUICK,
)


def job_id(run):
    return json.loads(run.job.read_text())["job_id"]


def test_a_run_on_two_nodes_ends_with_a_record_per_request_and_no_process_left(slurm, tmp_path):
    output = runs.run_verb("launch", *TWO_NODES, "workload.users=[1,8]", f"output_root={tmp_path}").stdout

    run = runs.find_run(output)
    records = runs.assert_records_are_the_requests(run)
    levels = read_levels(run.root)
    job = slurm.wait_for_job(job_id(run), "COMPLETED")
    assert job["NumNodes"] == "2"
    assert job["TresPerNode"] == "gres:gpu:8"
    assert list(levels["users"]) == [1, 8]
    assert runs.find_faults(run) == []
    assert set(records["status"]) == {"ok"}
    assert set(records["engine"]) == {"emulated"}
    assert set(records["replica"]) <= {f"expert_{i}-0" for i in range(4)}
    assert "EMULATED" in output
    nodes = json.loads(run.manifest.read_text())["nodes"]
    assert set(nodes) == {"n1", "n2"}
    assert nodes["n2"]["cuda_visible_devices"] == "0,1,2,3,4,5,6,7"
    endpoints = json.loads(run.endpoints.read_text())["replicas"]
    assert {url.split(":")[1] for url in endpoints.values()} == {"//127.0.1.1", "//127.0.1.2"}
    assert slurm.job_processes() == {}
    assert runs.find_processes(run) == []


def test_scancel_in_the_middle_leaves_no_process_and_readable_parquet(slurm, tmp_path):
    overrides = (*TWO_NODES, "workload.users=[2,8]", "workload.measure_s=4", "workload.drain_s=2")
    launch = runs.start_verb("launch", *overrides, f"output_root={tmp_path}")
    run = runs.wait_until(lambda: next(iter(tmp_path.glob("*/*/job.json")), None), what="the job")
    run = runs.RunPaths(run.parent)
    runs.wait_until(lambda: len(runs.read_status(run).get("levels", [])) == 1 and runs.is_measuring(run))

    slurm.run(["scancel", job_id(run)])
    output, _ = launch.communicate(timeout=60)

    slurm.wait_for_job(job_id(run), "CANCELLED")
    slurm.wait_until_idle()
    assert launch.returncode == 130, output
    assert slurm.job_processes() == {}
    assert runs.find_processes(run) == []
    levels = read_levels(run.root)
    assert list(levels["users"]) == [2, 8]
    assert ["interrupted" in reasons for reasons in levels["invalid_reasons"]] == [False, True]
    assert set(read_records(run.root)["level"]) == {0, 1}
    assert runs.read_status(run)["state"] == "interrupted"


def test_ctrl_c_at_launch_cancels_the_job_and_cleans_up(slurm, tmp_path):
    launch = runs.start_verb(
        "launch", *TWO_NODES, "workload.users=[4]", "workload.measure_s=60", f"output_root={tmp_path}"
    )
    run = runs.wait_until(lambda: next(iter(tmp_path.glob("*/*/job.json")), None), what="the job")
    run = runs.RunPaths(run.parent)
    runs.wait_until(lambda: runs.is_measuring(run), what="traffic")

    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=60)

    slurm.wait_for_job(job_id(run), "CANCELLED")
    slurm.wait_until_idle()
    assert launch.returncode == 130, output
    assert "cancelling" in output
    assert slurm.job_processes() == {}


def test_a_detached_run_goes_on_alone_and_can_be_attached_to_later(slurm, tmp_path):
    done = runs.run_verb("launch", *TWO_NODES, "workload.users=[2]", "detach=true", f"output_root={tmp_path}")
    run = runs.find_run(done.stdout)

    attached = runs.run_verb("status", run.root)

    assert "python -m erhpc.status" in done.stdout
    assert "finished" in attached.stdout
    assert len(read_levels(run.root)) == 1
    slurm.wait_for_job(job_id(run), "COMPLETED")


def test_a_node_agent_that_is_killed_fails_the_run_and_takes_its_experts_along(slurm, tmp_path):
    launch = runs.start_verb(
        "launch", *TWO_NODES, "workload.users=[4]", "workload.measure_s=60", f"output_root={tmp_path}"
    )
    run = runs.wait_until(lambda: next(iter(tmp_path.glob("*/*/job.json")), None), what="the job")
    run = runs.RunPaths(run.parent)
    runs.wait_until(lambda: runs.is_measuring(run), what="traffic")
    victims = [
        pid
        for pid, words in slurm.job_processes().items()
        if "submitit.core._submit" in words and b"SLURM_PROCID=1" in environment_of(pid).split(b"\0")
    ]

    os.kill(victims[0], signal.SIGKILL)
    output, _ = launch.communicate(timeout=90)

    slurm.wait_until_idle()
    assert launch.returncode == 1, output
    assert "n2" in runs.read_status(run)["error"]
    assert slurm.job_processes() == {}
    assert runs.find_processes(run) == []
    assert not read_levels(run.root)["valid"].any()


def environment_of(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
        return file.read()


@pytest.mark.timeout(700)
def test_the_sweep_script_runs_every_configuration_from_inside_a_batch_job(slurm, tmp_path):
    overrides = [
        "engine=emulated",
        "cluster=slurm",
        "cluster.cpus_per_node=4",
        *runs.QUICK,
        "workload.measure_s=1",
        "workload.users=[2]",
    ]
    environment = {**os.environ, "OUTPUT_ROOT": str(tmp_path), "PYTHON": str(runs.ROOT / ".venv/bin/python")}
    log = tmp_path / "sweep.log"
    submitted = slurm.run(
        ["sbatch", "--parsable", f"--output={log}", "sbatch/sweep.sh", *overrides], env=environment, cwd=runs.ROOT
    )

    job = submitted.stdout.strip()
    try:
        slurm.wait_for_job(job, "COMPLETED", deadline_s=600)
    except AssertionError as error:
        error.add_note(log.read_text()[-3000:])
        raise

    folders = sorted(path.parent for path in (tmp_path / f"sweep-{job}").glob("*/*/plan.json"))
    states = {folder.parent.name: runs.read_status(runs.RunPaths(folder))["state"] for folder in folders}
    paper = {path.stem for path in (runs.ROOT / "conf/experiment").glob("*.yaml")} - {"quickstart", "vllm_cpu_tiny"}
    assert states == dict.fromkeys(paper, "finished")
    assert (tmp_path / f"sweep-{job}" / "report" / "overview.png").exists()
    assert all(len(read_levels(folder)) == 1 for folder in folders)


def test_the_warning_before_the_time_limit_saves_the_level_that_runs(slurm, tmp_path):
    launch = runs.start_verb(
        "launch", *TWO_NODES, "workload.users=[4]", "workload.measure_s=60", f"output_root={tmp_path}"
    )
    run = runs.wait_until(lambda: next(iter(tmp_path.glob("*/*/job.json")), None), what="the job")
    run = runs.RunPaths(run.parent)
    runs.wait_until(lambda: runs.is_measuring(run), what="traffic")

    # Slurm sends this signal by itself cluster.signal_delay_s before the limit.
    slurm.run(["scancel", "--signal=USR2", job_id(run)])
    output, _ = launch.communicate(timeout=60)

    slurm.wait_until_idle()
    assert launch.returncode == 130, output
    assert runs.read_status(run)["state"] == "interrupted"
    assert list(read_levels(run.root)["invalid_reasons"].iloc[0]) == ["interrupted"]
    assert len(read_records(run.root)) > 0
    assert slurm.job_processes() == {}


def test_a_run_that_is_cancelled_in_the_queue_says_so(slurm, tmp_path):
    slurm.run(["sbatch", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"])
    launch = runs.start_verb("launch", *TWO_NODES, f"output_root={tmp_path}")
    path = runs.wait_until(lambda: next(iter(tmp_path.glob("*/*/job.json")), None), what="the job")
    run = runs.RunPaths(path.parent)
    slurm.wait_for_job(job_id(run), "PENDING")
    once = runs.run_verb("status", "--once", run.root)

    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=60)

    assert "queue: PENDING" in once.stdout
    assert launch.returncode == 130, output
    assert "cancelled before it began" in output
    assert runs.read_status(run)["state"] == "interrupted"


def test_clients_on_nodes_of_their_own_share_the_users_and_one_window(slurm, tmp_path):
    placement = ("load.nodes=2", "load.processes=2", "cluster.max_nodes=4")
    output = runs.run_verb("launch", *TWO_NODES, *placement, "workload.users=[10]", f"output_root={tmp_path}").stdout

    run = runs.find_run(output)
    records = runs.assert_records_are_the_requests(run)
    level = read_levels(run.root).iloc[0]
    plan = json.loads(run.plan.read_text())
    job = slurm.wait_for_job(job_id(run), "COMPLETED")
    assert job["NumNodes"] == "4"
    clients = [process for process in plan["processes"] if process["kind"] == "client"]
    assert [client["node"] for client in clients] == [2, 3, 2, 3]
    assert set(json.loads(run.manifest.read_text())["nodes"]) == {"n1", "n2", "n3", "n4"}
    assert level["client_workers"] == 4
    assert records.groupby("worker")["user"].unique().map(sorted).tolist() == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert level["clock_offset_s"] < 0.001  # four processes of one machine have one clock
    assert runs.find_faults(run) == []
