"""The replicas of an experiment as models: step times and limits, with constants as published or drawn from ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from erhpc.config import ExperimentConfig, ExpertConfig
from erhpc.twin.decode_times import DecodeTimes
from erhpc.twin.demand import GatewayModel, ReplicaModel
from erhpc.twin.hardware import DEFAULT_PROFILE, Constants, draw_constants, load_constants
from erhpc.twin.scheduler import Limits
from erhpc.twin.step_time import Roofline

GATEWAY_SERVICE_S = 0.2e-3
"""What a request keeps erhpc's gateway busy: about what `make bench-gateway` sees per short answer on one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All replicas of an experiment under one set of constants."""

    pools: Sequence[Sequence[ReplicaModel]]
    gateway: GatewayModel


ConstantsOf = Mapping[tuple[str | None, str | None], Constants]
"""Constants by quantisation and kernel."""


def find_profile(experiment: ExperimentConfig) -> str:
    """The engine profile that an experiment names, else the default."""
    return getattr(experiment.engine, "profile", None) or DEFAULT_PROFILE


def find_kernel(expert: ExpertConfig) -> str | None:
    """The matrix kernel that an expert names; None: the default of its quantisation."""
    return getattr(expert, "kernel", None)


def list_constants(experiment: ExperimentConfig, draws: int) -> list[ConstantsOf]:
    """The constants themselves, then `draws` sets from the ranges of their evidence, the same for the same seed.

    Raises:
        ConfigError: the GPU's file has no timing, or kernel or profile are not known.
    """
    gpu, profile = experiment.cluster.gpu, find_profile(experiment)
    sets: list[dict[tuple[str | None, str | None], Constants]] = [{} for _ in range(1 + draws)]
    for expert in experiment.experts.values():
        key = (expert.quantization, find_kernel(expert))
        if key in sets[0]:
            continue
        quantization, kernel = key
        sets[0][key] = load_constants(gpu, quantization=quantization, kernel=kernel, profile=profile)
        if draws:
            # One stream for all kernels: of one card and one host there is one truth.
            rng = Random(experiment.seed)
            drawn = draw_constants(rng, draws, gpu, quantization=quantization, kernel=kernel, profile=profile)
            for held, constants in zip(sets[1:], drawn, strict=True):
                held[key] = constants
    return list(sets)


def build_fleet(
    experiment: ExperimentConfig,
    pools: Sequence[Sequence[str]],
    rule: str,
    kv_capacity_tokens: Mapping[str, int],
    constants_of: ConstantsOf,
) -> Fleet:
    """Model all replicas of `pools` (names of experts); equal experts share one model of step times.

    Args:
        kv_capacity_tokens: of each expert's replicas, as planned.

    Raises:
        ConfigError: a shape, a parallel size or a limit that cannot be.
    """
    step_times: dict[str, DecodeTimes] = {}
    built = []
    for names in pools:
        models: list[ReplicaModel] = []
        for name in names:
            expert = experiment.experts[name]
            constants = constants_of[expert.quantization, find_kernel(expert)]
            limits = Limits(
                max_num_seqs=expert.max_num_seqs,
                max_num_batched_tokens=expert.max_num_batched_tokens,
                max_model_len=expert.max_model_len,
                kv_capacity_tokens=kv_capacity_tokens[name],
                asynchronous=constants.profile.overlaps,
            )
            alike = repr(expert)
            if alike not in step_times:
                step_times[alike] = _build_step_time(experiment, expert, constants, limits)
            models += [
                ReplicaModel(replica=f"{name}-{index}", expert=name, limits=limits, step_time=step_times[alike])
                for index in range(expert.replicas)
            ]
        built.append(models)
    request_s = max(constants.profile.request_s for constants in constants_of.values())
    service_s = 0.0 if experiment.router.policy == "none" else GATEWAY_SERVICE_S
    return Fleet(pools=built, gateway=GatewayModel(service_s=service_s, latency_s=request_s, rule=rule))


def _build_step_time(
    experiment: ExperimentConfig, expert: ExpertConfig, constants: Constants, limits: Limits
) -> DecodeTimes:
    roofline = Roofline(
        expert.architecture,
        dtype=expert.dtype,
        quantization=expert.quantization,
        tensor_parallel=expert.tensor_parallel,
        gpu=experiment.cluster.gpu,
        constants=constants,
        is_eager=bool(expert.engine_args.get("enforce-eager") or expert.engine_args.get("enforce_eager")),
    )
    return DecodeTimes(roofline, limits.kv_capacity_tokens)
