"""Other placements of the same experts on the same nodes: which fit, and what the twin predicts for each.

Experts of one model are varied together: tensor-parallel size, replicas, quantisation. Which experts there are, and
where prompts go, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import log
from typing import Any

from erhpc.config import ExperimentConfig, ExpertConfig, RouterConfig
from erhpc.config.predict import UNQUANTIZED
from erhpc.errors import ConfigError, PlacementError
from erhpc.forecast.demand import Asked, AskedSource
from erhpc.forecast.fleet import build_fleet, list_constants
from erhpc.forecast.outcome import read_level
from erhpc.forecast.prediction import check_predictable, choose_window, list_load_points, play
from erhpc.forecast.routes import plan_routes
from erhpc.plan.gpus import find_gpu
from erhpc.plan.levels import LoadPoint
from erhpc.plan.memory import fit_memory, list_tensor_parallels
from erhpc.plan.placement import place_replicas
from erhpc.plan.plan import Plan
from erhpc.routing.classifier import Classifier

MOST_PLACEMENTS = 400
SAME_SHARE = 1.01
"""Throughputs that differ by less are a tie, which fewer GPUs win: no prediction is that exact."""
MOST_WHILE_PLANNING = 12
"""Placements that a plan looks at for the cheapest one: it must not take longer than a reader waits."""
_SIXTEEN_BIT = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way of serving the experts, and what is predicted of it."""

    name: str
    """Per model, e.g. "8 x TP1 awq"."""
    overrides: tuple[str, ...]
    """What to add to the command line to get it; none for the placement as given."""
    num_gpus: int
    kv_capacity_tokens: Mapping[str, int]
    """Of one replica of each expert."""
    row: Mapping[str, Any]
    """As `PredictedLevel.row`."""

    def meets(self, attainment: float) -> bool:
        """Whether enough requests meet the SLO; true without one."""
        return bool(self.row.get("slo_attainment", 1.0) >= attainment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The placements that were tried, best first."""

    load: str
    placements: Sequence[Placement]
    num_nodes: int
    gpus_per_node: int
    num_fitting: int
    """Placements that fit, tried or not."""
    num_misfits: int
    """Placements whose weights, KV cache or replicas do not fit."""
    notices: Sequence[str]

    def find_cheapest(self, attainment: float) -> Placement | None:
        """The one with the fewest GPUs among those that meet the SLO, then with the most tokens per second."""
        meeting = [placement for placement in self.placements if placement.meets(attainment)]
        return min(meeting, key=lambda p: (p.num_gpus, -p.row["output_tokens_per_s"]), default=None)


@dataclass(frozen=True, slots=True)
class _Candidate:
    experiment: ExperimentConfig
    name: str
    overrides: tuple[str, ...]
    num_gpus: int
    kv_capacity_tokens: Mapping[str, int]


def search_placements(
    plan: Plan, gpus_per_node: int, classifier: Classifier | None = None, *, until_met: bool = False
) -> Found:
    """Predict every placement of a plan's experts on `placement.nodes` nodes, or as many as the plan takes.

    Args:
        gpus_per_node: GPUs that each node offers.
        until_met: look at the cheapest only, until one meets the SLO, and at most at MOST_WHILE_PLANNING.

    Raises:
        ConfigError: there are too many placements, or as `prediction.predict`.
        InputError: as `prediction.predict`.
        PlacementError: none fits.
    """
    check_predictable(plan)
    experiment = plan.experiment
    num_nodes = experiment.placement.nodes or plan.num_nodes - experiment.load.nodes
    candidates, num_misfits = _list_candidates(experiment, num_nodes, gpus_per_node)
    point = choose_point(experiment)
    points = list_load_points(experiment)
    level = points.index(point) if point in points else 0
    asked = AskedSource(experiment, engine=plan.engine).draw(point, level)
    tried: list[Placement] = []
    # Of as many GPUs the given one comes first: it must not go untried.
    for candidate in sorted(candidates, key=lambda candidate: (candidate.num_gpus, bool(candidate.overrides))):
        met = [placement for placement in tried if placement.meets(experiment.slo.attainment)]
        dearer = met and candidate.num_gpus > met[0].num_gpus
        if until_met and (dearer or len(tried) == MOST_WHILE_PLANNING):
            break
        tried.append(_predict(candidate, point, asked, classifier))
    return Found(
        load=point.describe(),
        placements=sorted(tried, key=lambda placement: _rank(placement, experiment.slo.attainment)),
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        num_fitting=len(candidates),
        num_misfits=num_misfits,
        notices=plan_routes(experiment, classifier).notices,
    )


def choose_point(experiment: ExperimentConfig) -> LoadPoint:
    """The load that placements are compared at: predict.users, else the largest level."""
    if experiment.predict.users is not None:
        if experiment.workload.arrivals.is_open:
            raise ConfigError(
                f"predict.users={experiment.predict.users} needs a closed loop, and workload.arrivals.kind="
                f"{experiment.workload.arrivals.kind}. Leave it out: the last of workload.rates_per_s counts."
            )
        return LoadPoint(users=experiment.predict.users)
    return max(list_load_points(experiment), key=lambda point: point.users or point.rate_per_s or 0)


def _list_candidates(experiment: ExperimentConfig, num_nodes: int, gpus_per_node: int) -> tuple[list[_Candidate], int]:
    """Those that fit, and how many do not."""
    groups = _group_alike(experiment)
    num_gpus = num_nodes * gpus_per_node
    ways = [list(_list_ways(experiment, names, num_gpus, gpus_per_node)) for names in groups]
    fitting, num_misfits, num_seen = [], 0, 0
    for choice in product(*ways):
        changed = {name: expert for names, expert in zip(groups, choice, strict=True) for name in names}
        held = sum(changed[name].tensor_parallel * changed[name].replicas for name in changed)
        if held > num_gpus:
            continue
        num_seen += 1
        if num_seen > MOST_PLACEMENTS:
            raise ConfigError(
                f"There are more than {MOST_PLACEMENTS} placements. Narrow predict.quantizations=[none], or set "
                "placement.nodes to fewer nodes."
            )
        candidate = _fit(experiment, groups, choice, num_nodes, gpus_per_node)
        if candidate is None:
            num_misfits += 1
        else:
            fitting.append(candidate)
    if not fitting:
        raise PlacementError(
            f"None of {num_misfits} placements fits {num_nodes} node(s) of {gpus_per_node} GPUs. Set placement.nodes "
            "to more nodes, a cluster.gpu with more memory, or predict.quantizations=[none,awq,fp8]."
        )
    return fitting, num_misfits


def _group_alike(experiment: ExperimentConfig) -> list[list[str]]:
    """Names of the experts that are configured alike, group by group."""
    groups: dict[str, list[str]] = {}
    for name, expert in experiment.experts.items():
        groups.setdefault(repr(expert), []).append(name)
    return list(groups.values())


def _list_ways(
    experiment: ExperimentConfig, names: list[str], num_gpus: int, gpus_per_node: int
) -> Iterator[ExpertConfig]:
    """Every way of serving the experts of a group, whether it fits or not."""
    expert = experiment.experts[names[0]]
    own = expert.quantization or UNQUANTIZED
    variants = [own] if expert.weights is not None else list(dict.fromkeys([own, *experiment.predict.quantizations]))
    for parallel in list_tensor_parallels(expert.architecture):
        if parallel > num_gpus or (parallel > gpus_per_node and parallel % gpus_per_node):
            continue
        most = num_gpus // (parallel * len(names))
        counts = sorted({1, 2, 4, 8, 16, 32, 64, expert.replicas, most})
        for variant in variants:
            for replicas in [count for count in counts if 1 <= count <= most]:
                varied = _quantize(expert, variant)
                yield replace(varied, tensor_parallel=parallel, replicas=replicas)


def _quantize(expert: ExpertConfig, variant: str) -> ExpertConfig:
    if variant == (expert.quantization or UNQUANTIZED):
        return expert
    # vLLM's 4-bit kernels compute in float16.
    dtype = "float16" if variant in ("awq", "gptq") else _SIXTEEN_BIT
    # Blocks that were counted, and a kernel that was named, are those of another model.
    changed = replace(expert, dtype=dtype, kv_capacity_tokens=None, kernel=None)
    return replace(changed, quantization=None if variant == UNQUANTIZED else variant)


def _fit(
    experiment: ExperimentConfig,
    groups: list[list[str]],
    choice: Sequence[ExpertConfig],
    num_nodes: int,
    gpus_per_node: int,
) -> _Candidate | None:
    """A candidate, None if it does not fit."""
    of_name = {name: expert for names, expert in zip(groups, choice, strict=True) for name in names}
    experts = {name: of_name[name] for name in experiment.experts}
    gpu = find_gpu(experiment.cluster.gpu)
    placement = replace(experiment.placement, nodes=None)
    # A counted KV cache holds for the parallel size that it was counted with.
    counted = {
        name: expert
        if expert.tensor_parallel == experiment.experts[name].tensor_parallel
        else replace(expert, kv_capacity_tokens=None)
        for name, expert in experts.items()
    }
    try:
        place_replicas(counted, placement, gpus_per_node=gpus_per_node, max_nodes=num_nodes, on_gpus=True)
        kv_tokens = {name: fit_memory(name, expert, gpu).kv_capacity_tokens for name, expert in counted.items()}
    except PlacementError:
        return None
    router, routed = _choose_router(experiment, counted)
    overrides = [text for name in counted for text in _list_changes(name, experiment.experts[name], counted[name])]
    return _Candidate(
        experiment=replace(experiment, experts=counted, router=router),
        name=", ".join(_describe(names, expert) for names, expert in zip(groups, choice, strict=True))
        + ("" if overrides else " (as given)"),
        overrides=(*overrides, *routed),
        num_gpus=sum(expert.tensor_parallel * expert.replicas for expert in counted.values()),
        kv_capacity_tokens=kv_tokens,
    )


def _choose_router(
    experiment: ExperimentConfig, experts: Mapping[str, ExpertConfig]
) -> tuple[RouterConfig, tuple[str, ...]]:
    """The router as it is; where there is none and several replicas need one, the least loaded gets the next."""
    num_replicas = sum(expert.replicas for expert in experts.values())
    if experiment.router.policy != "none" or num_replicas == 1:
        return experiment.router, ()
    return replace(experiment.router, policy="least_loaded"), ("router=least_loaded",)


def _list_changes(name: str, given: ExpertConfig, changed: ExpertConfig) -> Iterator[str]:
    for key in ("tensor_parallel", "replicas", "quantization", "kernel", "dtype", "kv_capacity_tokens"):
        value = getattr(changed, key)
        if value != getattr(given, key):
            yield f"experts.{name}.{key}={'null' if value is None else value}"


def _describe(names: Sequence[str], expert: ExpertConfig) -> str:
    experts = names[0] if len(names) == 1 else f"{len(names)} experts"
    variant = expert.quantization or f"{expert.dtype}"
    replicas = "replica" if expert.replicas == 1 else "replicas"
    return f"{experts}: {expert.replicas} {replicas} of TP{expert.tensor_parallel} {variant}"


def _predict(candidate: _Candidate, point: LoadPoint, asked: Asked, classifier: Classifier | None) -> Placement:
    experiment = candidate.experiment
    routes = plan_routes(experiment, classifier)
    fleet = build_fleet(
        experiment, routes.pools, routes.rule, candidate.kv_capacity_tokens, list_constants(experiment, 0)[0]
    )
    prediction = play(experiment, point, asked, routes, fleet)
    return Placement(
        name=candidate.name,
        overrides=candidate.overrides,
        num_gpus=candidate.num_gpus,
        kv_capacity_tokens=candidate.kv_capacity_tokens,
        row=read_level(prediction, choose_window(experiment, prediction), experiment.slo),
    )


def _rank(placement: Placement, attainment: float) -> tuple[bool, int, int, float]:
    rate = max(placement.row["output_tokens_per_s"], 1e-3)
    return not placement.meets(attainment), -round(log(rate) / log(SAME_SHARE)), placement.num_gpus, -rate
