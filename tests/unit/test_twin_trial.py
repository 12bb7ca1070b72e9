"""A trial repeats a published load on a step time; its shortcuts agree with stepping through one by one."""

from __future__ import annotations

from random import Random

import pytest

from erhpc.errors import ConfigError
from erhpc.twin.step_time import Batch, Roofline
from erhpc.twin.trial import (
    Engine,
    draw_arrivals_s,
    draw_chat_lengths,
    run_at_maximum,
    run_requests,
    run_static_batch,
)
from tests.unit.test_step_time import LLAMA3_8B


def engine(profile="vllm-v0", *, max_num_seqs=256, kv_capacity_tokens=200_000):
    step_time = Roofline(
        LLAMA3_8B, dtype="bfloat16", quantization=None, tensor_parallel=1, gpu="a100_80", profile=profile
    )
    return Engine(
        step_time=step_time,
        mixes_prefill=step_time.constants.profile.mixes_prefill,
        request_s=step_time.constants.profile.request_s,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=4096,
        kv_capacity_tokens=kv_capacity_tokens,
    )


def test_a_static_batch_is_its_prefills_and_its_decodes_step_by_step():
    static = engine()
    prefill = Batch(0, 0, 16, 4096, 16 * 256**2 / 2, 16)
    decodes_s = [static.step_time.step_s(Batch(16, 16 * (257 + n), 0, 0, 0.0, 16)) for n in range(127)]

    outcome = run_static_batch(static, 16, 256, 128)

    assert outcome.ttft_s == pytest.approx(static.step_time.step_s(prefill))
    assert outcome.tpot_s == pytest.approx(sum(decodes_s) / 127)
    assert outcome.out_tok_s == pytest.approx(16 * 128 / (outcome.ttft_s + sum(decodes_s)))


@pytest.mark.parametrize("profile", ["vllm-v0", "vllm-v1-async"])
def test_equal_requests_that_arrive_together_are_a_static_batch(profile):
    trial = engine(profile)

    together = run_requests(trial, [(256, 128)] * 16, arrivals_s=[0.0] * 16)

    assert together.out_tok_s == pytest.approx(run_static_batch(trial, 16, 256, 128).out_tok_s, rel=0.01)


def test_a_batch_that_does_not_fit_the_cache_comes_in_waves():
    ample, tight = (
        run_static_batch(engine(), 64, 256, 128),
        run_static_batch(engine(kv_capacity_tokens=8000), 64, 256, 128),
    )

    assert tight.out_tok_s < 0.7 * ample.out_tok_s


def test_at_maximum_throughput_grows_with_the_sequences_that_fit():
    few, many = (run_at_maximum(engine(kv_capacity_tokens=tokens), 512, 512).out_tok_s for tokens in (20_000, 200_000))

    assert few < many < 10 * few


def test_one_user_waits_for_nobody():
    alone = run_requests(engine("vllm-v1-async"), [(256, 50)] * 20, users=1)
    batch = Batch(0, 0, 1, 256, 256**2 / 2, 1)

    assert alone.ttft_s == pytest.approx(engine("vllm-v1-async").step_time.step_s(batch) + 0.010)


def test_where_prompts_go_first_decodes_stand_still_for_them():
    rng = Random(1)
    lengths = draw_chat_lengths(200, rng)
    arrivals_s = draw_arrivals_s(200, 10.0, rng)

    first, mixed = (run_requests(engine(name), lengths, arrivals_s=arrivals_s) for name in ("vllm-v0", "vllm-v1-sync"))

    assert first.tpot_s > 1.15 * mixed.tpot_s


def test_a_rate_beyond_what_is_served_makes_a_queue():
    rng = Random(1)
    lengths = draw_chat_lengths(200, rng)

    calm, busy = (
        run_requests(
            engine("vllm-v1-async", max_num_seqs=32), lengths, arrivals_s=draw_arrivals_s(200, rate, Random(2))
        )
        for rate in (2.0, 50.0)
    )

    assert calm.ttft_s < 0.1
    assert busy.ttft_s > 1.0


def test_lengths_and_arrivals_have_the_stated_means():
    rng = Random(7)
    lengths = draw_chat_lengths(20_000, rng)

    assert sum(inputs for inputs, _ in lengths) / 20_000 == pytest.approx(256, rel=0.02)
    assert sum(outputs for _, outputs in lengths) / 20_000 == pytest.approx(347, rel=0.02)
    assert draw_arrivals_s(20_000, 5.0, rng)[-1] == pytest.approx(4000, rel=0.03)


@pytest.mark.parametrize(
    "run",
    [
        lambda trial: run_static_batch(trial, 0, 256, 128),
        lambda trial: run_at_maximum(trial, 256, 0),
        lambda trial: run_requests(trial, []),
        lambda trial: run_requests(trial, [(256, 0)]),
        lambda trial: run_requests(trial, [(256, 9)] * 2, arrivals_s=[0.0]),
        lambda trial: run_requests(trial, [(256, 9)] * 2, arrivals_s=[1.0, 0.0]),
        lambda trial: draw_arrivals_s(3, float("nan"), Random(1)),
    ],
)
def test_a_load_without_requests_tokens_or_order_is_an_error_that_says_so(run):
    with pytest.raises(ConfigError, match=r"Allowed: |one per request"):
        run(engine())
