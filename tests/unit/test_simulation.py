from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from erhpc.config import ArchitectureConfig, RouterConfig
from erhpc.errors import ConfigError, InputError
from erhpc.routing.rules import make_rule
from erhpc.twin.balancing import make_balancer
from erhpc.twin.decode_times import DecodeTimes
from erhpc.twin.demand import ClosedLoop, Demand, GatewayModel, OpenLoop, ReplicaModel
from erhpc.twin.scheduler import Limits, count_kv_tokens
from erhpc.twin.simulation import simulate
from erhpc.twin.step_time import Batch, Roofline
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


def require(holds):
    assert holds


def assert_equal_to_single_steps(pools, demand, load, gateway=NO_GATEWAY, *, see_to=require):
    predicted = simulate(pools, demand, load, gateway)
    answered, num_preemptions, is_tied = simulate_stepwise(pools, demand, load, gateway)
    see_to(not is_tied)

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
# With 0.18 ms per sequence the host is overtaken by the GPU in the middle of many decodes.
STEP_TIMES = st.sampled_from([PlainStepTime(), PlainStepTime(1.8e-4), PlainStepTime(3e-4), BendingStepTime()])
# Requests to an only replica are told ahead.
SIZES = st.sampled_from([(3, 2), (1, 1), (1, 2)])
ROWS = st.lists(
    st.tuples(st.integers(1, 100), st.integers(1, 44), st.sampled_from([0, 0, 33, 200]), st.integers(0, 10**6)),
    min_size=1,
    max_size=14,
)


OTHERS = [(1, 14, 0, 314), (1, 14, 0, 317)]
"""The first makes a user ask again just as a step ends elsewhere."""


def demand_of(rows, pools=1):
    return Demand(
        prompt_tokens=[row[0] for row in rows],
        answer_tokens=[row[1] for row in rows],
        cached_tokens=[row[2] for row in rows],
        pool=[row[3] % pools for row in rows],
        think_s=[(row[3] % 7919) / 1e5 if row[3] % 3 else 0.0 for row in rows],
    )


@settings(max_examples=60, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.integers(1, 12), st.integers(1, 60))
def test_jumps_equal_single_steps_in_a_closed_loop_on_one_replica(rows, rules, step_time, users, num_requests):
    pools = [pool_of(step_time=step_time, **rules)]

    assert_equal_to_single_steps(pools, demand_of(rows), ClosedLoop(users=users, num_requests=num_requests))


def test_the_steps_tell_when_a_request_arrives_as_a_step_ends():
    rules = {"max_num_seqs": 2, "num_gpu_blocks": 11, "max_model_len": 144}
    step_time = PlainStepTime(3e-4)
    pools = [pool_of(3, step_time, "math", **rules), pool_of(2, step_time, "code", **rules)]
    gateway = GatewayModel(service_s=3.17e-4, latency_s=1.3e-3)
    load = ClosedLoop(users=9, num_requests=36, ramp_s=0.31)

    ties = [simulate_stepwise(pools, demand_of([(74, 6, 0, 1), row], 2), load, gateway)[2] for row in OTHERS]

    assert ties == [True, False]


@settings(max_examples=40, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.integers(1, 12), SIZES, st.sampled_from(["least_loaded", "round_robin"]))
def test_jumps_equal_single_steps_with_some_replicas_of_several_experts(rows, rules, step_time, users, sizes, rule):
    pools = [pool_of(size, step_time, name, **rules) for size, name in zip(sizes, ("math", "code"), strict=True)]
    load = ClosedLoop(users=users, num_requests=users * 4, ramp_s=0.31)
    gateway = GatewayModel(service_s=3.17e-4, latency_s=1.3e-3, rule=rule)

    assert_equal_to_single_steps(pools, demand_of(rows, 2), load, gateway, see_to=assume)


