"""The engine of an emulated expert, in virtual time: its tokens come when the simulation says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from erhpc.config import ArchitectureConfig, ExpertConfig, FaultConfig
from erhpc.experts.emulated_engine import Answer, Engine, sleep_until
from erhpc.experts.emulated_faults import Faults
from erhpc.twin.demand import ClosedLoop, Demand, GatewayModel, ReplicaModel
from erhpc.twin.scheduler import Request
from erhpc.twin.serving import describe_serving
from erhpc.twin.simulation import simulate
from tests.fakes.virtual_loop import run_at_once

LLAMA3_70B = ArchitectureConfig(80, 8192, 28672, 64, 8, 128256)
AWQ = ExpertConfig("awq", LLAMA3_70B, dtype="float16", quantization="awq", tensor_parallel=2, max_num_seqs=64)


def serve(kv_capacity_tokens=200_000, profile="vllm-v1-async", **changes):
    return describe_serving(
        replace(AWQ, **changes), gpu="a100_80", profile=profile, kv_capacity_tokens=kv_capacity_tokens
    )


def draw_lengths(num_requests, seed=1):
    random = Random(seed)
    return [(random.randint(20, 600), random.randint(1, 120)) for _ in range(num_requests)]


def emulate(serving, lengths, users, *, requests_per_user, faults=(), speedup=1.0):
    """(sent, first token, last token) of every request by (user, sequence), and the engine."""
    times = {}

    async def work(clock):
        engine = Engine(serving, Faults(faults, "x-0", Random(0)), speedup=speedup, clock=clock)
        engine.loaded_at_s = clock()
        steps = asyncio.create_task(engine.run())

        async def live(user):
            await sleep_until(user / 1000, clock)
            for sequence in range(requests_per_user):
                prompt, tokens = lengths[(sequence * users + user) % len(lengths)]
                answer = Answer(Request(f"{user}-{sequence}", prompt, tokens), clock(), tokens, "length")
                await sleep_until(answer.arrived_s + serving.request_s / speedup, clock)
                engine.submit(answer)
                await answer.done.wait()
                times[user, sequence] = (answer.arrived_s, answer.first_s, answer.last_s)

        await asyncio.gather(*(live(user) for user in range(users)))
        steps.cancel()
        return engine

    return times, run_at_once(work)


def predict(serving, lengths, users, num_requests):
    model = ReplicaModel(replica="x-0", expert="x", limits=serving.limits, step_time=serving.step_time)
    rows = [lengths[index % len(lengths)] for index in range(num_requests)]
    prompts, answers = zip(*rows, strict=True)
    demand = Demand(prompt_tokens=prompts, answer_tokens=answers)
    loop = ClosedLoop(users=users, num_requests=len(rows), ramp_s=users / 1000)
    found = simulate([[model]], demand, loop, GatewayModel(latency_s=serving.request_s))
    columns = (found.user, found.sequence, found.sent_s, found.first_token_s, found.last_token_s)
    return {(user, sequence): times for user, sequence, *times in zip(*map(list, columns), strict=True)}


@pytest.mark.parametrize("profile", ["vllm-v1-async", "vllm-v1-sync"])
@pytest.mark.parametrize("users", [1, 10, 100])
def test_tokens_come_when_the_simulation_says(profile, users):
    serving = serve(profile=profile)
    lengths = draw_lengths(700)

    times, _ = emulate(serving, lengths, users, requests_per_user=3)
    predicted = predict(serving, lengths, users, num_requests=9 * users)

    # As long as nobody has sent a fourth request, which only the simulation knows.
    end_s = min(predicted[user, 3][0] for user in range(users))
    early = [key for key, (*_, last_s) in times.items() if last_s < end_s]
    assert len(early) >= users / 2
    assert max(abs(a - b) for key in early for a, b in zip(times[key], predicted[key], strict=True)) < 2e-3


def test_a_full_kv_cache_preempts_as_in_the_simulation():
    serving = serve(kv_capacity_tokens=9_000)
    lengths = draw_lengths(200)

    times, engine = emulate(serving, lengths, 40, requests_per_user=1)
    predicted = predict(serving, lengths, 40, num_requests=40)

    assert engine.scheduler.num_preemptions > 0
    assert times.keys() == predicted.keys()
    assert all(times[key] == pytest.approx(predicted[key], abs=2e-3) for key in times)


def test_time_that_runs_faster_divides_every_duration():
    serving = serve()

    usual, _ = emulate(serving, [(200, 50)], 1, requests_per_user=2)
    fast, _ = emulate(serving, [(200, 50)], 1, requests_per_user=2, speedup=10)

    for key, (sent_s, first_s, last_s) in usual.items():
        assert fast[key][1] - fast[key][0] == pytest.approx((first_s - sent_s) / 10, abs=1e-3)
        assert fast[key][2] - fast[key][0] == pytest.approx((last_s - sent_s) / 10, abs=1e-3)


def test_an_engine_that_hangs_goes_on_when_the_fault_is_over():
    serving = serve()
    hang = FaultConfig(kind="hang", after_s=0.5, duration_s=20)

    ((_, _, usual_s),) = emulate(serving, [(100, 60)], 1, requests_per_user=1)[0].values()
    ((_, first_s, last_s),) = emulate(serving, [(100, 60)], 1, requests_per_user=1, faults=[hang])[0].values()

    assert first_s < 0.5 < usual_s < 20.5
    assert 20.5 < last_s < 20.5 + usual_s


def test_a_slow_engine_takes_so_many_times_as_long_while_it_is_slow():
    serving = serve()
    slow = FaultConfig(kind="slow", factor=3)

    ((sent_s, _, usual_s),) = emulate(serving, [(100, 60)], 1, requests_per_user=1)[0].values()
    ((_, _, slow_s),) = emulate(serving, [(100, 60)], 1, requests_per_user=1, faults=[slow])[0].values()

    outside_s = sent_s + serving.request_s
    assert slow_s - outside_s == pytest.approx(3 * (usual_s - outside_s), rel=1e-3)


def test_metrics_count_every_token_once():
    lengths = draw_lengths(30)

    _, engine = emulate(serve(), lengths, 10, requests_per_user=3)
    text = engine.metrics.to_text("m", engine.scheduler, has_prefix_cache=False)
    found = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}

    labels = '{engine="0",model_name="m"}'
    num_tokens = sum(tokens for _, tokens in lengths)
    assert found[f"vllm:prompt_tokens_total{labels}"] == sum(prompt for prompt, _ in lengths)
    assert found[f"vllm:generation_tokens_total{labels}"] == num_tokens
    assert found[f"vllm:time_to_first_token_seconds_count{labels}"] == 30
    assert found[f"vllm:inter_token_latency_seconds_count{labels}"] == num_tokens - 30
    assert found[f"vllm:request_generation_tokens_sum{labels}"] == num_tokens
    assert found['vllm:request_success_total{engine="0",finished_reason="length",model_name="m"}'] == 30
    whole = found[f"vllm:e2e_request_latency_seconds_sum{labels}"]
    parts = ("queue", "prefill", "decode")
    known = sum(found[f"vllm:request_{part}_time_seconds_sum{labels}"] for part in parts)
    assert whole == pytest.approx(known + 30 * serve().request_s, rel=1e-3)
