from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from erhpc.config import ArchitectureConfig
from erhpc.errors import ConfigError
from erhpc.plan.gpus import GPUS
from erhpc.twin.hardware import load_constants
from erhpc.twin.step_time import Batch, DecodeLine, DecodeLines, Roofline

LLAMA3_8B = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)
LLAMA3_70B = ArchitectureConfig(80, 8192, 28672, 64, 8, 128256)


def roofline(architecture=LLAMA3_8B, *, quantization=None, tensor_parallel=1, gpu="a100_80", **more):
    more = {"dtype": "bfloat16", **more}
    return Roofline(architecture, quantization=quantization, tensor_parallel=tensor_parallel, gpu=gpu, **more)


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


@pytest.mark.parametrize("profile", ["vllm-v0", "vllm-v1-async"])
@pytest.mark.parametrize("num_seqs", [1, 7, 64, 256])
def test_the_closed_form_of_a_decode_run_is_the_sum_of_its_steps(profile, num_seqs):
    model = roofline(profile=profile, tensor_parallel=2)
    lines = model.decode_lines(num_seqs)
    context = num_seqs * 300
    steps_s = [
        model.step_s(Batch(num_seqs, context + n * num_seqs, num_logit_rows=num_seqs)) for n in range(500)
    ]  # fmt: skip

    assert lines.step_s(context) == pytest.approx(steps_s[0])
    for count in (0, 1, 2, 499, 500):
        assert lines.run_s(context, count) == pytest.approx(sum(steps_s[:count]))


def test_a_decode_run_is_right_on_both_sides_of_the_kink_where_the_gpu_overtakes_the_host():
    lines = DecodeLines(10, gpu=DecodeLine(1.0, 0.001), host=DecodeLine(1.5, 0.0))
    steps_s = [lines.step_s(10 * n) for n in range(200)]

    assert steps_s[0] == 1.5
    assert steps_s[-1] > 2
    assert lines.run_s(0, 200) == pytest.approx(sum(steps_s))
    assert lines.run_s(700, 30) == pytest.approx(sum(lines.step_s(700 + 10 * n) for n in range(30)))


@pytest.mark.parametrize("within_s", [-1.0, 0.0, 0.01, 0.5, 3.0, 60.0])
def test_as_many_steps_are_counted_as_end_in_time(within_s):
    lines = roofline().decode_lines(48)
    count = lines.count_steps(48 * 200, within_s)

    assert lines.run_s(48 * 200, count) <= max(within_s, 0.0)
    assert lines.run_s(48 * 200, count + 1) > within_s


def test_where_gpu_and_host_overlap_the_longer_of_both_counts_else_their_sum():
    overlapping, one_by_one = roofline(profile="vllm-v1-async"), roofline(profile="vllm-v1-sync")

    assert overlapping.step_s(decode(64)) < one_by_one.step_s(decode(64))
    gpu = overlapping.decode_lines(64).gpu.at_s(64 * 400)
    assert overlapping.step_s(decode(64)) == pytest.approx(gpu)
    assert one_by_one.step_s(decode(64)) > gpu + 0.5e-3


def test_without_cuda_graphs_the_host_bounds_small_steps():
    graphs, eager = roofline(kernel="int8"), roofline(kernel="int8", is_eager=True)

    assert eager.step_s(decode(1)) > 2 * graphs.step_s(decode(1))
    assert eager.step_s(prefill(8192)) == pytest.approx(graphs.step_s(prefill(8192)))


def test_collectives_outside_cuda_graphs_cost_more():
    model = roofline(LLAMA3_70B, tensor_parallel=8, profile="vllm-v1-sync")
    eager = Batch(num_prefill_seqs=1, num_prefill_tokens=8, prefill_attention=32, num_logit_rows=1)
    graph = Batch(num_decode_seqs=8, num_logit_rows=8)

    assert model.step_s(eager) - model.step_s(graph) > 160 * 0.9 * (44e-6 - 6.5e-6)


def test_an_all_reduce_never_gets_shorter_with_its_message():
    link = load_constants("h100_80", quantization=None).gpu.all_reduce[8]
    times_s = [link.time_s(1024 * 2**power) for power in range(18)]

    assert times_s == sorted(times_s)
    assert link.time_s(64 * 2**20) < 64 * 2**20 / link.large.bytes_per_s


def test_legacy_four_bit_kernels_are_slower_than_marlin_and_lose_to_16_bits_in_large_batches():
    marlin, awq, gptq = (roofline(kernel=kernel) for kernel in ("marlin", "awq_legacy", "gptq_legacy"))

    for legacy in (awq, gptq):
        assert marlin.step_s(decode(1)) < legacy.step_s(decode(1)) < roofline().step_s(decode(1))
        assert legacy.step_s(decode(128)) > 1.2 * roofline().step_s(decode(128))


def test_a_legacy_kernel_unpacks_again_for_every_tile_of_rows():
    eight, nine = (roofline(kernel="gptq_legacy").step_s(decode(count)) for count in (8, 9))
    rows_s = roofline(kernel="gptq_legacy").step_s(decode(8)) - roofline(kernel="gptq_legacy").step_s(decode(7))

    # 9 instructions per 8 of 6.98e9 weights for the second pass, as many for the ninth row, at 78 / 4 T per second.
    assert nine - eight - rows_s == pytest.approx(9 / 8 * 6.98e9 / 19.5e12, rel=0.02)


