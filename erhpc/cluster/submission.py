"""Hands a run to the scheduler and takes it back. The only module that knows submitit (beside the job itself).

Slurm and this machine differ in the executor's parameters only; the job is the same function either way.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from erhpc.cluster.network import LOCAL_DEVICES_VARIABLE
from erhpc.config import ClusterConfig
from erhpc.errors import SubmitError
from erhpc.plan.plan import Plan
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths

LOCAL_TIMEOUT_MIN = 7 * 24 * 60
"""A local run may wait for others; its own walltime is kept by the coordinator."""


class SubmittedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the scheduler knows it; for a local run the id is the controller's process id."""

    scheduler: str
    job_id: str


def build_slurm_parameters(plan: Plan) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor for a plan. Pure."""
    cluster = plan.experiment.cluster
    walltime_min = math.ceil(plan.walltime_s / 60)
    parameters: dict[str, Any] = {
        "job_name": f"erhpc-{plan.experiment.name}",
        "nodes": plan.num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": plan.cpus_per_node,
        "time": walltime_min,
        "gpus_per_node": plan.gpus_per_node if plan.requests_gpus and plan.gpus_per_node else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "exclusive": cluster.exclusive or None,
        "setup": list(cluster.setup) or None,
        # Some Slurm versions do not hand the job's CPUs on to srun; a dead rank must end the others.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={plan.cpus_per_node}"],
        "additional_parameters": {
            "signal": f"USR2@{_warning_s(cluster, walltime_min)}",
            # A second try in the same folder would mix its records with the first one's.
            "no-requeue": True,
        },
    }
    # submitit's default wckey ("submitit") is refused by sites that check them, so None must reach it.
    return {name: value for name, value in parameters.items() if value is not None} | {"wckey": None}


def describe_request(plan: Plan) -> str:
    """What the scheduler is asked for, in one line."""
    asked = build_slurm_parameters(plan) if plan.cluster == "slurm" else {"tasks": plan.num_nodes}
    return ", ".join(f"{name}={value}" for name, value in asked.items() if isinstance(value, int | str))


def _warning_s(cluster: ClusterConfig, walltime_min: int) -> int:
    return min(cluster.signal_delay_s, walltime_min * 60 // 2)


def submit(plan: Plan, run: RunPaths, run_node: Callable[[str], object]) -> SubmittedJob:
    """Submit `run_node(run folder)`, once per node, and leave the job's id in the run folder.

    Raises:
        SubmitError: the scheduler refused it.
    """
    logging.getLogger("submitit").setLevel(logging.ERROR)
    # A job submitted from inside another must not inherit that one's Slurm variables, nor our terminal's signals.
    with _environment_for_job(plan), ignored_signals(), _detached_output():
        try:
            job_id = str(_build_executor(plan, run).submit(run_node, str(run.root)).job_id)
        except Exception as error:
            shutil.rmtree(run.root, ignore_errors=True)  # nothing was queued, so nothing is lost
            raise SubmitError(
                f"cluster={plan.cluster} refused the job: {str(error).strip()} (asked for: {describe_request(plan)}). "
                "Correct the keys of conf/cluster, or run on this machine with cluster=local."
            ) from error
    job = SubmittedJob(scheduler=plan.cluster, job_id=job_id)
    write_atomically(run.job, msgspec.json.encode(job))
    return job


def _build_executor(plan: Plan, run: RunPaths) -> Any:
    import submitit

    if plan.cluster == "slurm":
        executor = submitit.SlurmExecutor(folder=run.submission, python=sys.executable)
        executor.update_parameters(**build_slurm_parameters(plan))
        return executor
    executor = submitit.LocalExecutor(folder=run.submission)
    executor.update_parameters(tasks_per_node=plan.num_nodes, timeout_min=LOCAL_TIMEOUT_MIN)
    return executor


def read_job(run: RunPaths) -> SubmittedJob:
    """The job of a run.

    Raises:
        SubmitError: the folder holds no submitted run.
    """
    try:
        return msgspec.json.decode(run.job.read_bytes(), type=SubmittedJob)
    except (OSError, msgspec.DecodeError) as error:
        raise SubmitError(
            f"{run.root} holds no submitted run (no readable {run.job.name}). Give the folder that launch printed, "
            "runs/<experiment>/<time>-<id>."
        ) from error


@contextlib.contextmanager
def _environment_for_job(plan: Plan) -> Iterator[None]:
    """Our environment as the job shall inherit it: no Slurm variables, and for a local run the GPUs we may use."""
    saved = dict(os.environ)
    for name in saved:
        if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF":
            del os.environ[name]
    if plan.cluster == "local":
        every = ",".join(map(str, range(plan.gpus_per_node)))
        os.environ[LOCAL_DEVICES_VARIABLE] = saved.get("CUDA_VISIBLE_DEVICES", every) if plan.uses_gpus else ""
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextlib.contextmanager
def ignored_signals() -> Iterator[None]:
    """No Ctrl-C meanwhile, nor for the programs started meanwhile: not to the local controller, only to launch."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _detached_output() -> Iterator[None]:
    """The local controller inherits no terminal or pipe of ours, or whoever reads our output would wait for its end."""
    kept = {}
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # cron and some wrappers close them
            kept[number] = os.dup(number)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for number in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        os.close(nowhere)
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


def find_submission_error(run: RunPaths) -> str | None:
    """The end of what the tasks wrote to their error logs, for a job that ended without a final status."""
    tails = [_read_tail(path) for path in sorted(Path(run.submission).glob("*_log.err"))]
    return next((tail for tail in tails if tail), None)


def _read_tail(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
