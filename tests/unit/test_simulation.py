from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.errors import ConfigError, InputError
from erhpc.twin.scheduler import Limits, count_kv_tokens
from erhpc.twin.simulation import ClosedLoop, Demand, GatewayModel, OpenLoop, ReplicaModel, simulate
from tests.unit.stepwise import simulate_stepwise


class PlainStepTime:
    """A GPU whose time grows with what it computes, and a host that hides behind it until many sequences run."""

    def __init__(self, host_seq_s: float = 0.0) -> None:
        self._host_seq_s = host_seq_s

    def step_s(self, batch):
        tokens = batch.num_decode_seqs + batch.num_prefill_tokens
        gpu_s = 5e-3 + 3.1e-5 * tokens + 7.3e-7 * batch.decode_context_tokens + 1.7e-8 * batch.prefill_attention
        return max(gpu_s + 1.3e-5 * batch.num_logit_rows, 4.9e-3 + self._host_seq_s * batch.num_seqs) + 2e-4


class BendingStepTime:
    """A model that no straight line follows."""

    def step_s(self, batch):
        return (1e-6 + 1e-8 * batch.decode_context_tokens + 1e-7 * (batch.num_prefill_tokens + 1)) ** 0.5


def limits(**changes):
    usual = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 256}
    num_gpu_blocks = changes.pop("num_gpu_blocks", 257)
    return Limits(**(usual | changes), kv_capacity_tokens=count_kv_tokens(num_gpu_blocks))


def pool_of(size=1, step_time=None, expert="math", **changes):
    step_time = step_time or PlainStepTime()
    return [
        ReplicaModel(replica=f"{expert}-{number}", expert=expert, limits=limits(**changes), step_time=step_time)
        for number in range(size)
    ]


NO_GATEWAY = GatewayModel()


def assert_equal_to_single_steps(pools, demand, load, gateway=NO_GATEWAY):
    predicted = simulate(pools, demand, load, gateway)
    answered, num_preemptions = simulate_stepwise(pools, demand, load, gateway)

    assert predicted.num_preemptions == num_preemptions
    assert predicted.replica.tolist() == [request.replica for request in answered]
    assert list(zip(predicted.row, predicted.user, predicted.sequence, strict=True)) == [
        (request.row, request.user, request.sequence) for request in answered
    ]
    np.testing.assert_allclose(predicted.sent_s, [request.sent_s for request in answered], rtol=1e-9)
    for number, request in enumerate(answered):
        np.testing.assert_allclose(predicted.token_times_s(number), request.token_times_s, rtol=1e-9)
    np.testing.assert_allclose(predicted.first_token_s, [r.token_times_s[0] for r in answered], rtol=1e-9)
    np.testing.assert_allclose(predicted.last_token_s, [r.token_times_s[-1] for r in answered], rtol=1e-9)
    return predicted


RULES = st.fixed_dictionaries(
    {
        "asynchronous": st.booleans(),
        "reserve_full_sequence": st.booleans(),
        "long_prefill_token_threshold": st.sampled_from([0, 0, 9, 40]),
        "watermark": st.sampled_from([0.0, 0.0, 0.1]),
        "max_num_seqs": st.integers(1, 8),
        # Few blocks: sequences of up to 144 tokens get in each other's way.
        "num_gpu_blocks": st.integers(10, 30),
        "max_model_len": st.just(144),
    }
)
STEP_TIMES = st.sampled_from([PlainStepTime(), PlainStepTime(6e-4), PlainStepTime(3e-4), BendingStepTime()])
ROWS = st.lists(
    st.tuples(st.integers(1, 100), st.integers(1, 44), st.sampled_from([0, 0, 33, 200]), st.integers(0, 10**6)),
    min_size=1,
    max_size=14,
)


def demand_of(rows, pools=1):
    return Demand(
        prompt_tokens=[row[0] for row in rows],
        answer_tokens=[row[1] for row in rows],
        cached_tokens=[row[2] for row in rows],
        pool=[row[3] % pools for row in rows],
        think_s=[(row[3] % 7919) / 1e5 if row[3] % 3 else 0.0 for row in rows],
    )


@settings(max_examples=150, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.integers(1, 12), st.integers(1, 60))
def test_jumps_equal_single_steps_in_a_closed_loop_on_one_replica(rows, rules, step_time, users, num_requests):
    pools = [pool_of(step_time=step_time, **rules)]

    assert_equal_to_single_steps(pools, demand_of(rows), ClosedLoop(users=users, num_requests=num_requests))


@settings(max_examples=100, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.integers(1, 12), st.sampled_from(["least_loaded", "round_robin"]))
def test_jumps_equal_single_steps_with_several_replicas_of_several_experts(rows, rules, step_time, users, rule):
    pools = [pool_of(3, step_time, "math", **rules), pool_of(2, step_time, "code", **rules)]
    load = ClosedLoop(users=users, num_requests=users * 4, ramp_s=0.31)
    gateway = GatewayModel(service_s=3.17e-4, latency_s=1.3e-3, rule=rule)

    assert_equal_to_single_steps(pools, demand_of(rows, 2), load, gateway)


@settings(max_examples=100, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.floats(0.1, 1.9))
def test_jumps_equal_single_steps_in_an_open_loop(rows, rules, step_time, spread_s):
    pools = [pool_of(2, step_time, **rules)]
    due_s = np.sort([row[3] / 1e6 * spread_s for row in rows]) + 1e-7 * np.arange(len(rows))

    assert_equal_to_single_steps(pools, demand_of(rows), OpenLoop(due_s=due_s))
