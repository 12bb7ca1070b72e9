"""What the scheduler's words mean."""

from __future__ import annotations

import pytest

from erhpc.cluster.queue import NO_ANSWER, QueueState, parse_scontrol

# One line each of `scontrol --oneliner show job`, shortened at the end.
PENDING = (
    "JobId=7 JobName=erhpc-llama3_70b_tp4 UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=1 Nice=0 "
    "Account=(null) QOS=(null) JobState=PENDING Reason=Resources Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:17:00 TimeMin=N/A"
)
COMPLETED = (
    "JobId=5 JobName=erhpc-llama3_70b_tp4_2nodes UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901757 "
    "Nice=0 Account=(null) QOS=(null) JobState=COMPLETED Reason=None Dependency=(null) Requeue=1 Restarts=0 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:21 NodeList=n[1-2] Command=/home/ada/a=b/submission.sh"
)
CANCELLED = "JobId=6 JobName=x UserId=root(0) JobState=CANCELLED Reason=None Dependency=(null) ExitCode=0:15"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PENDING, QueueState("PENDING", "Resources")),
        (COMPLETED, QueueState("COMPLETED")),
        (CANCELLED, QueueState("CANCELLED")),
        ("", QueueState("UNKNOWN")),
    ],
)
def test_state_and_reason_are_read_from_what_scontrol_says(text, expected):
    assert parse_scontrol(text) == expected


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"])
def test_a_job_that_waits_is_not_over(state):
    assert not QueueState(state).is_over


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "RESIZING", NO_ANSWER])
def test_a_job_that_runs_or_of_which_nothing_is_heard_is_not_over(state):
    assert not QueueState(state).is_over


@pytest.mark.parametrize(
    "state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "UNKNOWN"]
)
def test_every_other_state_is_an_end(state):
    assert QueueState(state).is_over
