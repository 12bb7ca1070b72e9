"""Does a replica fit its GPUs: weights per GPU, and how many tokens of KV cache remain. Pure arithmetic.

It knows nothing of time (the twin does) and nothing of which GPU a replica gets (placement does).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from erhpc.config import ArchitectureConfig, ExpertConfig
from erhpc.errors import PlacementError
from erhpc.plan.gpus import GIB, Gpu

BLOCK_TOKENS = 16
"""Tokens per KV block, vLLM's default."""

ACTIVATION_BYTES = int(1.3 * GIB)
"""Activations and what CUDA itself takes; with it 70B TP4 on an H100 gives 30,340 blocks, 30,425 were measured."""

NULL_BLOCKS = 1
"""KV blocks that vLLM keeps as a placeholder: no sequence gets them."""
KV_ELEMENT_BYTES = 2
CPU_PROCESSES_BYTES = 2 * GIB
"""What the three processes of a vLLM server hold besides weights and KV cache; 1.9 GiB were seen on a CPU."""
CPU_KV_BYTES = GIB
"""KV cache of a vLLM replica on a CPU (VLLM_CPU_KVCACHE_SPACE=1)."""

DTYPE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
# 4-bit weights plus a 16-bit scale and a 4-bit zero point per group of 128: 0.52 bytes; embeddings stay 16-bit.
QUANTIZED_BYTES = {"awq": 0.52, "gptq": 0.52, "fp8": 1.0, "int8": 1.0}


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """What one GPU of a replica holds; CPU replicas have no usable_bytes limit."""

    weights_bytes_per_gpu: int
    usable_bytes_per_gpu: int
    kv_bytes_per_token_per_gpu: int
    kv_capacity_tokens: int
    """What sequences may fill: whole blocks, without the null block."""


def read_head_dim(shape: ArchitectureConfig) -> int:
    """Size of one attention head."""
    return shape.head_dim or shape.hidden_size // shape.num_attention_heads


def count_kv_heads(shape: ArchitectureConfig, tensor_parallel: int) -> int:
    """KV heads on one GPU; below one head per GPU the heads are replicated."""
    return max(shape.num_kv_heads // tensor_parallel, 1)


def count_layer_weights(shape: ArchitectureConfig, tensor_parallel: int = 1) -> tuple[int, ...]:
    """Weights per GPU of {q, k and v}, output, {gate and up} and down of one layer; `check_tensor_parallel` holds."""
    attended = shape.hidden_size * read_head_dim(shape)
    heads = shape.num_attention_heads // tensor_parallel
    forward = shape.hidden_size * shape.intermediate_size // tensor_parallel
    return attended * (heads + 2 * count_kv_heads(shape, tensor_parallel)), attended * heads, 2 * forward, forward


def count_linear_weights(shape: ArchitectureConfig) -> int:
    """Weights of the decoder layers: q, k, v, o and the three MLP matrices (8B: 6.979e9)."""
    return shape.num_layers * sum(count_layer_weights(shape))


def count_embedding_weights(shape: ArchitectureConfig) -> int:
    """Weights of the embedding and, unless tied, of the output layer."""
    return shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)


def compute_weights_bytes(expert: ExpertConfig) -> int:
    """Bytes of all weights of one replica, over all its GPUs."""
    full = DTYPE_BYTES[expert.dtype]
    linear = full if expert.quantization is None else QUANTIZED_BYTES[expert.quantization]
    shape = expert.architecture
    return int(count_linear_weights(shape) * linear + count_embedding_weights(shape) * full)


def compute_kv_bytes_per_token(shape: ArchitectureConfig, tensor_parallel: int) -> int:
    """KV cache bytes per token on one GPU."""
    heads = count_kv_heads(shape, tensor_parallel)
    return 2 * shape.num_layers * heads * read_head_dim(shape) * KV_ELEMENT_BYTES


def list_tensor_parallels(shape: ArchitectureConfig) -> list[int]:
    """Numbers of GPUs over which the attention heads divide evenly, and the KV heads divide or are copied evenly."""
    heads, kv_heads = shape.num_attention_heads, shape.num_kv_heads
    return [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]


def check_tensor_parallel(name: str, expert: ExpertConfig) -> None:
    """Raise PlacementError unless the expert's attention heads divide evenly over its GPUs."""
    parallel, shape = expert.tensor_parallel, expert.architecture
    allowed = list_tensor_parallels(shape)
    if parallel not in allowed:
        raise PlacementError(
            f"experts.{name}.tensor_parallel={parallel} does not divide its {shape.num_attention_heads} attention "
            f"heads and {shape.num_kv_heads} KV heads. Allowed: {', '.join(map(str, allowed))}."
        )


def fit_memory(name: str, expert: ExpertConfig, gpu: Gpu | None) -> MemoryFit:
    """Work out what fits on each GPU of a replica; `gpu` None means the CPU.

    Raises:
        PlacementError: the weights, or the KV cache of one sequence of max_model_len tokens, do not fit; a number in
            expert.kv_capacity_tokens is believed.
    """
    check_tensor_parallel(name, expert)
    weights = compute_weights_bytes(expert) // expert.tensor_parallel
    per_token = compute_kv_bytes_per_token(expert.architecture, expert.tensor_parallel)
    usable = CPU_KV_BYTES + weights if gpu is None else int(gpu.memory_bytes * expert.gpu_memory_utilization)
    reserved = 0 if gpu is None else ACTIVATION_BYTES
    capacity = ((usable - weights - reserved) // (per_token * BLOCK_TOKENS) - NULL_BLOCKS) * BLOCK_TOKENS
    if expert.kv_capacity_tokens is not None:
        capacity = expert.kv_capacity_tokens
    fit = MemoryFit(
        weights_bytes_per_gpu=weights,
        usable_bytes_per_gpu=usable,
        kv_bytes_per_token_per_gpu=per_token,
        kv_capacity_tokens=max(capacity, 0),
    )
    if capacity < expert.max_model_len:
        raise PlacementError(_explain_misfit(name, expert, gpu, fit, reserved))
    return fit


def _explain_misfit(name: str, expert: ExpertConfig, gpu: Gpu | None, fit: MemoryFit, reserved: int) -> str:
    num_blocks = -(-expert.max_model_len // BLOCK_TOKENS) + NULL_BLOCKS
    needed = fit.weights_bytes_per_gpu + reserved + num_blocks * BLOCK_TOKENS * fit.kv_bytes_per_token_per_gpu
    missing_gib = ceil(10 * (needed - fit.usable_bytes_per_gpu) / GIB) / 10
    where = "on the CPU" if gpu is None else f"on {expert.tensor_parallel} x {gpu.label}"
    return (
        f"experts.{name} ({expert.model}, tensor_parallel={expert.tensor_parallel}) does not fit {where}: "
        f"{fit.weights_bytes_per_gpu / GIB:.1f} GiB of weights, {reserved / GIB:.1f} GiB of activations and the KV "
        f"cache of one sequence of {expert.max_model_len} tokens need {needed / GIB:.1f} GiB per GPU, "
        f"{fit.usable_bytes_per_gpu / GIB:.1f} GiB are usable: {missing_gib:.1f} GiB missing. "
        f"Raise experts.{name}.tensor_parallel, take a quantised expert, lower experts.{name}.max_model_len, "
        "or choose a cluster.gpu with more memory."
    )


def check_main_memory(experts: dict[str, ExpertConfig], memory_bytes: int) -> None:
    """Raise PlacementError unless all replicas, served on the CPU, fit the machine's memory together."""
    needs = {
        name: expert.replicas * (compute_weights_bytes(expert) + CPU_KV_BYTES + CPU_PROCESSES_BYTES)
        for name, expert in experts.items()
    }
    if sum(needs.values()) > memory_bytes:
        shown = ", ".join(f"{name}: {need / GIB:.1f}" for name, need in needs.items())
        raise PlacementError(
            f"the replicas need {sum(needs.values()) / GIB:.1f} GiB of main memory on the CPU ({shown}) and this "
            f"machine has {memory_bytes / GIB:.1f}. Take smaller or fewer experts (expert=tiny), or engine=emulated."
        )
