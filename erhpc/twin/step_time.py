"""How long one step of a serving engine takes: a roofline of the model's matrices, its KV cache, host and API server.

It knows nothing of requests, queues or clocks: a step is a `Batch` of counts. The constants are data with a source
each (`erhpc.twin.hardware`); this project measured none but the API server's. `erhpc.twin.validation` says how well
they predict published measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, hypot, isfinite
from typing import Protocol

from erhpc.config import ArchitectureConfig
from erhpc.errors import ConfigError, require_choice, require_range
from erhpc.plan.memory import (
    BLOCK_TOKENS,
    DTYPE_BYTES,
    QUANTIZED_BYTES,
    count_kv_heads,
    count_layer_weights,
    list_tensor_parallels,
    read_head_dim,
)
from erhpc.twin.hardware import DEFAULT_PROFILE, Constants, load_constants

_KERNEL_LAUNCH_S = 4e-6
"""Fixed time of one matrix product (Vidur's tables at one token)."""
_ELEMENTWISE_BANDWIDTH_SHARE = 0.8
_LAYER_TORCH_CALLS = 7
"""Calls into torch of a layer beside its products: two norms, split, rotation, KV write, attention, activation."""
_LAYER_PRODUCTS = 4
_PACKED_WEIGHTS = 8
"""4-bit weights in the word that a kernel unpacks at a time."""
_FLOPS_PER_INSTRUCTION = 4
"""Of the fp16 peak outside the tensor cores: each lane multiplies and adds two halves."""
_INFINITY = float("inf")


# Not frozen: a simulation builds one per step, which would take thrice as long, and adds up in it what is computed.
@dataclass(slots=True)
class Batch:
    """What one step computes, as the sums that its duration depends on. Raises ValueError for impossible counts."""

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

    def __post_init__(self) -> None:
        # Not-a-number fails every comparison, so it is caught here, too.
        if not (
            0 <= self.num_decode_seqs < _INFINITY
            and 0 <= self.decode_context_tokens < _INFINITY
            and 0 <= self.num_prefill_seqs < _INFINITY
            and 0 <= self.num_prefill_tokens < _INFINITY
            and 0 <= self.prefill_attention < _INFINITY
            and 0 <= self.num_logit_rows < _INFINITY
        ):
            raise ValueError(f"{self} is no step: every count must be finite and at least 0")

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
class DecodeLine:
    """A bound of the step time that is affine in the context: base_s + per_context_token_s * context tokens."""

    base_s: float
    per_context_token_s: float

    def at_s(self, context_tokens: float) -> float:
        """Seconds at a sum of context tokens."""
        return self.base_s + self.per_context_token_s * context_tokens


@dataclass(frozen=True, slots=True)
class DecodeLines:
    """Steps that only decode the same sequences: each takes the larger of two lines in the context tokens.

    The context grows by `num_seqs` per step. Where GPU and host overlap, the lines may cross once (a kink); where they
    do not, the first line is their sum, the second the API server's or the same. Closed forms serve a simulation that
    jumps from event to event.
    """

    num_seqs: int
    gpu: DecodeLine
    host: DecodeLine

    def step_s(self, context_tokens: float) -> float:
        """Seconds of one step. Raises ValueError unless the context is finite and at least 0."""
        self._check(context_tokens)
        return max(self.gpu.at_s(context_tokens), self.host.at_s(context_tokens))

    def run_s(self, context_tokens: float, num_steps: int) -> float:
        """Seconds of `num_steps` steps, the first of which attends to `context_tokens`; ValueError as above."""
        self._check(context_tokens)
        if num_steps <= 0:
            return 0.0
        if self.gpu is self.host:
            return self._sum_s(self.gpu, context_tokens, num_steps)
        first, switch = self._order(context_tokens, num_steps)
        second = self.host if first is self.gpu else self.gpu
        rest = num_steps - switch
        return self._sum_s(first, context_tokens, switch) + self._sum_s(
            second, context_tokens + switch * self.num_seqs, rest
        )

    def count_steps(self, context_tokens: float, within_s: float) -> int:
        """How many whole steps end within `within_s`; the inverse of `run_s`."""
        self._check(context_tokens)
        if not within_s < _INFINITY:
            raise ValueError(f"no number of steps ends within {within_s} s")
        if within_s <= 0:
            return 0
        low, high = 0, int(within_s / self.step_s(context_tokens)) + 1  # steps never get shorter
        while low < high:
            middle = (low + high + 1) // 2
            if self.run_s(context_tokens, middle) <= within_s:
                low = middle
            else:
                high = middle - 1
        return low

    def _check(self, context_tokens: float) -> None:
        if not 0 <= context_tokens < _INFINITY:
            raise ValueError(f"context_tokens={context_tokens} must be finite and at least 0")

    def _order(self, context_tokens: float, num_steps: int) -> tuple[DecodeLine, int]:
        """The line that bounds the first step, and for how many steps it does."""
        gpu_ahead = self.gpu.at_s(context_tokens) >= self.host.at_s(context_tokens)
        first, second = (self.gpu, self.host) if gpu_ahead else (self.host, self.gpu)
        steeper = second.per_context_token_s - first.per_context_token_s
        if steeper <= 0:
            return first, num_steps
        lead_s = first.at_s(context_tokens) - second.at_s(context_tokens)
        return first, min(num_steps, int(lead_s / (steeper * self.num_seqs)) + 1)

    def _sum_s(self, line: DecodeLine, context_tokens: float, num_steps: int) -> float:
        contexts = num_steps * context_tokens + self.num_seqs * num_steps * (num_steps - 1) / 2
        return num_steps * line.base_s + line.per_context_token_s * contexts


class Roofline:
    """Step time of one replica: every matrix product takes hypot(memory time, compute time) plus a launch.

    The hypot (a 2-norm) instead of the usual maximum reproduces the knee between 64 and 512 tokens, where a
    replica spends its life under load. `constants` (calibrated, or drawn from the evidence) replaces what `gpu`,
    `kernel` and `profile` name. Raises ConfigError for an unknown name, a shape that is none of a model, and a
    tensor-parallel size that does not divide it.

    Where answers are streamed through an API server, no step is shorter than it needs for the pieces of one: engines do
    run ahead of it, but then wait for users who wait for it.
    """

    def __init__(
        self,
        architecture: ArchitectureConfig,
        *,
        dtype: str,
        quantization: str | None,
        tensor_parallel: int,
        gpu: str,
        kernel: str | None = None,
        profile: str = DEFAULT_PROFILE,
        constants: Constants | None = None,
        kv_element_bytes: float | None = None,
        is_eager: bool = False,
        stream_interval: int = 0,
        api_servers: int = 1,
    ) -> None:
        """Say what runs.

        Args:
            kv_element_bytes: None: as the dtype.
            is_eager: without CUDA graphs (vLLM's enforce_eager).
            stream_interval: tokens per piece of a streamed answer; 0: answers do not pass an API server.
            api_servers: its processes.
        """
        require_choice("dtype", dtype, tuple(DTYPE_BYTES))
        check_shape(architecture, tensor_parallel)
        chosen = constants or load_constants(gpu, quantization=quantization, kernel=kernel, profile=profile)
        self.constants = chosen
        self._gpu, self._kernel, self._profile = chosen.gpu, chosen.kernel, chosen.profile
        if tensor_parallel > 1 and not chosen.gpu.all_reduce:
            raise ConfigError(
                f"tensor_parallel={tensor_parallel} on a GPU whose file has no all_reduce table. "
                "Add all_reduce.2, .4 and .8 to the GPU file, or set tensor_parallel=1."
            )
        self._shape = architecture
        self._tensor_parallel = tensor_parallel
        self._is_eager = is_eager
        self._value_bytes = DTYPE_BYTES[dtype]
        self._weight_bytes = QUANTIZED_BYTES[chosen.kernel.stored_as] if chosen.kernel.stored_as else self._value_bytes
        # Without tensor cores for float32, TF32 runs at half the bf16 rate.
        self._peak_flops = chosen.gpu.peak_flops * (2 / self._value_bytes)
        self._layer_weights = count_layer_weights(architecture, tensor_parallel)
        peaks = {"value": self._peak_flops, "fp8": chosen.gpu.peak_fp8_flops, "int8": chosen.gpu.peak_int8_flops}
        self._product_flops = peaks[chosen.kernel.units] * chosen.gpu.compute_share * chosen.kernel.compute_share_factor
        self._instructions_per_s = chosen.gpu.peak_vector_flops / _FLOPS_PER_INSTRUCTION
        kv_bytes = self._value_bytes if kv_element_bytes is None else kv_element_bytes
        require_range("kv_element_bytes", kv_bytes, 0.5, 8)
        require_range("stream_interval", stream_interval, 0)
        require_range("api_servers", api_servers, 1)
        frame_s = self._profile.host_factor * self._profile.frame_s / api_servers
        self._first_send_s = frame_s if stream_interval else 0.0
        self._next_send_s = frame_s / stream_interval if stream_interval else 0.0
        self._merge_max_seqs = self._profile.merge_max_seqs * api_servers
        heads = count_kv_heads(architecture, tensor_parallel)
        self._kv_token_bytes = 2 * architecture.num_layers * heads * read_head_dim(architecture) * kv_bytes
        self._lines: dict[int, DecodeLines] = {}
        self._decide_once()

    def _decide_once(self) -> None:
        """What every step needs and none changes; a simulation asks for the time of a step after the other."""
        shape, gpu, profile = self._shape, self._gpu, self._profile
        self._query_size = shape.num_attention_heads * read_head_dim(shape) / self._tensor_parallel
        self._attention_flops = self._peak_flops * gpu.attention_share
        self._kv_read_s = self._kv_token_bytes / (gpu.bandwidth_bytes_per_s * (gpu.kv_share * profile.kv_share_factor))
        calls = shape.num_layers * (_LAYER_TORCH_CALLS + _LAYER_PRODUCTS * self._kernel.torch_calls)
        self._host_base_s = profile.step_s + (profile.tensor_parallel_s if self._tensor_parallel > 1 else 0.0)
        self._host_base_s += self._kernel.eager_call_s * calls if self._is_eager else 0.0
        # Terms that depend on a single count, by that count.
        self._layers: dict[int, float] = {}
        self._heads: dict[int, float] = {}
        self._all_reduces: dict[bool, dict[int, float]] = {False: {}, True: {}}

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token on one GPU, as this step time reads it."""
        return self._kv_token_bytes

    def send_s(self, num_seqs: int) -> float:
        """What tokens of so many running answers, one each, keep the API server busy; 0 where it holds nothing back."""
        return num_seqs * self._next_send_s if num_seqs > self._merge_max_seqs else 0.0

    def step_s(self, batch: Batch) -> float:
        """Seconds from the start of this step to the start of the next."""
        if not batch.num_prefill_tokens and batch.num_decode_seqs and batch.num_logit_rows == batch.num_decode_seqs:
            return self.decode_lines(batch.num_decode_seqs).step_s(batch.decode_context_tokens)
        gpu_s, host_s = self._gpu_s(batch), self._host_s(batch)
        engine_s = max(gpu_s, host_s) + self._profile.gap_s if self._profile.overlaps else gpu_s + host_s
        if batch.num_logit_rows <= self._merge_max_seqs:
            return engine_s
        # The first token of an answer is a piece of its own.
        num_first = max(batch.num_logit_rows - batch.num_decode_seqs, 0)
        return max(engine_s, batch.num_decode_seqs * self._next_send_s + num_first * self._first_send_s)

    def decode_lines(self, num_seqs: int) -> DecodeLines:
        """The closed form of steps that decode `num_seqs` sequences and nothing else; kept per `num_seqs`."""
        lines = self._lines.get(num_seqs)
        if lines is None:
            lines = self._lines[num_seqs] = self._build_lines(num_seqs)
        return lines

    def _build_lines(self, num_seqs: int) -> DecodeLines:
        require_range("num_seqs", num_seqs, 1)
        batch = Batch(num_decode_seqs=num_seqs, num_logit_rows=num_seqs)
        profile = self._profile
        gpu = DecodeLine(self._gpu_s(batch), self._kv_read_s)
        host = DecodeLine(self._host_s(batch), profile.host_factor * profile.block_s / BLOCK_TOKENS)
        send_s = self.send_s(num_seqs)
        if profile.overlaps:
            # Where a host counts blocks and the API server is busy, too, blocks come on top: no engine known does both.
            return DecodeLines(
                num_seqs,
                DecodeLine(gpu.base_s + profile.gap_s, gpu.per_context_token_s),
                DecodeLine(max(host.base_s + profile.gap_s, send_s), host.per_context_token_s),
            )
        both = DecodeLine(gpu.base_s + host.base_s, gpu.per_context_token_s + host.per_context_token_s)
        return DecodeLines(num_seqs, both, DecodeLine(send_s, 0.0) if send_s > both.base_s else both)

    def _gpu_s(self, batch: Batch) -> float:
        num_tokens, num_rows = batch.num_decode_seqs + batch.num_prefill_tokens, batch.num_logit_rows
        layers_s = self._layers.get(num_tokens)
        if layers_s is None:
            layers_s = self._layers[num_tokens] = self._layers_s(num_tokens)
        head_s = self._heads.get(num_rows)
        if head_s is None:
            head_s = self._heads[num_rows] = self._head_s(num_rows)
        flops = batch.prefill_attention * 4 * self._query_size * self._shape.num_layers
        attention_s = batch.decode_context_tokens * self._kv_read_s + flops / self._attention_flops
        return layers_s + attention_s + head_s + self._all_reduce_s(batch, num_tokens)

    def _layers_s(self, num_tokens: int) -> float:
        products_s = sum(self._product_s(weights, num_tokens) for weights in self._layer_weights)
        products_s += self._split_s(num_tokens)
        return self._shape.num_layers * (products_s + self._gpu.layer_s + self._elementwise_s(num_tokens))

    def _product_s(self, weights: float, num_tokens: int) -> float:
        gpu, kernel = self._gpu, self._kernel
        bandwidth = gpu.bandwidth_bytes_per_s
        flops = 2 * weights * num_tokens
        if 0 < kernel.widen_rows < num_tokens:
            widened_s = weights * (self._weight_bytes + self._value_bytes) / (bandwidth * kernel.widen_share)
            read_s = weights * self._value_bytes / (bandwidth * gpu.weight_share)
            compute_s = flops / (self._peak_flops * gpu.compute_share)
            return widened_s + hypot(read_s, compute_s) + 2 * _KERNEL_LAUNCH_S
        read_s = weights * self._weight_bytes / (bandwidth * gpu.weight_share * kernel.weight_share_factor)
        if kernel.tile_rows:
            # Such a kernel loads, unpacks and multiplies in turn, and unpacks again for every tile of rows.
            return read_s + self._unpack_s(weights, num_tokens) + _KERNEL_LAUNCH_S
        return hypot(read_s, flops / self._product_flops) + _KERNEL_LAUNCH_S

    def _unpack_s(self, weights: float, num_tokens: int) -> float:
        """Unpacking for every tile, and multiplying: with row_instructions each row, or in the tensor cores."""
        kernel = self._kernel
        instructions = kernel.unpack_instructions * ceil(num_tokens / kernel.tile_rows)
        instructions += kernel.row_instructions * num_tokens
        multiply_s = 0.0 if kernel.row_instructions else 2 * weights * num_tokens / self._product_flops
        return weights / _PACKED_WEIGHTS * instructions / self._instructions_per_s + multiply_s

    def _split_s(self, num_tokens: int) -> float:
        """Per layer: partial sums of a product that is split over its depth are written, and read to be added up."""
        kernel, shape = self._kernel, self._shape
        if kernel.split_k <= 1 or 0 < kernel.widen_rows < num_tokens:
            return 0.0
        heads = shape.num_attention_heads / self._tensor_parallel + 2 * count_kv_heads(shape, self._tensor_parallel)
        outputs = heads * read_head_dim(shape) + 2 * shape.hidden_size
        outputs += 2 * shape.intermediate_size / self._tensor_parallel
        moved_bytes = 2 * kernel.split_k * outputs * num_tokens * self._value_bytes
        return moved_bytes / (_ELEMENTWISE_BANDWIDTH_SHARE * self._gpu.bandwidth_bytes_per_s)

    def _elementwise_s(self, num_tokens: int) -> float:
        """Activations that norms, rotations and the gate read and write, per layer."""
        shape = self._shape
        values = 12 * shape.hidden_size + (8 * shape.hidden_size + 4 * shape.intermediate_size) / self._tensor_parallel
        bandwidth = _ELEMENTWISE_BANDWIDTH_SHARE * self._gpu.bandwidth_bytes_per_s
        return num_tokens * self._value_bytes * values / bandwidth

    def _head_s(self, num_rows: int) -> float:
        """The output matrix, which no quantisation touches."""
        weights = self._shape.hidden_size * self._shape.vocab_size / self._tensor_parallel
        read_s = weights * self._value_bytes / (self._gpu.bandwidth_bytes_per_s * self._gpu.weight_share)
        compute_s = 2 * weights * num_rows / (self._peak_flops * self._gpu.compute_share)
        return hypot(read_s, compute_s) + _KERNEL_LAUNCH_S

    def _all_reduce_s(self, batch: Batch, num_tokens: int) -> float:
        """Two all-reduces per layer; sizes between the measured ones count as the next, larger ones as the last."""
        if self._tensor_parallel == 1:
            return 0.0
        eager = self._is_eager or batch.num_prefill_tokens > 0 or batch.num_decode_seqs > self._profile.graph_max_seqs
        known = self._all_reduces[eager]
        if num_tokens in known:
            return known[num_tokens]
        sizes = self._gpu.all_reduce
        measured = min((size for size in sizes if size >= self._tensor_parallel), default=max(sizes))
        message_bytes = num_tokens * self._shape.hidden_size * self._value_bytes
        one_s = sizes[measured].time_s(message_bytes, self._gpu.eager_all_reduce_s if eager else 0.0)
        known[num_tokens] = 2 * self._shape.num_layers * self._gpu.all_reduce_factor * one_s
        return known[num_tokens]

    def _host_s(self, batch: Batch) -> float:
        profile = self._profile
        blocks_s = profile.block_s * batch.decode_context_tokens / BLOCK_TOKENS
        seqs_s = profile.seq_s * (batch.num_decode_seqs + batch.num_prefill_seqs)
        return profile.host_factor * (self._host_base_s + blocks_s + seqs_s)


def check_shape(shape: ArchitectureConfig, tensor_parallel: int) -> None:
    """Raise ConfigError, saying what to do, unless the shape is complete and its heads divide over the GPUs."""
    for name in ("num_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_kv_heads", "vocab_size"):
        value = getattr(shape, name)
        if not isinstance(value, int) or not isfinite(value):
            raise ConfigError(
                f"architecture.{name}={value!r} is no count. Take it from the model's config.json "
                "(num_layers is num_hidden_layers there)."
            )
    shape.check("architecture")
    require_range("tensor_parallel", tensor_parallel, 1)
    allowed = list_tensor_parallels(shape)
    if tensor_parallel not in allowed:
        raise ConfigError(
            f"tensor_parallel={tensor_parallel} does not divide {shape.num_attention_heads} attention heads and "
            f"{shape.num_kv_heads} KV heads. Allowed: {', '.join(map(str, allowed))}."
        )
