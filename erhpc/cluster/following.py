"""Follows a submitted run until it has ended, whoever submitted it: status file plus the scheduler's word."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator

from rich.console import Console

from erhpc.cluster.queue import RUNNING_STATES, QueueState, cancel, query_state
from erhpc.cluster.status import RunStatus, StatusFile, read_status
from erhpc.cluster.submission import SubmittedJob, find_submission_error, ignored_signals
from erhpc.cluster.view import make_view
from erhpc.errors import ProcessError
from erhpc.plan.plan import plan_from_json
from erhpc.results.paths import RunPaths

STATUS_POLL_S = 0.25
QUEUE_POLL_S = 2.0
LOCAL_POLL_S = STATUS_POLL_S
LEAVING_TIMEOUT_S = 120.0
"""How long a job may take to leave the scheduler after its last word; a hanging epilog is none of ours."""
LAST_WORD_TIMEOUT_S = 30.0
"""How long after a Slurm job's end its last word may take to be seen; a shared file system caches for a while."""
NO_WORD_TIMEOUT_S = 2.0
"""The same for a job that was never seen running, and on this machine."""


def watch(job: SubmittedJob, run: RunPaths) -> Iterator[tuple[RunStatus | None, QueueState]]:
    """Yield what is known a few times a second, until the run has said its last word and left the scheduler."""
    asked_s, half_over_since_s, has_begun = -math.inf, None, False
    queue = QueueState("SUBMITTED")
    poll_s = LOCAL_POLL_S if job.scheduler == "local" else QUEUE_POLL_S
    while True:
        now_s = time.monotonic()
        if now_s - asked_s >= poll_s:
            queue, asked_s = query_state(job, run), now_s
        # Read after the scheduler was asked: a job that is over has said everything.
        status = read_status(run.status)
        has_begun = has_begun or status is not None or queue.state in RUNNING_STATES
        yield status, queue
        has_last_word = status is not None and status.is_final
        if has_last_word and queue.is_over:
            return
        half_over_since_s = (half_over_since_s or now_s) if has_last_word or queue.is_over else None
        if half_over_since_s is not None and now_s - half_over_since_s > _patience_s(job, status, has_begun):
            return
        time.sleep(STATUS_POLL_S)


def _patience_s(job: SubmittedJob, status: RunStatus | None, has_begun: bool) -> float:
    """How long to wait for the scheduler's word when the run has said its last one, or the other way round."""
    if status is not None and status.is_final:
        return LEAVING_TIMEOUT_S
    return LAST_WORD_TIMEOUT_S if has_begun and job.scheduler == "slurm" else NO_WORD_TIMEOUT_S


def follow(job: SubmittedJob, run: RunPaths, console: Console, *, cancelled: bool = False) -> RunStatus:
    """Show a run until it ends; returns its last status. `cancelled`: it need not have begun.

    Raises:
        ProcessError: the job ended without ever saying how (killed, or its node failed).
        SubmitError: the scheduler cannot be asked.
    """
    view = make_view(console, f"{run.root.parent.name}/{run.root.name}")
    status: RunStatus | None = None
    queue, has_begun = QueueState("SUBMITTED"), False
    try:
        for status, queue in watch(job, run):
            has_begun = has_begun or queue.state in RUNNING_STATES
            view.show(status, queue)
    finally:
        view.close()
    if status is None and (cancelled or queue.state == "CANCELLED"):
        # Where the job has begun on another node, its own last word may still be on its way here.
        return _note_cancelled(run, publish=job.scheduler == "local" or not has_begun)
    if status is None or not status.is_final:
        raise ProcessError(
            f"the job ended without a last word: {find_submission_error(run) or 'no error in its log'}. "
            f"See {run.submission} and {run.logs}; levels that finished are saved."
        )
    return status


def follow_or_cancel(job: SubmittedJob, run: RunPaths, console: Console) -> RunStatus:
    """Like `follow`, but Ctrl-C cancels the job and waits until it has cleaned up; a second Ctrl-C leaves it.

    TERM counts as Ctrl-C: whoever ends launch (a wrapper's time-out, say) does not mean to keep the GPUs. A closed
    terminal does not: the run goes on.

    Raises:
        KeyboardInterrupt: the second Ctrl-C.
        ProcessError, SubmitError: as `follow`.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return follow(job, run, console)
    except KeyboardInterrupt:
        with ignored_signals():
            console.print("cancelling: saving records, stopping processes (Ctrl-C again: leave it to the scheduler)")
            cancel(job, run)
        return follow(job, run, console, cancelled=True)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _note_cancelled(run: RunPaths, *, publish: bool) -> RunStatus:
    """The last word of a run that was cancelled before it said anything, published if nobody else can any more."""
    plan = plan_from_json(run.plan.read_bytes())
    status = RunStatus(experiment=plan.experiment.name, engine=plan.engine, num_levels=len(plan.levels))
    status.state, status.detail = "interrupted", "cancelled before it began"
    if publish:
        StatusFile(run.status, status).publish()
    return status