@settings(max_examples=40, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.floats(0.1, 1.9))
def test_jumps_equal_single_steps_in_an_open_loop(rows, rules, step_time, spread_s):
    pools = [pool_of(2, step_time, **rules)]
    due_s = np.sort([row[3] / 1e6 * spread_s for row in rows]) + 1e-7 * np.arange(len(rows))

    assert_equal_to_single_steps(pools, demand_of(rows), OpenLoop(due_s=due_s))


def assert_beginning_of(predicted, longer):
    size = len(predicted.sent_s)
    for name in ("row", "user", "sequence", "replica", "sent_s", "first_token_s", "last_token_s", "tokens_out"):
        assert getattr(predicted, name).tolist() == getattr(longer, name)[:size].tolist()


@settings(max_examples=25, deadline=None)
@given(ROWS, RULES, STEP_TIMES, st.integers(1, 12), st.integers(1, 40))
def test_users_who_keep_the_load_up_are_seen_as_in_the_middle_of_a_longer_level(
    rows, rules, step_time, users, num_requests
):
    pools, demand = [pool_of(2, step_time, **rules)], demand_of(rows)

    predicted = simulate(pools, demand, ClosedLoop(users=users, num_requests=num_requests, keeps_load=True))

    # As many requests again of each user as can end while a counted one does.
    longer = simulate(pools, demand, ClosedLoop(users=users, num_requests=num_requests + 1000))
    assert predicted.sent_s.size == num_requests
    assert_beginning_of(predicted, longer)


def test_arrivals_go_on_until_the_last_that_counts_is_answered():
    demand, due_s = demand_of([(60, 40, 0, 0)] * 40), np.linspace(0.0, 0.4, 40)

    predicted = simulate([pool_of()], demand, OpenLoop(due_s=due_s, num_counted=10))

    assert predicted.sent_s.size == 10
    assert_beginning_of(predicted, simulate([pool_of()], demand, OpenLoop(due_s=due_s)))


def test_the_last_requests_of_users_who_keep_the_load_up_take_as_long_as_the_others():
    demand = Demand(prompt_tokens=[16] * 8, answer_tokens=[40] * 8)

    fading, kept = (
        simulate([pool_of()], demand, ClosedLoop(users=8, num_requests=44, ramp_s=0.2, keeps_load=keeps_load))
        for keeps_load in (False, True)
    )

    taken_s = kept.last_token_s - kept.first_token_s
    assert taken_s[-8:].mean() == pytest.approx(taken_s[12:36].mean(), rel=0.02)
    assert (fading.last_token_s - fading.first_token_s)[-1] < 0.95 * taken_s[-1]


@pytest.mark.parametrize("num_counted", [0, 3])
def test_of_an_open_loop_at_least_one_and_at_most_all_count(num_counted):
    demand = Demand(prompt_tokens=[4, 8], answer_tokens=[8, 8])

    with pytest.raises(InputError, match=f"num_counted={num_counted} of 2 requests. Allowed"):
        simulate([pool_of()], demand, OpenLoop(due_s=[0.0, 1.0], num_counted=num_counted))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("stream_interval", [1, 4])
def test_jumps_equal_single_steps_where_an_api_server_holds_answers_back(asynchronous, stream_interval):
    free, streamed = (
        Roofline(
            ArchitectureConfig(2, 256, 512, 4, 4, 4096), dtype="bfloat16", quantization=None, tensor_parallel=1,
            gpu="h200_141", stream_interval=interval,
        )
        for interval in (0, stream_interval)
    )  # fmt: skip
    rules = {"max_num_seqs": 200, "max_num_batched_tokens": 512, "num_gpu_blocks": 4000, "asynchronous": asynchronous}
    demand = demand_of([(length % 90 + 1, length % 37 + 2, 0, length) for length in range(7, 300, 7)])
    load = ClosedLoop(users=180, num_requests=400)

    predicted = assert_equal_to_single_steps([pool_of(step_time=streamed, **rules)], demand, load)

    unhindered = simulate([pool_of(step_time=free, **rules)], demand, load)
    assert predicted.last_token_s.max() > 1.2 * unhindered.last_token_s.max()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("answer_tokens", [15, 16, 17, 18, 40])
