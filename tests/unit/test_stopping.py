from __future__ import annotations

import pytest

from erhpc.config import SloConfig, StopConfig
from erhpc.load.stopping import StopRules, meets_slo_level

SLO = SloConfig(ttft_s=1.0, attainment=0.9)


def row(attainment=1.0, *, ok=100, failed=0, cancelled=0, valid=True, reason="client-bound: p99 lag"):
    return {
        "slo_attainment": attainment,
        "requests_ok": ok,
        "requests_failed": failed,
        "requests_cancelled": cancelled,
        "valid": valid,
        "invalid_reasons": [] if valid else [reason],
    }


def judged(config, rows):
    rules = StopRules(config, SLO)
    return [rules.judge(row) for row in rows]


@pytest.mark.parametrize(("attainment", "met"), [(0.9, True), (1.0, True), (0.899, False), (0.0, False), (None, None)])
def test_a_level_meets_the_slo_if_enough_requests_did(attainment, met):
    assert meets_slo_level(row(attainment), SLO) is met


def test_an_invalid_level_says_nothing_about_the_slo():
    assert meets_slo_level(row(1.0, valid=False), SLO) is None
    assert meets_slo_level(row(0.0, valid=False), SLO) is None


@pytest.mark.parametrize(
    "reason", ["window too short: 40 % of its requests were cut at the end", "more than 1 % failed"]
)
def test_a_level_that_the_server_could_not_take_has_missed_the_slo(reason):
    assert meets_slo_level(row(0.2, valid=False, reason=reason), SLO) is False
    assert meets_slo_level(row(1.0, valid=False, reason=reason), SLO) is None


def test_a_sweep_without_rules_never_ends_early():
    assert judged(StopConfig(), [row(0.0, ok=0, failed=100)] * 5) == [None] * 5


def test_a_sweep_ends_when_enough_levels_in_a_row_missed_the_slo():
    reasons = judged(StopConfig(slo_misses=2), [row(0.5), row(1.0), row(0.5), row(0.4)])

    assert reasons[:3] == [None] * 3
    assert reasons[3] == (
        "2 levels in a row missed the SLO (stop.slo_misses=2); in the last one 40.0% of the requests met it, "
        "slo.attainment=0.9 must"
    )


@pytest.mark.parametrize("silent", [row(None), row(0.0, valid=False), row(1.0, valid=False)])
def test_a_level_that_says_nothing_neither_counts_as_a_miss_nor_ends_a_series(silent):
    reasons = judged(StopConfig(slo_misses=2), [row(0.5), silent, row(0.5)])

    assert reasons[:2] == [None, None]
    assert "2 levels in a row missed the SLO" in reasons[2]


def test_a_sweep_ends_when_more_than_the_given_share_of_requests_failed():
    reasons = judged(StopConfig(failed_share=0.1), [row(ok=90, failed=10), row(ok=80, failed=11, cancelled=9)])

    assert reasons == [None, "11 of 100 requests failed, over stop.failed_share=0.1"]


def test_failures_end_a_sweep_even_in_an_invalid_level():
    assert judged(StopConfig(failed_share=0.0), [row(None, failed=1, valid=False)]) != [None]


def test_a_level_without_requests_has_no_failed_share():
    assert judged(StopConfig(failed_share=0.0), [row(None, ok=0)]) == [None]


def test_a_level_begins_only_if_it_can_end_within_the_time_budget():
    rules = StopRules(StopConfig(time_budget_s=600), SLO)

    assert rules.allows(expected_level_s=60, elapsed_s=540) is None
    assert rules.allows(expected_level_s=60, elapsed_s=541) == (
        "a level of 60 s would end 601 s after the sweep began, over stop.time_budget_s=600"
    )


def test_without_a_time_budget_every_level_may_begin():
    assert StopRules(StopConfig(), SLO).allows(expected_level_s=1e9, elapsed_s=1e9) is None
