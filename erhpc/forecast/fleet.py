"""The replicas of an experiment as models: step times and limits, with constants as published or drawn from ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from erhpc.config import ExperimentConfig, ExpertConfig
from erhpc.twin.decode_times import DecodeTimes
from erhpc.twin.demand import GatewayModel, ReplicaModel
from erhpc.twin.hardware import Constants, draw_constants, load_constants
from erhpc.twin.serving import Serving, describe_serving

GATEWAY_SERVICE_S = 0.2e-3
"""What a request keeps erhpc's gateway busy: about what `make bench-gateway` sees per short answer on one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All replicas of an experiment under one set of constants."""

    pools: Sequence[Sequence[ReplicaModel]]
    gateway: GatewayModel


ConstantsOf = Mapping[tuple[str | None, str | None], Constants]
"""Constants by quantisation and kernel."""


def list_constants(experiment: ExperimentConfig, draws: int) -> list[ConstantsOf]:
    """The constants themselves, then `draws` sets from the ranges of their evidence, the same for the same seed.

    Raises:
        ConfigError: the GPU's file has no timing, or kernel or profile are not known.
    """
    gpu, profile = experiment.cluster.gpu, experiment.engine.profile
    sets: list[dict[tuple[str | None, str | None], Constants]] = [{} for _ in range(1 + draws)]
    for expert in experiment.experts.values():
        key = (expert.quantization, expert.kernel)
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
    known: dict[str, Serving] = {}
    built = []
    for names in pools:
        models: list[ReplicaModel] = []
        for name in names:
            expert = experiment.experts[name]
            alike = repr(expert)
            if alike not in known:
                known[alike] = _describe(experiment, expert, kv_capacity_tokens[name], constants_of)
            serving = known[alike]
            models += [
                ReplicaModel(
                    replica=f"{name}-{index}",
                    expert=name,
                    limits=serving.limits,
                    step_time=serving.step_time,
                    send_s=serving.send_s,
                )
                for index in range(expert.replicas)
            ]
        built.append(models)
    request_s = max(serving.request_s for serving in known.values())
    service_s = 0.0 if experiment.router.policy == "none" else GATEWAY_SERVICE_S
    return Fleet(pools=built, gateway=GatewayModel(service_s=service_s, latency_s=request_s, rule=rule))


def _describe(
    experiment: ExperimentConfig, expert: ExpertConfig, kv_capacity_tokens: int, constants_of: ConstantsOf
) -> Serving:
    """How an expert is served, with its model of step times ready for several levels."""
    serving = describe_serving(
        expert,
        gpu=experiment.cluster.gpu,
        profile=experiment.engine.profile,
        kv_capacity_tokens=kv_capacity_tokens,
        constants=constants_of[expert.quantization, expert.kernel],
    )
    return replace(serving, step_time=DecodeTimes(serving.step_time, kv_capacity_tokens))
