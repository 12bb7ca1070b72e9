"""How far the step times are from measurements: errors per slice, and how many lie in the intervals.

A slice is one engine profile, GPU, kernel and kind of number; what this project measured makes slices of its own.
Recorded errors and the test that compares with them lie in tests/; `python -m tests.bench.twin` prints the tables.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import exp, isfinite, log
from random import Random
from statistics import fmean, median
from typing import Any

import numpy as np

from erhpc.config import ArchitectureConfig, ExpertConfig
from erhpc.errors import InputError, PlacementError
from erhpc.plan.gpus import find_gpu
from erhpc.plan.memory import KV_ELEMENT_BYTES, fit_memory
from erhpc.twin.demand import ClosedLoop, Demand, GatewayModel, ReplicaModel
from erhpc.twin.evidence import NORMAL_95
from erhpc.twin.hardware import DATA, Choose, Constants, Kernel, central, draw_constants, load_constants
from erhpc.twin.measured import OWN_SOURCE, Fact
from erhpc.twin.serving import describe_serving
from erhpc.twin.simulation import simulate
from erhpc.twin.step_time import Roofline
from erhpc.twin.trial import (
    STARVED_SEQS,
    Engine,
    Outcome,
    draw_arrivals_s,
    draw_chat_lengths,
    run_at_maximum,
    run_requests,
    run_static_batch,
)

REQUESTS_PER_USER = 40
"""Requests of a closed loop per user: enough for a steady median."""
HTTP_REQUESTS_PER_USER = 4
"""Of a level over HTTP, the first and the last of each user not counted."""
HTTP_STARTS_PER_S = 1000
"""Users that begin per second, as clients let them."""
_SEED = 20260101
_TEN_POWER = {"out_tok_s": 1.0, "ttft_ms": 1e3, "tpot_ms": 1e3}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measurement beside its prediction; low and high bound a 90 % interval where one was asked for."""

    fact: Fact
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.fact.value - 1

    @property
    def is_covered(self) -> bool:
        """Whether the measurement lies in the interval."""
        return self.low <= self.fact.value <= self.high


@dataclass(frozen=True, slots=True)
class SliceError:
    """Errors of one slice."""

    name: tuple[str, ...]
    num_facts: int
    median: float
    p90: float
    bias: float
    """Median of the signed errors."""
    coverage: float
    """Share of the measurements in their intervals."""


def slice_of(fact: Fact) -> tuple[str, ...]:
    """The slice a fact belongs to."""
    own = " (own)" if is_own(fact) else ""
    return fact.profile, fact.gpu + own, fact.kernel, fact.measure


def is_own(fact: Fact) -> bool:
    """Whether this project measured it; only the API server's constant is taken from such facts."""
    return fact.source.startswith(OWN_SOURCE)


def compare_facts(facts: Iterable[Fact], *, draws: int = 0, choose: Choose = central) -> list[Comparison]:
    """Predict every fact that is not left out.

    Args:
        facts: of the shipped table, or others.
        draws: more than 1 sets of constants give the intervals.
        choose: which value each constant has in the prediction itself.
    """
    kept = [fact for fact in facts if not fact.left_out]
    outcomes: dict[Fact, list[Outcome]] = {}
    comparisons = []
    for fact in kept:
        trial = replace(fact, measure="", value=0.0, source="")
        if trial not in outcomes:
            outcomes[trial] = [_predict(trial, constants) for constants in _constant_sets(trial, draws, choose)]
        comparisons.append(_compare(fact, outcomes[trial]))
    return comparisons


