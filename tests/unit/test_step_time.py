from __future__ import annotations

import pytest

from erhpc.config import ArchitectureConfig
from erhpc.errors import ConfigError
from erhpc.plan.gpus import GPUS
from erhpc.twin.step_time import Batch, Roofline

LLAMA3_8B = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)
LLAMA3_70B = ArchitectureConfig(80, 8192, 28672, 64, 8, 128256)


def roofline(architecture=LLAMA3_8B, *, quantization=None, tensor_parallel=1, gpu="a100_80", dtype="bfloat16"):
    return Roofline(architecture, dtype=dtype, quantization=quantization, tensor_parallel=tensor_parallel, gpu=gpu)


def decode(num_seqs, context_tokens=400):
    return Batch(num_decode_seqs=num_seqs, decode_context_tokens=num_seqs * context_tokens, num_logit_rows=num_seqs)


def prefill(num_tokens):
    return Batch(
        num_prefill_seqs=1, num_prefill_tokens=num_tokens, prefill_attention=num_tokens**2 / 2, num_logit_rows=1
    )


@pytest.mark.parametrize(
    ("model", "expected_ms"),
    [
        (roofline(), 10.7),
        (roofline(LLAMA3_70B, tensor_parallel=8), 15.1),
        (roofline(LLAMA3_70B, tensor_parallel=4), 25.6),
        (roofline(LLAMA3_70B, tensor_parallel=2, quantization="awq"), 18.9),
    ],
)
def test_a_single_stream_decodes_at_the_rate_the_weights_can_be_read(model, expected_ms):
    """Expected: tokens per second of one user in the prediction table of the project's notes, +- 5 %."""
    assert 1e3 * model.step_s(decode(1)) == pytest.approx(expected_ms, rel=0.05)


@pytest.mark.parametrize("gpu", GPUS)
def test_a_decode_step_grows_with_sequences_and_with_context(gpu):
    model = roofline(gpu=gpu)

    assert model.step_s(decode(1)) < model.step_s(decode(64)) < model.step_s(decode(256))
    assert model.step_s(decode(64, 400)) < model.step_s(decode(64, 4000))


def test_a_batch_costs_far_less_than_its_sequences_one_by_one():
    model = roofline()

    assert model.step_s(decode(64)) < 64 * model.step_s(decode(1)) / 20


def test_a_long_prefill_runs_at_the_compute_rate_of_the_gpu():
    flops_per_token = 2 * 6.98e9
    least_s = 2048 * flops_per_token / 312e12

    assert least_s < roofline().step_s(prefill(2048)) < 2 * least_s


def test_four_bit_weights_speed_up_small_batches_but_not_prefills():
    plain, awq = roofline(), roofline(quantization="awq")

    assert awq.step_s(decode(1)) < 0.6 * plain.step_s(decode(1))
    assert awq.step_s(prefill(2048)) > plain.step_s(prefill(2048))


def test_fp8_computes_faster_only_on_gpus_with_fp8_units():
    for gpu, is_faster in (("h100_80", True), ("a100_80", False)):
        plain, fp8 = roofline(gpu=gpu), roofline(gpu=gpu, quantization="fp8")
        assert (fp8.step_s(prefill(4096)) < 0.9 * plain.step_s(prefill(4096))) is is_faster


def test_tensor_parallelism_helps_less_than_its_number_of_gpus():
    one, eight = roofline().step_s(decode(1)), roofline(tensor_parallel=8).step_s(decode(1))

    assert one / 8 < eight < one


def test_an_empty_model_still_costs_the_host_its_time():
    tiny = ArchitectureConfig(1, 64, 128, 4, 4, 4096)

    assert roofline(tiny).step_s(decode(1)) >= 0.7e-3


def test_a_gpu_without_timing_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"cluster\.gpu='v100'.*a100_80"):
        roofline(gpu="v100")