def test_jumps_equal_single_steps_where_blocks_run_out(asynchronous, answer_tokens):
    # The second is preempted in the step that needs a third block for the first; with 17 tokens its last one is in
    # flight by then.
    demand = demand_of([(16, 40, 0, 0), (16, answer_tokens, 0, 0)])
    rules = {"asynchronous": asynchronous, "num_gpu_blocks": 5, "max_model_len": 64}

    predicted = assert_equal_to_single_steps([pool_of(**rules)], demand, ClosedLoop(users=2, num_requests=2))

    assert predicted.num_preemptions == (answer_tokens > (16 if asynchronous else 17))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_lone_request_takes_its_prompt_step_and_one_step_per_further_token(asynchronous):
    step_time = PlainStepTime()
    demand = Demand(prompt_tokens=[100], answer_tokens=[40])
    pools = [pool_of(max_num_batched_tokens=512, asynchronous=asynchronous)]

    predicted = simulate(pools, demand, ClosedLoop(users=1, num_requests=1), GatewayModel(service_s=1, latency_s=2))

    decodes = [Batch(num_decode_seqs=1, decode_context_tokens=context, num_logit_rows=1) for context in range(100, 139)]
    prompt = Batch(num_prefill_seqs=1, num_prefill_tokens=100, prefill_attention=5000.0, num_logit_rows=1)
    steps_s = [step_time.step_s(batch) for batch in (prompt, *decodes)]
    np.testing.assert_allclose(predicted.token_times_s(0), 3 + np.cumsum(steps_s), rtol=1e-12)
    assert predicted.sent_s.tolist() == [0.0]


def test_the_gateway_serves_one_request_at_a_time():
    demand = Demand(prompt_tokens=[1] * 3, answer_tokens=[1] * 3)
    gateway = GatewayModel(service_s=10.0)

    predicted = simulate([pool_of()], demand, OpenLoop(due_s=[0.0, 1.0, 40.0]), gateway)

    assert np.floor(predicted.first_token_s).tolist() == [10, 20, 50]


def test_requests_go_where_the_classifier_sent_them_however_uneven():
    demand = Demand(prompt_tokens=[8] * 4, answer_tokens=[3] * 4, pool=[0, 1, 1, 1])
    pools = [pool_of(1, expert="math"), pool_of(3, expert="code")]

    predicted = simulate(pools, demand, ClosedLoop(users=4, num_requests=40))

    assert [predicted.replicas[index].replica for index in predicted.replica[:4]] == [
        "math-0", "code-0", "code-1", "code-2",
    ]  # fmt: skip
    assert np.bincount(predicted.replica).tolist() == [10, 10, 10, 10]


def test_users_think_before_they_send_again():
    demand = Demand(prompt_tokens=[8], answer_tokens=[3], think_s=[2.5])

    predicted = simulate([pool_of()], demand, ClosedLoop(users=1, num_requests=3))

    np.testing.assert_allclose(predicted.sent_s[1:], predicted.last_token_s[:-1] + 2.5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt_tokens": []}, "The demand has no request"),
        ({"prompt_tokens": [4, 300]}, "Row 1 of the demand, for expert math, of 300 . 8 tokens is longer than max_mo"),
        ({"prompt_tokens": [0, 4]}, "Row 0 of the demand, for expert math, needs at least one prompt token"),
        ({"answer_tokens": [8, float("nan")]}, "demand.answer_tokens of row 1 is nan. Allowed: whole numbers"),
        ({"prompt_tokens": [float("inf"), 8]}, "demand.prompt_tokens of row 0 is inf"),
        ({"answer_tokens": [8, 8.5]}, "demand.answer_tokens of row 1 is 8.5"),
        ({"answer_tokens": [8, 8, 8]}, "demand.answer_tokens has shape"),
        ({"pool": [0, 1]}, "Row 1 of the demand is routed to pool 1, and there are 1"),
        ({"think_s": [0.0, float("inf")]}, "demand.think_s of row 1 is inf. Allowed: seconds"),
        ({"cached_tokens": [-1, 0]}, "demand.cached_tokens of row 0 is -1"),
    ],
)
def test_a_demand_that_cannot_be_served_says_what_to_change(changes, problem):
    demand = Demand(**({"prompt_tokens": [4, 8], "answer_tokens": [8, 8]} | changes))

    with pytest.raises(InputError, match=problem):
        simulate([pool_of()], demand, ClosedLoop(users=1, num_requests=2))


