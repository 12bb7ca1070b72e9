from __future__ import annotations

import numpy as np
import pytest

from erhpc.config import SloConfig, ThinkTimeConfig, WorkloadConfig
from erhpc.errors import InputError
from erhpc.results import metrics
from erhpc.results.record import LEVEL_COLUMNS
from erhpc.results.summary import summarise_level
from erhpc.twin.demand import ClosedLoop, Demand, OpenLoop
from erhpc.twin.records import Texts, Window, find_window, identify_level, to_part
from erhpc.twin.simulation import simulate
from tests.unit.test_simulation import pool_of

TEXTS = Texts(prompt_ids=["p0", "p1", "p2"], domains=["math", "code", "code"])


def predict(load=None):
    demand = Demand(prompt_tokens=[30, 8, 60], answer_tokens=[20, 35, 12], pool=[0, 1, 1])
    pools = [pool_of(1, expert="math"), pool_of(2, expert="code")]
    return simulate(pools, demand, load or ClosedLoop(users=5, num_requests=200))


def test_a_record_says_what_was_predicted_in_the_words_of_a_measurement():
    predicted = predict()
    part = to_part(predicted, find_window(predicted), TEXTS, started_utc="2026-01-01T00:00:00Z")

    for number, record in enumerate(part.records):
        assert (record.prompt_id, record.domain) == (f"p{predicted.row[number]}", TEXTS.domains[predicted.row[number]])
        assert record.expert == ["math", "code", "code"][predicted.row[number]]
        assert record.replica.startswith(record.expert)
        assert metrics.ttft_s(record) == pytest.approx(predicted.first_token_s[number] - predicted.sent_s[number])
        assert metrics.e2e_s(record) == pytest.approx(predicted.last_token_s[number] - predicted.sent_s[number])
        assert len(record.token_gaps_us) == record.tokens_out - 1
        assert sum(record.token_gaps_us) / 1e6 == pytest.approx(
            predicted.last_token_s[number] - predicted.first_token_s[number], abs=2e-6
        )


def test_no_record_claims_that_anything_came_over_a_wire():
    predicted = predict()
    part = to_part(predicted, find_window(predicted), TEXTS, started_utc="2026-01-01T00:00:00Z")

    assert {record.stamped_by for record in part.records} == {"twin"}
    assert {record.http_status for record in part.records} == {None}
    assert part.cpu_s is None
    assert not part.lag_histogram


def test_a_predicted_level_is_a_row_like_a_measured_one_and_says_that_it_is_predicted():
    predicted = predict()
    window = find_window(predicted)
    part = to_part(predicted, window, TEXTS, started_utc="2026-01-01T00:00:00Z")
    identity = identify_level(experiment="x", run_id="r", level=0, users=5, num_replicas=3, num_gpus=3)

    row = summarise_level(
        identity,
        [part],
        gateway_lag_p99_s=None,
        engine_lag_p99_s=None,
        reasons=[],
        workload=WorkloadConfig(think_time=ThinkTimeConfig()),
        slo=SloConfig(ttft_s=10),
        capacity_tokens_per_s=None,
    )

    assert list(row) == [column.name for column in LEVEL_COLUMNS]
    assert row["engine"] == "predicted"
    assert (row["valid"], row["invalid_reasons"]) == (True, [])
    assert row["users_held"] == pytest.approx(5)
    assert row["littles_law_ratio"] == pytest.approx(1, rel=0.1)
    inside = [np.count_nonzero((times >= window.start_s) & (times < window.end_s)) for times in token_times(predicted)]
    assert row["output_tokens_per_s"] == pytest.approx(sum(inside) / (window.end_s - window.start_s), rel=1e-3)


def token_times(predicted):
    return [predicted.token_times_s(number) for number in range(len(predicted.row))]


def test_the_window_of_a_closed_loop_begins_when_every_user_had_an_answer_and_ends_when_users_leave():
    predicted = predict(ClosedLoop(users=5, num_requests=200, ramp_s=2.0))

    window = find_window(predicted)

    assert window.start_s == predicted.last_token_s[predicted.sequence == 0].max() > 1.6
    assert window.end_s == predicted.sent_s.max()
    assert find_window(predicted, warmup_s=3.0).start_s == 3.0


def test_the_window_of_an_open_loop_begins_with_the_warm_up():
    predicted = predict(OpenLoop(due_s=[0.5, 2.0, 9.0]))

    assert find_window(predicted, warmup_s=1.0) == Window(start_s=1.0, end_s=9.0)


def test_too_few_requests_for_a_window_is_an_error():
    with pytest.raises(InputError, match="Let more requests be sent"):
        find_window(predict(ClosedLoop(users=5, num_requests=5)), warmup_s=100.0)
