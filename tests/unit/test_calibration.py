from __future__ import annotations

import numpy as np
import pytest

from erhpc.load.calibration import AnswerStamps, ClientCost, parse_stamps, summarise_calibration

COST = ClientCost(tokens=100_000, requests=1000, cpu_s=1.0, duration_s=4.0)


def answer(*errors_ns, gap_ns=20_000_000):
    true_ns = 10**15 + gap_ns * np.arange(len(errors_ns))
    return AnswerStamps(reported_ns=true_ns + np.array(errors_ns, dtype=np.int64), true_ns=true_ns)


LATE = answer(1000, 1000)


def summary(answers=(LATE,), costs=(COST,), **change):
    return summarise_calibration(answers, costs, **({"stamped_by": "kernel", "users": 10, "num_processes": 1} | change))


def test_the_error_of_the_first_token_is_reported_minus_true():
    found = summary([answer(1_000_000, 0), answer(3_000_000, 0), answer(-1_000_000, 0)])

    assert found.ttft_error_mean_s == pytest.approx(0.001)
    assert found.ttft_error_p99_s == pytest.approx(0.003 - 0.02 * 0.002)


def test_a_client_that_is_late_by_the_same_everywhere_has_no_error_of_gaps():
    assert summary([answer(*[5_000_000] * 10)]).gap_error_p99_s == 0


def test_gaps_that_are_too_short_are_as_wrong_as_gaps_that_are_too_long():
    assert summary([answer(2_000_000, 0)]).gap_error_p99_s == pytest.approx(0.002)
    assert summary([answer(0, 2_000_000)]).gap_error_p99_s == pytest.approx(0.002)


def test_gaps_are_not_taken_across_answers():
    assert summary([answer(0, 0), answer(10**9, 10**9)]).gap_error_p99_s == 0


def test_two_answer_lengths_tell_the_cost_of_tokens_from_that_of_requests():
    long = ClientCost(tokens=64_000, requests=1000, cpu_s=64_000 * 10e-6 + 1000 * 100e-6, duration_s=5.0)
    short = ClientCost(tokens=2000, requests=1000, cpu_s=2000 * 10e-6 + 1000 * 100e-6, duration_s=1.0)

    found = summary(costs=(long, short))

    assert (found.us_per_token, found.us_per_request) == (pytest.approx(10), pytest.approx(100))
    assert found.tokens_per_s == 12_800


def test_one_answer_length_gives_all_cost_to_the_tokens():
    found = summary(costs=(COST, COST))

    assert (found.us_per_token, found.us_per_request) == (pytest.approx(10), 0)


def test_noise_never_makes_a_cost_negative():
    long = ClientCost(tokens=64_000, requests=1000, cpu_s=0.7, duration_s=5.0)
    short = ClientCost(tokens=2000, requests=1000, cpu_s=0.01, duration_s=1.0)

    found = summary(costs=(long, short))

    assert found.us_per_token == pytest.approx(0.7e6 / 64_000, rel=0.01)
    assert found.us_per_request == 0


def test_capacity_leaves_a_part_of_each_core_and_counts_every_process():
    assert summary(num_processes=4).capacity_tokens_per_s == pytest.approx(4 * 85_000)


def test_short_answers_leave_less_capacity():
    long = ClientCost(tokens=64_000, requests=1000, cpu_s=0.74, duration_s=5.0)
    short = ClientCost(tokens=2000, requests=1000, cpu_s=0.12, duration_s=1.0)
    found = summary(costs=(long, short))  # 10 us per token, 100 us per request

    assert found.capacity_at(10) == pytest.approx(0.85e6 / 20)
    assert found.capacity_at(1e12) == pytest.approx(found.capacity_tokens_per_s)


@pytest.mark.parametrize("answers", [[], [answer(1)], [answer()]])
def test_a_calibration_without_gaps_is_refused(answers):
    with pytest.raises(ValueError, match="no answer has two tokens"):
        summary(answers)


def test_a_calibration_that_cost_nothing_is_refused():
    with pytest.raises(ValueError, match="no CPU time"):
        summary(costs=[ClientCost(tokens=10, requests=1, cpu_s=0.0, duration_s=1.0)])


def test_stamps_that_do_not_match_are_refused():
    wrong = AnswerStamps(reported_ns=np.arange(3), true_ns=np.arange(2))

    with pytest.raises(ValueError, match="3 reported and 2 true"):
        summary([wrong])


def test_stamps_are_read_from_either_api_and_nothing_else_is_taken_for_one():
    stream = (
        b'8c\r\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n\r\n'
        b'data: {"choices":[{"index":0,"delta":{"content":" 0000000000000000123"}}]}\n\n'
        b'data: {"choices":[{"index":0,"text":" 0000000000000000456"}]}\n\n'
        b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    )

    assert parse_stamps(stream).tolist() == [123, 456]
