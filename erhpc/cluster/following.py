"""Follows a submitted run until it has ended, whoever submitted it: status file plus the scheduler's word."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console

from erhpc.cluster.queue import QueueState, cancel, query_state
from erhpc.cluster.status import RunStatus, read_status
from erhpc.cluster.submission import SubmittedJob, find_submission_error
from erhpc.cluster.view import make_view
from erhpc.errors import ProcessError
from erhpc.results.paths import RunPaths

STATUS_POLL_S = 0.25
QUEUE_POLL_S = 2.0
ENDING_TIMEOUT_S = 120.0
"""How long a job may take to leave the queue after its last word, or the shared file system to show that word."""


def watch(job: SubmittedJob, run: RunPaths) -> Iterator[tuple[RunStatus | None, QueueState]]:
    """Yield what is known a few times a second, until the run has said its last word and left the scheduler."""
    asked_s, over_since_s = -QUEUE_POLL_S, None
    queue = QueueState("SUBMITTED")
    while True:
        now_s = time.monotonic()
        if now_s - asked_s >= QUEUE_POLL_S or (over_since_s is None and _is_final(run)):
            queue, asked_s = query_state(job, run), now_s
        status = read_status(run.status)
        yield status, queue
        if queue.is_over:
            over_since_s = over_since_s or now_s
            if _is_final(run) or now_s - over_since_s > QUEUE_POLL_S:
                return
        time.sleep(STATUS_POLL_S)


def follow(job: SubmittedJob, run: RunPaths, console: Console) -> RunStatus:
    """Show a run until it ends; returns its last status.

    Raises:
        ProcessError: the job ended without ever saying how (killed, or its node failed).
    """
    view = make_view(console, f"{run.root.parent.name}/{run.root.name}")
    status: RunStatus | None = None
    try:
        for status, queue in watch(job, run):
            view.show(status, queue)
    finally:
        view.close()
    if status is None or not status.is_final:
        raise ProcessError(
            f"the job ended without a last word: {find_submission_error(run) or 'no error in its log'}. "
            f"See {run.submission} and {run.logs}; levels that finished are saved."
        )
    return status


def follow_or_cancel(job: SubmittedJob, run: RunPaths, console: Console) -> RunStatus:
    """Like `follow`, but Ctrl-C cancels the job and waits until it has cleaned up; a second Ctrl-C leaves it."""
    try:
        return follow(job, run, console)
    except KeyboardInterrupt:
        console.print("cancelling: saving records, stopping processes (Ctrl-C again: leave it to the scheduler)")
        cancel(job, run)
        with contextlib.suppress(ProcessError):
            return follow(job, run, console)
        raise


def _is_final(run: RunPaths) -> bool:
    status = read_status(run.status)
    return status is not None and status.is_final
