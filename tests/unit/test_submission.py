"""What is handed to Slurm, and the command of every process, against texts that a person has read (golden/)."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from erhpc.cluster.submission import SubmittedJob, build_slurm_parameters, read_job
from erhpc.errors import SubmitError
from erhpc.plan.plan import Plan
from erhpc.results.paths import RunPaths
from tests.unit.experiments import GPU_CLUSTER, plan

GOLDEN = Path(__file__).with_name("golden")


def assert_golden(name: str, text: str) -> None:
    """Compare with golden/<name>; ERHPC_WRITE_GOLDEN=1 writes it, to be read in the diff before it is committed."""
    path = GOLDEN / name
    if os.environ.get("ERHPC_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def parameters(*overrides: str, name: str = "llama3_70b_tp4", **options):
    return build_slurm_parameters(plan(name, "cluster=slurm", *overrides, site=GPU_CLUSTER, **options))


def render_commands(planned: Plan) -> str:
    """One block per process: where it runs, then its words, the flags one per line."""
    blocks = []
    for process in planned.processes:
        words = shlex.join(process.argv).replace(" --", " \\\n    --")
        blocks.append(f"# {process.name}: node {process.node}, GPUs {list(process.gpus)}\n{words}\n")
    return "\n".join(blocks)


@pytest.mark.parametrize("name", ["llama3_70b_tp4", "llama3_70b_tp4_2nodes"])
def test_the_batch_script_of_an_experiment_is_the_golden_one(name):
    text = _make_sbatch_string(command="COMMAND", folder="/RUN/submission", **parameters(name=name))

    assert_golden(f"{name}.sbatch", text)


def test_the_commands_of_an_experiment_are_the_golden_ones():
    planned = plan("llama3_70b_tp4", "engine=vllm", "cluster=slurm", "workload.users=[1,1000]", site=GPU_CLUSTER)

    assert_golden("llama3_70b_tp4.commands", render_commands(planned))


def test_submitit_is_told_to_set_no_wckey_rather_than_its_own():
    assert parameters()["wckey"] is None


def test_what_the_site_leaves_open_is_not_asked_for():
    given = parameters()

    assert [name for name, value in given.items() if value is None] == ["wckey"]
    assert given.keys().isdisjoint({"partition", "account", "qos", "constraint", "exclude", "exclusive", "setup"})


def test_what_the_site_needs_is_asked_for():
    given = parameters(
        "cluster.partition=gpu",
        "cluster.account=abc",
        "cluster.exclusive=true",
        "cluster.setup=[module load python/3.11]",
        "cluster.cpus_per_node=48",
    )

    assert (given["partition"], given["account"], given["exclusive"]) == ("gpu", "abc", True)
    assert given["setup"] == ["module load python/3.11"]
    assert given["cpus_per_task"] == 48


def test_one_task_per_node_gets_all_cpus_and_a_dead_rank_ends_the_others():
    given = parameters(name="llama3_70b_tp4_2nodes")

    assert (given["nodes"], given["ntasks_per_node"]) == (2, 1)
    assert given["srun_args"] == ["--kill-on-bad-exit=1", f"--cpus-per-task={given['cpus_per_task']}"]


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        (("engine=vllm",), 8),
        (("engine=emulated",), None),
        (("engine=emulated", "cluster.request_gpus=true"), 8),
        (("engine=vllm", "cluster.request_gpus=false"), None),
    ],
)
def test_gpus_are_asked_for_only_when_they_are_used(overrides, gpus):
    assert parameters(*overrides).get("gpus_per_node") == gpus


def test_slurm_warns_the_job_before_the_time_limit_as_early_as_configured():
    assert parameters("cluster.signal_delay_s=120")["additional_parameters"]["signal"] == "USR2@120"


def test_a_warning_comes_no_earlier_than_half_of_a_short_walltime():
    given = parameters("cluster.signal_delay_s=36000")

    assert given["additional_parameters"]["signal"] == f"USR2@{given['time'] * 30}"


def test_the_walltime_is_asked_for_in_whole_minutes_rounded_up():
    planned = plan("llama3_70b_tp4", "cluster=slurm", site=GPU_CLUSTER)

    assert 0 <= build_slurm_parameters(planned)["time"] * 60 - planned.walltime_s < 60


def test_a_submitted_job_is_read_back_from_its_run(tmp_path):
    (tmp_path / "job.json").write_text('{"scheduler":"slurm","job_id":"17"}')

    assert read_job(RunPaths(tmp_path)) == SubmittedJob(scheduler="slurm", job_id="17")


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_a_folder_without_a_submitted_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "job.json").write_text(content)

    with pytest.raises(SubmitError, match=r"holds no submitted run .* Give the folder that launch printed"):
        read_job(RunPaths(tmp_path))
