"""How an expert is served, in the twin's terms: step times, limits and what a request costs outside of steps.

One place for emulation and prediction, so that both follow the same model of the same expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from erhpc.config import ArchitectureConfig
from erhpc.errors import ConfigError
from erhpc.twin.hardware import Constants, load_constants
from erhpc.twin.scheduler import Limits
from erhpc.twin.step_time import Roofline, StepTime

FLAGS = (
    "stream-interval",
    "api-server-count",
    "enforce-eager",
    "async-scheduling",
    "no-async-scheduling",
    "long-prefill-token-threshold",
    "enable-chunked-prefill",
    "no-enable-chunked-prefill",
)
"""The flags of vLLM among an expert's engine_args that the twin knows; others change nothing here."""


class ServedExpert(Protocol):
    """An expert's model and how it is served: what configuration and specs have in common."""

    @property
    def architecture(self) -> ArchitectureConfig: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def quantization(self) -> str | None: ...  # noqa: D102
    @property
    def kernel(self) -> str | None: ...  # noqa: D102
    @property
    def tensor_parallel(self) -> int: ...  # noqa: D102
    @property
    def max_model_len(self) -> int: ...  # noqa: D102
    @property
    def max_num_seqs(self) -> int: ...  # noqa: D102
    @property
    def max_num_batched_tokens(self) -> int: ...  # noqa: D102
    @property
    def engine_args(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything that decides when the tokens of one replica come."""

    step_time: StepTime
    limits: Limits
    request_s: float
    """From a request's arrival until it is queued: HTTP, template, tokenisation; any number at the same time."""
    stream_interval: int = 1
    """Tokens per piece of a streamed answer; the first comes alone."""
    send_s: Callable[[int], float] = lambda _: 0.0
    """What tokens of so many running answers, one each, keep the API server busy (see `Roofline.send_s`)."""


def describe_serving(
    expert: ServedExpert, *, gpu: str, profile: str, kv_capacity_tokens: int, constants: Constants | None = None
) -> Serving:
    """How a replica of `expert` is served on `gpu` by an engine of that profile.

    A profile whose host works ahead of the GPU schedules ahead, too, unless engine_args say otherwise. `constants`,
    drawn from the evidence, replaces what GPU, kernel and profile name.

    Raises:
        ConfigError: an unknown kernel, profile or GPU, a shape that is none, limits that contradict each other, or a
            flag whose value is none.
    """
    if constants is None:
        constants = load_constants(gpu, quantization=expert.quantization, kernel=expert.kernel, profile=profile)
    flags = _normalise(expert.engine_args)
    interval = max(_count(flags, "stream-interval", default=1), 1)
    step_time = Roofline(
        expert.architecture,
        dtype=expert.dtype,
        quantization=expert.quantization,
        tensor_parallel=expert.tensor_parallel,
        gpu=gpu,
        constants=constants,
        is_eager=_is_set(flags, "enforce-eager", default=False),
        stream_interval=interval,
        api_servers=count_api_servers(expert.engine_args),
    )
    limits = Limits(
        max_num_seqs=expert.max_num_seqs,
        max_num_batched_tokens=expert.max_num_batched_tokens,
        max_model_len=expert.max_model_len,
        kv_capacity_tokens=kv_capacity_tokens,
        long_prefill_token_threshold=_count(flags, "long-prefill-token-threshold", default=0),
        chunked_prefill=_is_set(flags, "enable-chunked-prefill", default=True),
        asynchronous=_is_set(flags, "async-scheduling", default=constants.profile.overlaps),
    )
    request_s = constants.profile.request_s + constants.profile.http_s
    return Serving(step_time, limits, request_s, interval, step_time.send_s)


def count_api_servers(engine_args: Mapping[str, Any]) -> int:
    """Processes that stream answers. Raises ConfigError if the flag holds no number."""
    return max(_count(_normalise(engine_args), "api-server-count", default=1), 1)


def _normalise(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in engine_args.items() if value is not None}


def _is_set(flags: Mapping[str, Any], name: str, *, default: bool) -> bool:
    if flags.get(name):
        return True
    return False if flags.get(f"no-{name}") else default


def _count(flags: Mapping[str, Any], name: str, *, default: int) -> int:
    given = flags.get(name, default)
    if not str(given).isdigit():
        raise ConfigError(f"expert.engine_args: {name}={given!r} is no number. Allowed: 0, 1, 2, ...")
    return int(given)
