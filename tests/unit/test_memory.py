"""What fits the memory of a replica."""

from __future__ import annotations

from dataclasses import replace

import pytest

from erhpc.config import ArchitectureConfig, ExpertConfig
from erhpc.errors import ConfigError, PlacementError
from erhpc.plan.gpus import GIB
from erhpc.plan.memory import BLOCK_TOKENS, count_kv_heads, count_layer_weights, count_linear_weights, fit_memory

LLAMA3_8B = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)
EXPERT = ExpertConfig(model="8b", architecture=LLAMA3_8B)


def test_one_block_of_the_kv_cache_is_the_engine_s_own():
    fit = fit_memory("math", replace(EXPERT, max_model_len=4096), None)

    assert fit.kv_bytes_per_token_per_gpu == 131_072
    assert fit.kv_capacity_tokens == GIB // 131_072 - BLOCK_TOKENS


def test_a_sequence_may_be_as_long_as_the_capacity_and_no_longer():
    capacity_tokens = fit_memory("math", replace(EXPERT, max_model_len=4096), None).kv_capacity_tokens

    fit_memory("math", replace(EXPERT, max_model_len=capacity_tokens), None)
    with pytest.raises(PlacementError, match=r"0\.1 GiB missing.*lower experts\.math\.max_model_len"):
        fit_memory("math", replace(EXPERT, max_model_len=capacity_tokens + 1), None)


def test_the_matrices_of_a_layer_are_split_over_the_gpus_but_kv_heads_are_copied_below_one_each():
    assert count_linear_weights(LLAMA3_8B) == pytest.approx(6.979e9, rel=1e-3)
    assert sum(count_layer_weights(LLAMA3_8B, 8)) * 8 == sum(count_layer_weights(LLAMA3_8B))
    assert [count_kv_heads(LLAMA3_8B, ways) for ways in (1, 2, 8, 16)] == [8, 4, 1, 1]
    copied = 16 * 2 * 4096 * 128 - 8 * 2 * 4096 * 128
    assert sum(count_layer_weights(LLAMA3_8B, 16)) * 16 == sum(count_layer_weights(LLAMA3_8B)) + copied


def test_a_kv_capacity_that_vllm_printed_is_believed():
    expert = replace(EXPERT, max_model_len=4096, kv_capacity_tokens=50_000)

    fit = fit_memory("math", expert, None)

    assert fit.kv_capacity_tokens == 50_000
    with pytest.raises(ConfigError, match=r"kv_capacity_tokens=4095 is out of range. Allowed: at least 4096"):
        replace(expert, kv_capacity_tokens=4095).check("experts.math")