def summarise(comparisons: Sequence[Comparison], key: Callable[[Fact], tuple[str, ...]] = slice_of) -> list[SliceError]:
    """Errors by slice, or by another key, in the order of their names."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(key(comparison.fact), []).append(comparison)
    return [_summarise(name, groups[name]) for name in sorted(groups)]


def explain_left_out(fact: Fact) -> str:
    """Why the model can't answer for a fact; empty when it can."""
    roofline = _build(fact, None)
    capacity = _count_kv_tokens(fact, roofline)
    if fact.load in ("static", "maximum"):
        fitting = capacity // (fact.input_tokens + fact.output_tokens)
        if fitting < min(fact.level or STARVED_SEQS, STARVED_SEQS):
            return (
                "the KV cache holds fewer sequences than the load has: its size decides, which the source doesn't give"
            )
    if fact.measure == "ttft_ms" and fact.load == "rate":
        engine = _engine(fact, roofline)
        capacity_tok_s = run_at_maximum(engine, fact.input_tokens, fact.output_tokens).out_tok_s
        if fact.level * fact.output_tokens > capacity_tok_s:
            return "more requests arrive than are served: the wait depends on how long the test ran"
    return ""


@cache
def read_shape(model: str) -> ArchitectureConfig:
    """The shape of a model of the table. Raises InputError if it is not known."""
    shapes = tomllib.loads((DATA / "models.toml").read_text(encoding="utf-8"))
    if model not in shapes:
        raise InputError(
            f"model {model!r} has no shape. Allowed: {', '.join(shapes)}; add it to {DATA / 'models.toml'}."
        )
    return ArchitectureConfig(**shapes[model])


def choose_constants(fact: Fact, choose: Choose = central) -> Constants:
    """The constants of what a fact was measured on."""
    return load_constants(fact.gpu, quantization=None, kernel=fact.kernel, profile=fact.profile, choose=choose)


def _constant_sets(fact: Fact, draws: int, choose: Choose) -> list[Constants]:
    """The values themselves, then `draws` sets from their ranges, the same for every fact of a machine and engine."""
    chosen: dict[str, Any] = {"quantization": None, "kernel": fact.kernel, "profile": fact.profile}
    rng = Random(f"{_SEED} {fact.gpu} {fact.kernel} {fact.profile}")
    return [choose_constants(fact, choose), *(draw_constants(rng, draws, fact.gpu, **chosen) if draws else [])]


def _build(fact: Fact, constants: Constants | None) -> Roofline:
    return Roofline(
        read_shape(fact.model),
        dtype="bfloat16",
        quantization=None,
        tensor_parallel=fact.tensor_parallel,
        gpu=fact.gpu,
        kernel=fact.kernel,
        profile=fact.profile,
        constants=constants,
        kv_element_bytes=fact.kv_element_bytes,
        is_eager=fact.is_eager,
    )


def _describe_expert(fact: Fact, kernel: Kernel) -> ExpertConfig:
    return ExpertConfig(
        model=fact.model,
        architecture=read_shape(fact.model),
        quantization=kernel.stored_as or None,
        kernel=fact.kernel,
        tensor_parallel=fact.tensor_parallel,
        gpu_memory_utilization=fact.memory_share,
        max_model_len=0,
        max_num_seqs=fact.max_num_seqs,
        max_num_batched_tokens=fact.max_num_batched_tokens,
        engine_args={"stream-interval": fact.stream_interval, "enforce-eager": fact.is_eager},
    )


def _count_kv_tokens(fact: Fact, roofline: Roofline) -> int:
    """Tokens of KV cache, by the same arithmetic as a plan's; 0 when not one fits."""
    expert = _describe_expert(fact, roofline.constants.kernel)
    try:
        tokens = fit_memory("measured", expert, find_gpu(fact.gpu)).kv_capacity_tokens
    except PlacementError:
        return 0
    return int(tokens * KV_ELEMENT_BYTES / fact.kv_element_bytes)


def _engine(fact: Fact, roofline: Roofline) -> Engine:
    profile = roofline.constants.profile
    return Engine(
        step_time=roofline,
        mixes_prefill=profile.mixes_prefill,
        request_s=profile.request_s,
        max_num_seqs=fact.max_num_seqs,
        max_num_batched_tokens=fact.max_num_batched_tokens,
        kv_capacity_tokens=_count_kv_tokens(fact, roofline),
    )