def test_steps_of_many_streams_are_no_shorter_than_the_api_server_needs_for_their_pieces():
    free, streamed = (roofline(LLAMA3_8B, tensor_parallel=8, stream_interval=interval) for interval in (0, 1))
    frame_s = load_constants("a100_80", quantization=None).profile.frame_s

    assert streamed.step_s(decode(256)) == pytest.approx(256 * frame_s)
    assert streamed.step_s(decode(256)) > 1.2 * free.step_s(decode(256))
    assert streamed.send_s(256) == pytest.approx(256 * frame_s)
    # Up to 128 sequences, tokens that it is late with leave as one piece.
    assert streamed.step_s(decode(128)) == free.step_s(decode(128))
    assert streamed.send_s(128) == free.send_s(256) == 0


@pytest.mark.parametrize("relief", [{"stream_interval": 8}, {"stream_interval": 1, "api_servers": 4}])
def test_longer_pieces_and_more_processes_relieve_the_api_server(relief):
    free, relieved = roofline(tensor_parallel=8), roofline(tensor_parallel=8, **relief)

    assert relieved.step_s(decode(256)) == free.step_s(decode(256))


@pytest.mark.parametrize("profile", ["vllm-v0", "vllm-v1-async", "vllm-v1-sync"])
@pytest.mark.parametrize("num_seqs", [128, 300, 512])
def test_the_closed_form_of_streamed_decodes_is_the_sum_of_their_steps(profile, num_seqs):
    model = roofline(profile=profile, tensor_parallel=4, gpu="h200_141", stream_interval=1)
    context = num_seqs * 10
    steps_s = [model.step_s(Batch(num_seqs, context + n * num_seqs, num_logit_rows=num_seqs)) for n in range(4000)]

    lines = model.decode_lines(num_seqs)

    for count in (1, 700, 4000):
        assert lines.run_s(context, count) == pytest.approx(sum(steps_s[:count]))


def test_first_tokens_are_pieces_of_their_own_however_long_the_others_are():
    model = roofline(tensor_parallel=8, stream_interval=64)
    tiny = Batch(200, 200, 200, 200, 100.0, 400)
    frame_s = load_constants("a100_80", quantization=None).profile.frame_s

    assert model.step_s(tiny) == pytest.approx(200 * frame_s + 200 / 64 * frame_s)


def test_an_fp8_cache_is_read_in_half_the_time():
    half, full = roofline(kv_element_bytes=1), roofline()

    assert half.decode_lines(8).gpu.per_context_token_s == pytest.approx(
        full.decode_lines(8).gpu.per_context_token_s / 2
    )


def test_constants_of_one_s_own_take_the_place_of_the_shipped_ones():
    shipped = load_constants("a100_80", quantization=None)
    slow_host = replace(shipped, profile=replace(shipped.profile, step_s=0.1))

    assert roofline(constants=slow_host).step_s(decode(1)) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("tensor_parallel", [3, 64, 0])
def test_gpus_that_do_not_divide_the_heads_are_an_error_that_lists_what_does(tensor_parallel):
    with pytest.raises(ConfigError, match=r"tensor_parallel=\d+.*Allowed: (1, 2, 4|at least 1)"):
        roofline(tensor_parallel=tensor_parallel)


@pytest.mark.parametrize("value", [None, nan, 0, 2.5])
def test_a_shape_with_a_field_missing_is_an_error_that_names_it(value):
    with pytest.raises(ConfigError, match=r"architecture\.intermediate_size"):
        roofline(replace(LLAMA3_8B, intermediate_size=value))


@pytest.mark.parametrize(
    "change", [{"num_decode_seqs": -1}, {"prefill_attention": nan}, {"num_logit_rows": float("inf")}]
)
def test_impossible_counts_are_no_batch(change):
    with pytest.raises(ValueError, match="is no step"):
        Batch(**change)


@pytest.mark.parametrize("context_tokens", [nan, -1.0, float("inf")])
def test_no_closed_form_answers_for_an_impossible_context(context_tokens):
    lines = roofline().decode_lines(4)

    for ask in (lines.step_s, lambda context: lines.run_s(context, 3), lambda context: lines.count_steps(context, 1.0)):
        with pytest.raises(ValueError, match="context_tokens"):
            ask(context_tokens)
    with pytest.raises(ValueError, match="within nan s"):
        lines.count_steps(100, nan)


def test_constants_that_are_no_numbers_are_refused():
    shipped = load_constants("a100_80", quantization=None)

    with pytest.raises(ConfigError, match=r"EngineProfile\.step_s=nan"):
        replace(shipped, profile=replace(shipped.profile, step_s=nan))


def test_a_gpu_whose_file_has_no_links_serves_one_gpu_only():
    shipped = load_constants("a100_80", quantization=None)
    lonely = replace(shipped, gpu=replace(shipped.gpu, all_reduce={}))

    assert roofline(constants=lonely).step_s(decode(1)) > 0
    with pytest.raises(ConfigError, match="all_reduce table"):
        roofline(constants=lonely, tensor_parallel=2)
