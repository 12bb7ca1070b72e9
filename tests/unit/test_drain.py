"""The end of a level, in virtual time: the load goes on until the last request of the window has ended."""

from __future__ import annotations

from contextlib import nullcontext
from statistics import fmean

import pytest

from erhpc.config import LengthConfig, ProfileConfig, ThinkTimeConfig
from erhpc.plan.levels import LoadPoint
from erhpc.results import metrics
from tests.fakes.sharing_expert import SharingExpert, Streams
from tests.fakes.virtual_loop import run_at_once
from tests.load_level import make_spec, run_level

USERS = 10
STEP_S = 0.1
TOKENS = 20
STEADY_TPOT_S = USERS * STEP_S
ANSWER_S = TOKENS * STEADY_TPOT_S


def run_shared(users=USERS, *, num_workers=1, silent_users=(), **workload):
    """One level against an expert that all streams share; its parts, and the virtual second at which it was over."""
    times = {"warmup_s": 45.0, "warmup_max_s": 60.0, "ramp_s": ANSWER_S, "measure_s": 20.0, "drain_s": 300.0}
    answers = {"output_tokens": LengthConfig(mean=TOKENS)}
    spec = make_spec("http://nowhere", **(times | answers | workload))

    async def work(clock):
        def clock_ns():
            return round(clock() * 1e9)

        streams = Streams()

        def open_client():
            return nullcontext(SharingExpert(clock_ns, STEP_S, silent_users=silent_users, streams=streams))

        point = LoadPoint(users=users)
        parts = await run_level(spec, point, num_workers=num_workers, open_client=open_client, clock=clock_ns)
        return parts, clock()

    return run_at_once(work)


def records_of(parts, phase):
    return [record for part in parts for record in part.records if record.phase == phase]


@pytest.mark.parametrize("measure_s", [ANSWER_S / 4, ANSWER_S, 3 * ANSWER_S])
def test_a_window_no_longer_than_an_answer_measures_the_full_load(measure_s):
    parts, _ = run_shared(measure_s=measure_s)
    measured = records_of(parts, "measure")
    assert {record.status for record in measured} == {"ok"}
    assert fmean(map(metrics.tpot_s, measured)) == pytest.approx(STEADY_TPOT_S, rel=0.01)
    assert metrics.itl_s(measured) == pytest.approx(STEADY_TPOT_S, rel=0.15)


def test_the_level_ends_with_the_last_request_of_the_window_and_cuts_the_others():
    parts, over_s = run_shared()
    (part,) = parts
    measured, drained = records_of(parts, "measure"), records_of(parts, "drain")
    last_ns = max(record.end_monotonic_ns for record in measured)
    assert over_s - last_ns / 1e9 < 1.0
    assert over_s - part.window_end_monotonic_ns / 1e9 < ANSWER_S + 2.0
    assert {record.status for record in drained} == {"cancelled"}
    assert {record.error_kind for record in drained} == {"cancelled"}
    assert len(drained) == USERS
    assert not part.interrupted


def test_every_process_goes_on_until_all_of_them_are_done():
    # A user in each, out of step: when the request of one has ended, that of the other is half-way.
    parts, _ = run_shared(users=2, num_workers=2, ramp_s=7.0, measure_s=5.0)
    measured = records_of(parts, "measure")
    assert fmean(map(metrics.tpot_s, measured)) == pytest.approx(2 * STEP_S, rel=0.01)
    assert all(any(record.phase == "drain" for record in part.records) for part in parts)


def test_an_expert_that_hangs_holds_up_the_level_for_no_longer_than_the_drain():
    parts, over_s = run_shared(silent_users=(3,), drain_s=50.0)
    (part,) = parts
    assert over_s - part.window_end_monotonic_ns / 1e9 == pytest.approx(50.0, abs=1.0)
    (hung,) = [record for record in part.records if record.user == 3]
    assert (hung.phase, hung.status) == ("warmup", "cancelled")
    assert {record.status for record in records_of(parts, "measure")} == {"ok"}


def test_a_drain_of_no_length_cuts_at_the_end_of_the_window():
    parts, over_s = run_shared(drain_s=0.0)
    assert over_s - parts[0].window_end_monotonic_ns / 1e9 < 0.5
    assert {record.status for record in records_of(parts, "measure")} == {"cancelled"}


def test_users_who_think_past_the_window_hold_up_nobody_and_send_in_the_drain_what_falls_due():
    parts, over_s = run_shared(think_time=ThinkTimeConfig(mean_s=7.0))
    (part,) = parts
    last_ns = max(record.end_monotonic_ns for record in part.records if record.phase != "drain")
    assert over_s - last_ns / 1e9 < 1.0
    measured, end_ns = records_of(parts, "measure"), part.window_end_monotonic_ns
    assert all(record.scheduled_monotonic_ns < end_ns and record.status == "ok" for record in measured)
    assert records_of(parts, "drain")


def test_users_at_rest_hold_up_nobody():
    profile = ProfileConfig(kind="spike", base=0.3, start_s=5.0, length_s=5.0)
    parts, over_s = run_shared(profile=profile)
    last_ns = max(record.end_monotonic_ns for record in records_of(parts, "measure"))
    assert over_s - last_ns / 1e9 < 1.0
    assert {record.user for record in records_of(parts, "drain")} == {0, 1, 2}


def test_requests_of_the_drain_count_for_nothing():
    parts, _ = run_shared()
    (part,) = parts
    assert metrics.users_held(part) == pytest.approx(USERS, rel=0.01)
    assert metrics.output_tokens_per_s(part) == pytest.approx(1 / STEP_S, rel=0.05)
    flow = metrics.count_in_flight(parts)
    assert (flow.start, flow.end) == (USERS, USERS)
