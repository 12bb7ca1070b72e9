"""The miniature cluster behaves like Slurm on real GPU nodes, and leaves the machine as it found it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import submitit

from tests.slurm.host_names import add_names, list_owners, remove_names
from tests.slurm.miniature import MiniatureCluster


def wait_until(condition: Callable[[], object], deadline_s: float = 20) -> None:
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def submit(slurm: MiniatureCluster, script: str, *options: str, folder: Path) -> str:
    argv = ["sbatch", "--parsable", f"--output={folder}/%j.log", *options, "--wrap", script]
    return slurm.run(argv, cwd=folder).stdout.strip()


def test_four_idle_nodes_offer_eight_gpus_each(slurm):
    shown = slurm.run(["sinfo", "--noheader", "--Node", "--format=%N %T %G %P"]).stdout.splitlines()
    assert shown == [f"n{number} idle gpu:8 main*" for number in range(1, 5)]


def test_every_node_name_has_its_own_address(slurm):
    addresses = [socket.gethostbyname(f"n{number}") for number in range(1, 5)]
    assert addresses == ["127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4"]


def test_a_step_on_two_nodes_sees_all_gpus_and_its_node_name(slurm):
    script = 'echo "$SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES"'
    shown = slurm.run(["srun", "--nodes=2", "--gpus-per-node=8", "sh", "-c", script]).stdout
    assert sorted(shown.splitlines()) == ["n1 0 0,1,2,3,4,5,6,7", "n2 1 0,1,2,3,4,5,6,7"]


def test_two_jobs_on_one_node_get_different_gpus(slurm, tmp_path):
    script = "echo $CUDA_VISIBLE_DEVICES > gpus-$SLURM_JOB_ID; sleep 600"
    jobs = [submit(slurm, script, "--nodelist=n1", "--gpus-per-node=4", folder=tmp_path) for _ in range(2)]
    files = [tmp_path / f"gpus-{job}" for job in jobs]
    wait_until(lambda: all(file.exists() and file.read_text().strip() for file in files))
    gpus = [set(file.read_text().strip().split(",")) for file in files]
    assert [len(some) for some in gpus] == [4, 4]
    assert gpus[0].isdisjoint(gpus[1])


def test_a_finished_job_stays_visible_and_its_files_lie_where_it_was_submitted(slurm, tmp_path):
    job_id = submit(slurm, "echo made > here; echo told", "--job-name=two words", folder=tmp_path)
    job = slurm.wait_for_job(job_id, "COMPLETED")
    slurm.wait_until_idle()
    assert (job["JobName"], job["ExitCode"], job["WorkDir"]) == ("two words", "0:0", str(tmp_path))
    assert slurm.job(job_id)["JobState"] == "COMPLETED"
    assert (tmp_path / "here").read_text() == "made\n"
    assert (tmp_path / f"{job_id}.log").read_text() == "told\n"


def test_waiting_for_a_state_a_job_can_no_longer_reach_fails_at_once(slurm, tmp_path):
    job_id = submit(slurm, "exit 3", folder=tmp_path)
    with pytest.raises(AssertionError, match="job ended otherwise"):
        slurm.wait_for_job(job_id, "COMPLETED")
    assert slurm.job(job_id)["ExitCode"] == "3:0"


def test_scancel_ends_a_job_and_its_processes(slurm, tmp_path):
    job_id = submit(slurm, "srun /usr/bin/sleep 600", "--nodes=2", "--gpus-per-node=8", folder=tmp_path)
    slurm.wait_for_job(job_id, "RUNNING")
    wait_until(lambda: list(slurm.job_processes().values()).count("/usr/bin/sleep 600") == 2)
    slurm.run(["scancel", job_id])
    slurm.wait_for_job(job_id, "CANCELLED")
    slurm.wait_until_idle()
    assert slurm.job_processes() == {}


def test_submitit_runs_a_callable_once_per_node(slurm, tmp_path):
    executor = submitit.SlurmExecutor(folder=tmp_path, python=sys.executable)
    executor.update_parameters(
        nodes=2,
        ntasks_per_node=1,
        gpus_per_node=8,
        cpus_per_task=4,
        time=5,
        wckey=None,
        additional_parameters={"signal": "USR2@30"},
        srun_args=["--kill-on-bad-exit=1", "--cpus-per-task=4"],
    )
    job = executor.submit(describe_rank)
    slurm.wait_for_job(job.job_id, "COMPLETED", deadline_s=60)
    assert job.results() == [("0", "n1", "0,1,2,3,4,5,6,7"), ("1", "n2", "0,1,2,3,4,5,6,7")]


def describe_rank() -> tuple[str, ...]:
    return tuple(os.environ[name] for name in ("SLURM_PROCID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"))


@contextmanager
def started_by_hand() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    argv, root = [sys.executable, "-m", "tests.slurm.miniature"], Path(__file__).parents[2]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            first, last = process.stdout.readline(), process.stdout.readline()
            assert (first.partition("=")[0], last[0]) == ("export SLURM_CONF", "#")
            yield process, Path(first.strip().partition("=")[2]).parent
        finally:
            process.kill()


def count_processes(folder: Path) -> int:
    needle = f"SLURM_CONF={folder}/slurm.conf".encode()
    return sum(needle in read_environment(process) for process in Path("/proc").glob("[0-9]*"))


def read_environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def test_a_second_cluster_by_hand_runs_beside_the_first_and_leaves_nothing_after_ctrl_c(slurm):
    with started_by_hand() as (process, folder):
        assert {folder, slurm.folder} <= list_owners(Path("/etc/hosts"))
        assert count_processes(folder) >= 6
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert folder not in list_owners(Path("/etc/hosts"))
    assert count_processes(folder) == 0
    assert not folder.exists()
    assert slurm.run(["srun", "--nodelist=n4", "echo", "alive"]).stdout == "alive\n"


def test_a_new_cluster_clears_what_a_killed_one_left(slurm, tmp_path):
    with started_by_hand() as (process, folder):
        env = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
        argv = ["sbatch", "--quiet", "--output=/dev/null", "--wrap", "touch started; sleep 600"]
        subprocess.run(argv, env=env, check=True, cwd=tmp_path)
        wait_until((tmp_path / "started").exists)
        process.kill()
    with MiniatureCluster():
        assert folder not in list_owners(Path("/etc/hosts"))
        assert count_processes(folder) == 0
        assert not folder.exists()
    assert slurm.folder in list_owners(Path("/etc/hosts"))


def test_a_daemon_that_cannot_start_shows_its_log_and_leaves_nothing(slurm, tmp_path, monkeypatch):
    program = tmp_path / "slurmctld"
    program.write_text("#!/bin/sh\necho no state for me\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    broken = MiniatureCluster()
    with pytest.raises(RuntimeError, match=r"slurmctld ended at start[\s\S]*slurmctld.log\nno state for me"), broken:
        pass
    assert not broken.folder.exists()
    assert count_processes(broken.folder) == 0
    assert broken.folder not in list_owners(Path("/etc/hosts"))


def test_names_come_and_go_without_touching_other_lines(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n\n10.0.0.1 n1.example # mine")
    hosts.chmod(0o644)
    add_names(hosts, Path("/tmp/a"), {"n1": "127.0.1.1", "n2": "127.0.1.2"})
    add_names(hosts, Path("/tmp/b"), {"n1": "127.0.1.1"})
    assert list_owners(hosts) == {Path("/tmp/a"), Path("/tmp/b")}
    remove_names(hosts, Path("/tmp/a"))
    assert list_owners(hosts) == {Path("/tmp/b")}
    remove_names(hosts, Path("/tmp/b"))
    assert hosts.read_text() == "127.0.0.1\tlocalhost\n\n10.0.0.1 n1.example # mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]
    assert hosts.stat().st_mode & 0o777 == 0o644