@pytest.mark.parametrize("due_s", [[0.0], [1.0, 0.5], [0.0, float("nan")], [-1.0, 0.0]])
def test_arrivals_without_an_order_of_time_are_an_error(due_s):
    demand = Demand(prompt_tokens=[4, 8], answer_tokens=[8, 8])

    with pytest.raises(InputError, match=r"one time per request|in ascending order"):
        simulate([pool_of()], demand, OpenLoop(due_s=due_s))


class EndlessStepTime:
    def step_s(self, batch):
        return float("nan")


def test_a_model_that_gives_no_time_is_found_out():
    demand = Demand(prompt_tokens=[4], answer_tokens=[8])

    with pytest.raises(ValueError, match="a step of nan s"):
        simulate([pool_of(step_time=EndlessStepTime())], demand, ClosedLoop(users=1, num_requests=1))


def test_a_simulation_without_replicas_or_of_an_unknown_rule_is_an_error():
    demand, load = Demand(prompt_tokens=[4], answer_tokens=[8]), ClosedLoop(users=1, num_requests=1)

    with pytest.raises(ConfigError, match="at least one replica in each pool"):
        simulate([[]], demand, load)
    with pytest.raises(ConfigError, match="Allowed: least_loaded, round_robin"):
        simulate([pool_of(2)], demand, load, GatewayModel(rule="session"))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 3), max_size=60), st.sampled_from(["least_loaded", "round_robin"]))
def test_balancers_pick_what_the_rules_of_the_gateway_pick(size, releases, rule):
    members = [SimpleNamespace(name=str(number), in_flight=0) for number in range(size)]
    expected = make_rule(rule, members, RouterConfig(), random.Random(0))
    balancer, in_flight = make_balancer(rule, size), []

    for released in releases:
        picked = balancer.take()
        assert picked == expected.pick(range(size), None)
        members[picked].in_flight += 1
        in_flight.append(picked)
        member = in_flight[len(in_flight) // 2]
        count = min(released, in_flight.count(member))
        if count:
            balancer.release(member, count)
            members[member].in_flight -= count
            for _ in range(count):
                in_flight.remove(member)


@pytest.mark.parametrize("step_time", [PlainStepTime(), PlainStepTime(1.8e-4), PlainStepTime(3e-4)])
@pytest.mark.parametrize("num_seqs", [1, 3, 64])
def test_pieces_of_decode_times_are_the_step_times_on_both_sides_of_a_kink(step_time, num_seqs):
    times = DecodeTimes(step_time, 200_000)

    pieces = {times.find_piece(num_seqs, context) for context in range(0, 200_000, 997)}

    assert len(pieces) <= 3
    for context in (0, 1, 40_001, 199_999, *(piece.end_tokens + 1 for piece in pieces if piece.end_tokens < 199_999)):
        piece = times.find_piece(num_seqs, context)
        batch = Batch(num_decode_seqs=num_seqs, decode_context_tokens=context, num_logit_rows=num_seqs)
        assert piece.intercept_s + piece.slope_s * context == pytest.approx(step_time.step_s(batch), rel=1e-11)
