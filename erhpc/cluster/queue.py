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
WAITING_STATES = (
    *("PENDING", "CONFIGURING", "SUSPENDED", "SPECIAL_EXIT"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"),
)
RUNNING_STATES = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING")
NO_ANSWER = "NO ANSWER FROM SLURM"
"""Our own word; a controller that is restarted or overloaded says nothing about the job."""
_JOB_IS_GONE = ("Invalid job id", "already completing or completed")


@dataclass(frozen=True)
class QueueState:
    """What the scheduler says: its own state word, and why a job waits."""

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """No process of the job runs any more, whatever the end was."""
        return self.state not in (*WAITING_STATES, *RUNNING_STATES, NO_ANSWER)


def query_state(job: SubmittedJob, run: RunPaths) -> QueueState:
    """The job's state: UNKNOWN (over) once the scheduler has forgotten it, NO_ANSWER (not over) while it is mute."""
    if job.scheduler == "local":
        return QueueState("RUNNING" if _is_controller(int(job.job_id), run) else "COMPLETED")
    listed = _ask("squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T|%r")
    if listed is not None and listed.strip():
        state, _, reason = listed.splitlines()[0].partition("|")
        return QueueState(state, "" if reason == "None" else reason)
    described = _ask("scontrol", "--oneliner", "show", "job", job.job_id)
    return QueueState(NO_ANSWER) if described is None else parse_scontrol(described)


def parse_scontrol(text: str) -> QueueState:
    """The state in one line of `scontrol --oneliner show job`. Pure."""
    fields = dict(word.partition("=")[::2] for word in text.split())
    reason = fields.get("Reason", "")
    return QueueState(fields.get("JobState", "UNKNOWN"), "" if reason == "None" else reason)


def cancel(job: SubmittedJob, run: RunPaths) -> None:
    """Tell the job to end; its agents save what they have and stop everything.

    Raises:
        SubmitError: the scheduler did not take the order.
    """
    if job.scheduler == "slurm":
        if _ask("scancel", job.job_id) is None:
            raise SubmitError(f"job {job.job_id} goes on: scancel got no answer. Repeat: scancel {job.job_id}.")
    elif _is_controller(int(job.job_id), run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), signal.SIGTERM)


def _is_controller(pid: int, run: RunPaths) -> bool:
    """Whether this process is the run's controller, and not another one that got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return os.fsencode(run.submission) in command and state != b"Z"


def _ask(*argv: str) -> str | None:
    """What a command of Slurm says, "" when there is no such job (any more), None when it got no answer itself."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise SubmitError(f"{argv[0]} is not installed here. Ask from a node that has Slurm's clients.") from error
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 0:
        return done.stdout
    return "" if any(text in done.stderr for text in _JOB_IS_GONE) else None
