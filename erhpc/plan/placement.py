"""Which replica holds which GPUs of which node. Pure; it knows neither memory nor ports nor commands."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.config import ExpertConfig, PlacementConfig
from erhpc.errors import PlacementError


@dataclass(frozen=True)
class Leg:
    """The part of a replica on one node: its GPUs, numbered from 0 within the job's share of that node."""

    node: int
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class PlacedReplica:
    """One replica and its legs; the first leg answers requests."""

    replica: str
    expert: str
    legs: tuple[Leg, ...]


@dataclass(frozen=True)
class _Wish:
    replica: str
    expert: str
    gpus: int


def place_replicas(
    experts: dict[str, ExpertConfig], placement: PlacementConfig, *, gpus_per_node: int, max_nodes: int, on_gpus: bool
) -> tuple[int, tuple[PlacedReplica, ...]]:
    """Give every replica its GPUs; returns the number of nodes taken and the replicas in the experts' order.

    Raises:
        PlacementError: the replicas do not fit; the message says what is missing and what to change.
    """
    wishes = [
        _Wish(f"{name}-{index}", name, expert.tensor_parallel if on_gpus else 0)
        for name, expert in experts.items()
        for index in range(expert.replicas)
    ]
    if on_gpus:
        for wish in wishes:
            _check_divisible(wish, gpus_per_node)
    _check_max_nodes(placement, max_nodes)
    first = placement.nodes or 1
    last = placement.nodes or max_nodes
    for num_nodes in range(first, last + 1):
        placed = _try_nodes(wishes, placement.strategy, num_nodes, gpus_per_node)
        if placed is not None:
            order = {wish.replica: position for position, wish in enumerate(wishes)}
            return num_nodes, tuple(sorted(placed, key=lambda replica: order[replica.replica]))
    raise PlacementError(_explain_misfit(wishes, placement, last, gpus_per_node))


def _check_divisible(wish: _Wish, gpus_per_node: int) -> None:
    if gpus_per_node < 1:
        raise PlacementError(
            f"experts.{wish.expert} needs {wish.gpus} GPUs and the nodes have none (cluster.gpus_per_node=0). "
            "Choose a cluster with GPUs, or engine=emulated with cluster.gpus_per_node=8."
        )
    if wish.gpus > gpus_per_node and wish.gpus % gpus_per_node:
        raise PlacementError(
            f"experts.{wish.expert}.tensor_parallel={wish.gpus} spans nodes of {gpus_per_node} GPUs and must be a "
            f"multiple of it. Allowed: up to {gpus_per_node}, or {2 * gpus_per_node}, {3 * gpus_per_node}, ..."
        )


def _check_max_nodes(placement: PlacementConfig, max_nodes: int) -> None:
    if placement.nodes is not None and placement.nodes > max_nodes:
        raise PlacementError(
            f"placement.nodes={placement.nodes} is more than cluster.max_nodes={max_nodes}. "
            "Lower it or raise cluster.max_nodes."
        )


def _try_nodes(wishes: list[_Wish], strategy: str, num_nodes: int, gpus_per_node: int) -> list[PlacedReplica] | None:
    free = [list(range(gpus_per_node)) for _ in range(num_nodes)]
    tenants = [0] * num_nodes
    placed = []
    for wish in sorted(wishes, key=lambda wish: -wish.gpus):  # stable: big ones first leave no holes
        legs = _take(wish, strategy, free, tenants, gpus_per_node)
        if legs is None:
            return None
        placed.append(PlacedReplica(wish.replica, wish.expert, legs))
    return placed


def _take(
    wish: _Wish, strategy: str, free: list[list[int]], tenants: list[int], gpus_per_node: int
) -> tuple[Leg, ...] | None:
    num_legs = max(1, -(-wish.gpus // gpus_per_node)) if gpus_per_node else 1
    per_leg = wish.gpus // num_legs
    nodes = [n for n in range(len(free)) if len(free[n]) >= per_leg and not (strategy == "one_per_node" and tenants[n])]
    if num_legs > 1:
        nodes = [n for n in nodes if not tenants[n]]
    if strategy == "spread":
        nodes.sort(key=lambda n: (tenants[n], n))
    if len(nodes) < num_legs:
        return None
    legs = []
    for node in nodes[:num_legs]:
        legs.append(Leg(node, tuple(free[node][:per_leg])))
        del free[node][:per_leg]
        tenants[node] += 1
    return tuple(legs)


def _explain_misfit(wishes: list[_Wish], placement: PlacementConfig, num_nodes: int, gpus_per_node: int) -> str:
    needed, offered = sum(wish.gpus for wish in wishes), num_nodes * gpus_per_node
    wanted = ", ".join(f"{wish.replica}: {wish.gpus}" for wish in wishes)
    lead = (
        f"{len(wishes)} replicas need {needed} GPUs ({wanted}) and do not fit {num_nodes} node(s) of {gpus_per_node} "
        f"GPUs with placement={placement.strategy}"
    )
    missing = f": {needed - offered} GPUs missing" if needed > offered else ""
    return (
        f"{lead}{missing}. Raise placement.nodes or cluster.max_nodes, lower tensor_parallel or replicas of an expert, "
        "or choose placement=packed."
    )
