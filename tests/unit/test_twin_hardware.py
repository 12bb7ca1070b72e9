"""The constants of the step time are checked data: a new GPU is a file, and each constant has a source and a range."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from erhpc.errors import ConfigError
from erhpc.plan.gpus import GIB, GPU_FILES, GPUS, find_gpu
from erhpc.twin.evidence import Evidence, read_evidence
from erhpc.twin.hardware import draw_constants, known_kernels, known_profiles, load_constants
from erhpc.twin.step_time import Batch, Roofline
from tests.unit.test_step_time import LLAMA3_8B

DECODE = Batch(num_decode_seqs=1, decode_context_tokens=100, num_logit_rows=1)


def write_gpu(folder: Path, *changes: tuple[str, str]) -> str:
    """A copy of the A100's file with changes; its path."""
    text = (GPU_FILES / "a100_80.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "my_card.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("profile", known_profiles())
def test_every_shipped_gpu_works_with_every_engine_and_kernel(gpu, profile):
    for kernel in known_kernels():
        constants = load_constants(gpu, quantization=None, kernel=kernel, profile=profile)

        assert constants.gpu.peak_flops > 0
        assert constants.profile.name == profile
        assert constants.kernel.name in (kernel, "int8_weights")


def test_a_gpu_of_one_s_own_is_a_file_that_plan_and_twin_both_read(tmp_path):
    mine = write_gpu(tmp_path, ("total_gib = 79.1", "total_gib = 24"), ("2.039e12", "0.6e12"))

    assert find_gpu(mine).memory_bytes == 24 * GIB
    own, shipped = (
        Roofline(LLAMA3_8B, dtype="bfloat16", quantization=None, tensor_parallel=1, gpu=gpu)
        for gpu in (mine, "a100_80")
    )
    assert own.step_s(DECODE) > 2.5 * shipped.step_s(DECODE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("total_gib = 79.1", "", r"memory\.total_gib=None.*Give the GiB"),
        ("total_gib = 79.1", "total_gib = nan", r"memory\.total_gib=nan"),
        ("[timing.kv_share]", "[timing.kv_shares]", r"timing\.kv_shares is not known"),
        ("value = 0.72\n", "value = 1.72\n", r"timing\.kv_share .*low <= value <= high"),
        ("value = 0.72\n", "value = nan\n", r"timing\.kv_share has value, low, high = nan"),
        ('source = "NVIDIA A100 data sheet (SXM)"', 'source = ""', r"no source"),
        ("value = 2.039e12\nlow = 2.039e12", "value = 0\nlow = 0", r"timing\.bandwidth_bytes_per_s is 0"),
        ("bytes_per_s = 1.04e11", "bytes_per_s = -1", r"all_reduce\.2\.small has -1"),
        ("label =", "label", r"is no readable GPU file"),
    ],
)  # fmt: skip
def test_a_wrong_gpu_file_is_an_error_that_names_the_key(tmp_path, old, new, message):
    mine = write_gpu(tmp_path, (old, new))

    with pytest.raises(ConfigError, match=message):
        load_constants(mine, quantization=None)


def test_a_gpu_file_that_is_not_there_is_an_error_that_says_what_to_copy(tmp_path):
    with pytest.raises(ConfigError, match=r"no readable GPU file .*Copy one of"):
        find_gpu(str(tmp_path / "none.toml"))


def test_fp8_weights_on_a_gpu_without_fp8_units_run_in_the_weight_only_kernel():
    on = {gpu: load_constants(gpu, quantization="fp8").kernel.name for gpu in ("a100_80", "h100_80")}

    assert on == {"a100_80": "int8_weights", "h100_80": "fp8"}


@pytest.mark.parametrize(
    "names", [{"kernel": "exl2"}, {"profile": "sglang"}, {"quantization": "nf4"}], ids=["kernel", "profile", "format"]
)
def test_an_unknown_kernel_engine_or_format_is_an_error_that_lists_the_known_ones(names):
    with pytest.raises(ConfigError, match=r"Allowed: .*(marlin|vllm-v0|awq)"):
        load_constants("a100_80", **{"quantization": None, **names})


def test_a_constant_lies_in_its_range_nine_times_in_ten():
    evidence = Evidence(10.0, 8.0, 15.0, "test")
    rng = Random(1)
    drawn = [evidence.at(rng.gauss(0, 1)) for _ in range(4000)]

    assert sum(8.0 <= value <= 15.0 for value in drawn) / len(drawn) == pytest.approx(0.9, abs=0.02)
    assert sum(value < 10.0 for value in drawn) / len(drawn) == pytest.approx(0.5, abs=0.03)


def test_sets_of_constants_follow_the_seed_and_cover_each_range_evenly():
    sets, again, other = (draw_constants(Random(seed), 9, "h100_80", quantization=None) for seed in (3, 3, 4))
    shares = sorted(one.gpu.kv_share for one in sets)

    assert sets == again != other
    assert len(set(shares)) == 9
    assert shares[4] == pytest.approx(load_constants("h100_80", quantization=None).gpu.kv_share)
    assert {one.gpu.peak_flops for one in sets} == {989e12}


def test_what_is_known_is_not_drawn_and_nothing_falls_below_zero():
    assert Evidence(5.0, 5.0, 5.0, "data sheet").at(3.0) == 5.0
    assert Evidence(1.0, 0.0, 2.0, "judged").at(-4.0) == 0.0


@pytest.mark.parametrize("raw", [None, {}, {"value": True, "low": 0, "high": 2, "source": "x"}])
def test_a_constant_without_numbers_is_an_error(raw):
    with pytest.raises(ConfigError, match="speed"):
        read_evidence("speed", raw)