def _predict_http(fact: Fact, constants: Constants) -> Outcome:
    """What a plan would predict of such users."""
    kv_tokens = _count_kv_tokens(fact, _build(fact, constants))
    expert = replace(_describe_expert(fact, constants.kernel), max_model_len=fact.input_tokens + fact.output_tokens)
    serving = describe_serving(
        expert, gpu=fact.gpu, profile=fact.profile, kv_capacity_tokens=kv_tokens, constants=constants
    )
    model = ReplicaModel(replica=fact.model, expert=fact.model, limits=serving.limits, step_time=serving.step_time)
    users = int(fact.level)
    load = ClosedLoop(users=users, num_requests=HTTP_REQUESTS_PER_USER * users, ramp_s=users / HTTP_STARTS_PER_S)
    demand = Demand(prompt_tokens=[fact.input_tokens], answer_tokens=[fact.output_tokens])
    prediction = simulate([[model]], demand, load, GatewayModel(latency_s=serving.request_s))
    counted = [index for index, number in enumerate(prediction.sequence) if 0 < number < HTTP_REQUESTS_PER_USER - 1]
    sent_s, first_s, last_s = prediction.sent_s, prediction.first_token_s, prediction.last_token_s
    return Outcome(
        ttft_s=float(np.median((first_s - sent_s)[counted])),
        tpot_s=float(np.median((last_s - first_s)[counted]) / max(fact.output_tokens - 1, 1)),
        # As the source has it: users times tokens over the mean time of an answer (Little's law).
        out_tok_s=users * fact.output_tokens / float(np.mean((last_s - sent_s)[counted])),
    )


def _predict(fact: Fact, constants: Constants) -> Outcome:
    if fact.load == "http":
        return _predict_http(fact, constants)
    engine = _engine(fact, _build(fact, constants))
    if fact.load == "static":
        return run_static_batch(engine, int(fact.level), fact.input_tokens, fact.output_tokens)
    if fact.load == "maximum":
        return run_at_maximum(engine, fact.input_tokens, fact.output_tokens)
    rng = Random(_SEED)
    if fact.load == "rate":
        lengths = draw_chat_lengths(fact.num_requests, rng)
        return run_requests(engine, lengths, arrivals_s=draw_arrivals_s(len(lengths), fact.level, rng))
    if fact.load == "burst":
        lengths = draw_chat_lengths(int(fact.level), rng)
        return run_requests(engine, lengths, arrivals_s=[0.0] * len(lengths))
    users = int(fact.level)
    return run_requests(engine, draw_chat_lengths(REQUESTS_PER_USER * users, rng), users=users)


def _read_measure(fact: Fact, outcome: Outcome) -> float:
    value = {"out_tok_s": outcome.out_tok_s, "ttft_ms": outcome.ttft_s, "tpot_ms": outcome.tpot_s}[fact.measure]
    value *= _TEN_POWER[fact.measure]
    if not (isfinite(value) and value > 0):
        raise ArithmeticError(f"the prediction of {fact} is {value}")
    return value


def _compare(fact: Fact, outcomes: Sequence[Outcome]) -> Comparison:
    """The first outcome is the prediction; the spread of the others, in logarithms, is the interval around it."""
    predicted, *drawn = [_read_measure(fact, outcome) for outcome in outcomes]
    if len(drawn) < 2:
        return Comparison(fact, predicted, predicted, predicted)
    deviation = fmean(log(value / predicted) ** 2 for value in drawn) ** 0.5
    reach = exp(NORMAL_95 * deviation)
    return Comparison(fact, predicted, predicted / reach, predicted * reach)


def _summarise(name: tuple[str, ...], comparisons: Sequence[Comparison]) -> SliceError:
    absolute = sorted(abs(comparison.error) for comparison in comparisons)
    return SliceError(
        name=name,
        num_facts=len(absolute),
        median=median(absolute),
        p90=absolute[min(len(absolute) - 1, int(0.9 * len(absolute)))],
        bias=median(comparison.error for comparison in comparisons),
        coverage=fmean(comparison.is_covered for comparison in comparisons),
    )
