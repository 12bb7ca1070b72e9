"""Asks the scheduler about a job, and tells it to end one. squeue first, then scontrol; no accounting needed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from erhpc.cluster.submission import SubmittedJob
from erhpc.errors import SubmitError
from erhpc.results.paths import RunPaths

_COMMAND_TIMEOUT_S = 30.0
WAITING_STATES = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")
RUNNING_STATES = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class QueueState:
    """What the scheduler says: its own state word, and why a job waits."""

    state: str
    reason: str = ""

    @property
    def is_waiting(self) -> bool:
        """In the queue."""
        return self.state in WAITING_STATES

    @property
    def is_over(self) -> bool:
        """No process of the job runs any more, whatever the end was."""
        return self.state not in WAITING_STATES and self.state not in RUNNING_STATES


def query_state(job: SubmittedJob, run: RunPaths) -> QueueState:
    """The job's state; UNKNOWN (which counts as over) once the scheduler has forgotten it."""
    if job.scheduler == "local":
        return QueueState("RUNNING" if _is_controller(int(job.job_id), run) else "COMPLETED")
    listed = _run("squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T|%r").strip()
    if listed:
        state, _, reason = listed.splitlines()[0].partition("|")
        return QueueState(state, "" if reason == "None" else reason)
    return parse_scontrol(_run("scontrol", "--oneliner", "show", "job", job.job_id))


def parse_scontrol(text: str) -> QueueState:
    """The state in one line of `scontrol --oneliner show job`. Pure."""
    fields = dict(word.partition("=")[::2] for word in text.split())
    return QueueState(fields.get("JobState", "UNKNOWN"), fields.get("Reason", ""))


def cancel(job: SubmittedJob, run: RunPaths) -> None:
    """Tell the job to end; its agents save what they have and stop everything."""
    if job.scheduler == "slurm":
        _run("scancel", job.job_id)
    elif _is_controller(int(job.job_id), run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), signal.SIGTERM)


def _is_controller(pid: int, run: RunPaths) -> bool:
    """Whether this process is the run's controller, and not another one that got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return os.fsencode(run.submission) in command and state != "Z"


def _run(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise SubmitError(f"{argv[0]} is not installed here. Ask from a node that has Slurm's clients.") from error
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout
