"""How long one step of a serving engine takes: a roofline of the model's matrices, its KV cache and the host.

It knows nothing of requests, queues or clocks: a step is a `Batch` of counts. The constants come from published
kernel measurements (each group says which) and none was measured by this project; a calibrated model can take
the place of `Roofline` behind `StepTime`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Protocol

from erhpc.config import ArchitectureConfig
from erhpc.errors import require_choice
from erhpc.plan.memory import DTYPE_BYTES, QUANTIZED_BYTES, count_kv_heads, count_layer_weights, read_head_dim


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes, as the sums that its duration depends on."""

    num_decode_seqs: int = 0
    """Sequences that compute one token to get the next."""
    decode_context_tokens: int = 0
    """Tokens in the KV cache that these sequences attend to, summed."""
    num_prefill_seqs: int = 0
    """Sequences of which a chunk of the prompt is computed."""
    num_prefill_tokens: int = 0
    prefill_attention: float = 0.0
    """Sum over chunks of q * (c + q / 2): query-key pairs of a chunk of q tokens after c computed ones."""
    num_logit_rows: int = 0
    """Sequences that get a token from this step."""

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the layers."""
        return self.num_decode_seqs + self.num_prefill_tokens

    @property
    def num_seqs(self) -> int:
        """Sequences the host has to handle."""
        return self.num_decode_seqs + self.num_prefill_seqs


class StepTime(Protocol):
    """Anything that says how long a step takes."""

    def step_s(self, batch: Batch) -> float:
        """Seconds from the start of this step to the start of the next."""
        ...


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Time of one all-reduce over NVLink: latency_s + bytes / bytes_per_s."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTiming:
    """Speed of one GPU type: data-sheet peaks and the shares of them that real kernels reach."""

    peak_flops: float
    """Dense bf16/fp16 FLOP/s."""
    peak_fp8_flops: float | None
    """Dense fp8 FLOP/s; None: no fp8 units, fp8 weights are widened first and only save bytes."""
    bandwidth_bytes_per_s: float
    compute_share: float
    """Of peak_flops, in large matrix products."""
    weight_share: float
    """Of the bandwidth, when weights are read."""
    kv_share: float
    """Of the bandwidth, when the KV cache is read."""
    attention_share: float
    """Of peak_flops, in the attention of a prefill."""
    layer_s: float
    """Floor of a layer's small kernels (attention, norms, activation) within a CUDA graph."""
    all_reduce: dict[int, tuple[AllReduce, AllReduce]]
    """Small and large messages by tensor-parallel size."""


# Medians of the public all-reduce tables of ai-dynamo/aiconfigurator (vLLM 0.14): vLLM's own kernel, then NCCL.
_A100_ALL_REDUCE = {
    2: (AllReduce(5.0e-6, 104e9), AllReduce(46e-6, 96e9)),
    4: (AllReduce(5.4e-6, 58e9), AllReduce(59e-6, 72e9)),
    8: (AllReduce(6.5e-6, 54e9), AllReduce(60e-6, 61e9)),
}
_H100_ALL_REDUCE = {
    2: (AllReduce(4.4e-6, 131e9), AllReduce(22e-6, 148e9)),
    4: (AllReduce(4.7e-6, 83e9), AllReduce(30e-6, 114e9)),
    8: (AllReduce(5.5e-6, 74e9), AllReduce(35e-6, 100e9)),
}
_LARGE_MESSAGE_BYTES = 2 * 1024 * 1024
"""Above it vLLM leaves its own all-reduce kernel for NCCL."""

# Peaks: NVIDIA data sheets (SXM cards). Shares and layer floors: kernel tables of microsoft/vidur (A100) and
# ai-dynamo/aiconfigurator (H100, H200); compute_share set so that long published prefills come out right.
GPU_TIMINGS: dict[str, GpuTiming] = {
    "a100_40": GpuTiming(
        peak_flops=312e12, peak_fp8_flops=None, bandwidth_bytes_per_s=1.555e12, compute_share=0.83,
        weight_share=0.83, kv_share=0.75, attention_share=0.45, layer_s=21e-6, all_reduce=_A100_ALL_REDUCE,
    ),
    "a100_80": GpuTiming(
        peak_flops=312e12, peak_fp8_flops=None, bandwidth_bytes_per_s=2.039e12, compute_share=0.83,
        weight_share=0.795, kv_share=0.72, attention_share=0.45, layer_s=21e-6, all_reduce=_A100_ALL_REDUCE,
    ),
    "h100_80": GpuTiming(
        peak_flops=989e12, peak_fp8_flops=1979e12, bandwidth_bytes_per_s=3.35e12, compute_share=0.67,
        weight_share=0.895, kv_share=0.85, attention_share=0.35, layer_s=20e-6, all_reduce=_H100_ALL_REDUCE,
    ),
    "h200_141": GpuTiming(
        peak_flops=989e12, peak_fp8_flops=1979e12, bandwidth_bytes_per_s=4.8e12, compute_share=0.67,
        weight_share=0.86, kv_share=0.82, attention_share=0.35, layer_s=20e-6, all_reduce=_H100_ALL_REDUCE,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What the way the matrices of the layers are stored does to speed."""

    weight_share_factor: float = 1.0
    compute_share_factor: float = 1.0
    uses_fp8_units: bool = False


# 4-bit formats run in vLLM's Marlin kernel: factors from the comparisons in its pull requests and from AccelMark.
# fp8: 0.55 of peak in published H100 runs.
_WEIGHT_FORMATS = {
    "awq": WeightFormat(0.80, 0.87),
    "gptq": WeightFormat(0.80, 0.87),
    "fp8": WeightFormat(uses_fp8_units=True),
}
_FP8_COMPUTE_SHARE = 0.55
_KERNEL_LAUNCH_S = 4e-6
"""Fixed time of one matrix product (Vidur's tables at one token)."""
_ELEMENTWISE_BANDWIDTH_SHARE = 0.8

# Host side of vLLM V1 with asynchronous scheduling: the host's work hides behind the GPU's. Set by hand on four
# published A100 latencies (AccelMark).
_HOST_STEP_S = 0.5e-3
_HOST_TENSOR_PARALLEL_S = 0.3e-3
_HOST_SEQ_S = 4e-6
_HOST_GAP_S = 0.2e-3


class Roofline:
    """Step time of one replica: every matrix product takes hypot(memory time, compute time) plus a launch.

    The hypot (a 2-norm) instead of the usual maximum reproduces the knee between 64 and 512 tokens, where a
    replica spends its life under load. Raises ConfigError for a GPU without timing constants.
    """

    def __init__(
        self, architecture: ArchitectureConfig, *, dtype: str, quantization: str | None, tensor_parallel: int, gpu: str
    ) -> None:
        require_choice("cluster.gpu", gpu, tuple(GPU_TIMINGS))
        self._gpu = GPU_TIMINGS[gpu]
        self._architecture = architecture
        self._tensor_parallel = tensor_parallel
        self._value_bytes = DTYPE_BYTES[dtype]
        self._weight_bytes = QUANTIZED_BYTES[quantization] if quantization else self._value_bytes
        # Without tensor cores for float32, TF32 runs at half the bf16 rate.
        self._peak_flops = self._gpu.peak_flops * (2 / self._value_bytes)
        self._format = _WEIGHT_FORMATS.get(quantization or "", WeightFormat())
        self._head_dim = read_head_dim(architecture)
        self._kv_heads = count_kv_heads(architecture, tensor_parallel)
        self._layer_weights = count_layer_weights(architecture, tensor_parallel)

    def step_s(self, batch: Batch) -> float:
        """Seconds from the start of this step to the start of the next."""
        gpu_s = self._layers_s(batch) + self._attention_s(batch) + self._head_s(batch) + self._all_reduce_s(batch)
        return max(gpu_s, self._host_s(batch)) + _HOST_GAP_S

    def _layers_s(self, batch: Batch) -> float:
        products_s = sum(self._product_s(weights, batch.num_tokens) for weights in self._layer_weights)
        return self._architecture.num_layers * (products_s + self._gpu.layer_s + self._elementwise_s(batch.num_tokens))

    def _product_s(self, weights: float, num_tokens: int) -> float:
        gpu, stored = self._gpu, self._format
        read_s = (
            weights * self._weight_bytes / (gpu.bandwidth_bytes_per_s * gpu.weight_share * stored.weight_share_factor)
        )
        return hypot(read_s, 2 * weights * num_tokens / self._product_flops()) + _KERNEL_LAUNCH_S

    def _product_flops(self) -> float:
        if self._format.uses_fp8_units and self._gpu.peak_fp8_flops is not None:
            return self._gpu.peak_fp8_flops * _FP8_COMPUTE_SHARE
        return self._peak_flops * self._gpu.compute_share * self._format.compute_share_factor

    def _elementwise_s(self, num_tokens: int) -> float:
        """Activations that norms, rotations and the gate read and write, per layer."""
        shape = self._architecture
        values = 12 * shape.hidden_size + (8 * shape.hidden_size + 4 * shape.intermediate_size) / self._tensor_parallel
        bandwidth = _ELEMENTWISE_BANDWIDTH_SHARE * self._gpu.bandwidth_bytes_per_s
        return num_tokens * self._value_bytes * values / bandwidth

    def _attention_s(self, batch: Batch) -> float:
        shape, gpu = self._architecture, self._gpu
        kv_token_bytes = 2 * shape.num_layers * self._kv_heads * self._head_dim * self._value_bytes
        read_s = batch.decode_context_tokens * kv_token_bytes / (gpu.bandwidth_bytes_per_s * gpu.kv_share)
        query_size = shape.num_attention_heads * self._head_dim / self._tensor_parallel
        flops = batch.prefill_attention * 4 * query_size * shape.num_layers
        return read_s + flops / (self._peak_flops * gpu.attention_share)

    def _head_s(self, batch: Batch) -> float:
        """The output matrix, which no quantisation touches."""
        weights = self._architecture.hidden_size * self._architecture.vocab_size / self._tensor_parallel
        read_s = weights * self._value_bytes / (self._gpu.bandwidth_bytes_per_s * self._gpu.weight_share)
        compute_s = 2 * weights * batch.num_logit_rows / (self._peak_flops * self._gpu.compute_share)
        return hypot(read_s, compute_s) + _KERNEL_LAUNCH_S

    def _all_reduce_s(self, batch: Batch) -> float:
        """Two all-reduces per layer; sizes between the measured ones count as the next, larger ones as the last."""
        if self._tensor_parallel == 1:
            return 0.0
        sizes = self._gpu.all_reduce
        measured = min((size for size in sizes if size >= self._tensor_parallel), default=max(sizes))
        message_bytes = batch.num_tokens * self._architecture.hidden_size * self._value_bytes
        link = sizes[measured][message_bytes > _LARGE_MESSAGE_BYTES]
        return 2 * self._architecture.num_layers * (link.latency_s + message_bytes / link.bytes_per_s)

    def _host_s(self, batch: Batch) -> float:
        parallel_s = _HOST_TENSOR_PARALLEL_S if self._tensor_parallel > 1 else 0.0
        return _HOST_STEP_S + parallel_s + _HOST_SEQ_S * batch.num_seqs
