"""What an emulated engine counts, told under vLLM's names: `/metrics` in Prometheus's text format.

Names, labels and bounds are those of vLLM 0.25.1 (its own /metrics, read from a running server); metrics of what is
not emulated (LoRA, images, KV transfer, sleep) are left out. Times are the clock's, not divided by any speedup.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Literal

from erhpc.plan.memory import BLOCK_TOKENS, NULL_BLOCKS
from erhpc.twin.scheduler import Scheduler

FinishReason = Literal["stop", "length", "abort", "error"]
_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_GAP_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
_ANSWERS = (1.0, 2.0, 5.0, 10.0, 20.0)


class Histogram:
    """Values counted up to bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, model: str) -> Iterator[str]:
        """Its samples."""
        seen = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            seen += count
            yield f'{name}_bucket{{engine="0",le="{bound}",model_name="{model}"}} {float(seen)}'
        labels = f'{{engine="0",model_name="{model}"}}'
        yield f"{name}_count{labels} {float(seen)}"
        yield f"{name}_sum{labels} {self._sum}"


def bounds_up_to(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, ... up to `most`: vLLM's bounds for token counts, of which max_model_len is the most."""
    bounds = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return tuple(float(bound) for bound in bounds if bound <= most)


class EngineMetrics:
    """The counters and histograms of one replica; its engine fills them."""

    def __init__(self, max_model_len: int) -> None:
        token_bounds = bounds_up_to(max_model_len)
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_cache_queries = 0
        """Prompt tokens that were looked for in the prefix cache."""
        self.num_cache_hits = 0
        self.finished: dict[FinishReason, int] = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.first_token_s = Histogram(_FIRST_TOKEN_S)
        self.gap_s = Histogram(_GAP_S)
        self._prompt_tokens = Histogram(token_bounds)
        self._answer_tokens = Histogram(token_bounds)
        self._max_tokens = Histogram(token_bounds)
        self._answers = Histogram(_ANSWERS)
        self._token_s = Histogram(_GAP_S)
        self._request_s = Histogram(_REQUEST_S)
        self._queue_s = Histogram(_REQUEST_S)
        self._inference_s = Histogram(_REQUEST_S)
        self._prefill_s = Histogram(_REQUEST_S)
        self._decode_s = Histogram(_REQUEST_S)

    def count_finished(
        self, reason: FinishReason, *, prompt_tokens: int, answer_tokens: int, max_tokens: int, times_s: Sequence[float]
    ) -> None:
        """Count a request; `times_s`: when it arrived, was queued, first computed, and had its first and last token."""
        arrived_s, queued_s, begun_s, first_s, last_s = times_s
        self.finished[reason] += 1
        self._prompt_tokens.add(prompt_tokens)
        self._answer_tokens.add(answer_tokens)
        self._max_tokens.add(max_tokens)
        self._answers.add(1)
        self._request_s.add(last_s - arrived_s)
        self._queue_s.add(begun_s - queued_s)
        self._inference_s.add(last_s - begun_s)
        self._prefill_s.add(first_s - begun_s)
        self._decode_s.add(last_s - first_s)
        if answer_tokens > 1:
            self._token_s.add((last_s - first_s) / (answer_tokens - 1))

    def to_text(self, model: str, scheduler: Scheduler, *, has_prefix_cache: bool) -> str:
        """Everything, as /metrics tells it."""
        lines = [*self._values(model, scheduler, has_prefix_cache), *self._distributions(model)]
        return "\n".join(lines) + "\n"

    def _values(self, model: str, scheduler: Scheduler, has_prefix_cache: bool) -> Iterator[str]:
        labels = f'engine="0",model_name="{model}"'
        gauges = {
            "num_requests_running": scheduler.num_running,
            "num_requests_waiting": scheduler.num_waiting,
            "kv_cache_usage_perc": scheduler.kv_usage,
        }
        counters = {
            "prefix_cache_queries_total": self.num_cache_queries,
            "prefix_cache_hits_total": self.num_cache_hits,
            "num_preemptions_total": scheduler.num_preemptions,
            "prompt_tokens_total": self.num_prompt_tokens,
            "generation_tokens_total": self.num_generated_tokens,
        }
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, value in values.items():
                yield f"# TYPE vllm:{name} {kind}\nvllm:{name}{{{labels}}} {float(value)}"
        yield "# TYPE vllm:request_success_total counter"
        for reason, count in self.finished.items():
            yield (
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model}"}} '
                f"{float(count)}"
            )
        yield "# TYPE vllm:cache_config_info gauge"
        yield (
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",enable_prefix_caching="{has_prefix_cache}",'
            f'engine="0",num_gpu_blocks="{scheduler.limits.num_blocks + NULL_BLOCKS}"}} 1.0'
        )

    def _distributions(self, model: str) -> Iterator[str]:
        histograms = {
            "request_prompt_tokens": self._prompt_tokens,
            "request_generation_tokens": self._answer_tokens,
            "iteration_tokens_total": self.step_tokens,
            "request_params_n": self._answers,
            "request_params_max_tokens": self._max_tokens,
            "time_to_first_token_seconds": self.first_token_s,
            "inter_token_latency_seconds": self.gap_s,
            "request_time_per_output_token_seconds": self._token_s,
            "e2e_request_latency_seconds": self._request_s,
            "request_queue_time_seconds": self._queue_s,
            "request_inference_time_seconds": self._inference_s,
            "request_prefill_time_seconds": self._prefill_s,
            "request_decode_time_seconds": self._decode_s,
        }
        for name, histogram in histograms.items():
            yield f"# TYPE vllm:{name} histogram"
            yield from histogram.lines(f"vllm:{name}", model)
