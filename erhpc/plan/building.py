"""Builds the plan: places, fits, names, numbers and commands every process of an experiment. Pure, no I/O.

It knows the order in which the parts of a plan depend on each other; each part's rules live in its own module.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from erhpc.config import ExperimentConfig
from erhpc.errors import PlacementError
from erhpc.plan import commands
from erhpc.plan.affinity import note_affinity
from erhpc.plan.duration import load_timeout_s, plan_duration, plan_levels
from erhpc.plan.emulation import group_emulated, note_rehearsal
from erhpc.plan.gpus import find_gpu
from erhpc.plan.memory import MemoryFit, check_main_memory, compute_weights_bytes, fit_memory
from erhpc.plan.placement import PlacedReplica, place_replicas
from erhpc.plan.plan import Plan, PlannedProcess, PlannedReplica
from erhpc.plan.ports import ENGINE_PORTS, GATEWAY_PORT, PortMap, build_port_map, replica_port
from erhpc.plan.site import Setting

CPUS_PER_GPU = 4
BLIND_RULES = {
    "least_loaded": "takes turns",
    "power_of_two": "picks at random",
    "prefix_affinity": "passes nobody over",
}
"""What becomes of the rules that go by requests in flight where those are not known."""


@dataclass(frozen=True, kw_only=True)
class _Layout:
    num_nodes: int
    placed: tuple[PlacedReplica, ...]
    fits: dict[str, MemoryFit]
    ports: PortMap
    engine_ports: int
    client_nodes: tuple[int, ...]


def build_plan(experiment: ExperimentConfig, setting: Setting, *, python: str) -> Plan:
    """Plan a run: `python` is the interpreter of erhpc's own processes.

    Raises:
        ConfigError: anything about the experiment that cannot work on this site.
    """
    layout = _lay_out(experiment, setting)
    replicas = _plan_replicas(experiment, layout)
    levels = plan_levels(experiment.workload, experiment.search)
    load_limit_s = max(replica.load_timeout_s for replica in replicas)
    duration = plan_duration(experiment, levels, load_limit_s, emulated=setting.engine == "emulated")
    processes = _plan_processes(experiment, setting, layout, replicas, python)
    gpus_per_node = _count_gpus_per_node(layout)
    return Plan(
        experiment=experiment,
        cluster=setting.cluster,
        engine=setting.engine,
        num_nodes=layout.num_nodes,
        gpus_per_node=gpus_per_node,
        requests_gpus=setting.requests_gpus,
        cpus_per_node=_count_cpus(experiment, setting, processes, gpus_per_node),
        replicas=replicas,
        processes=processes,
        levels=levels,
        ports=layout.ports,
        parallel_loads=experiment.engine.parallel_loads,
        expected_s=duration.expected_s,
        walltime_s=duration.walltime_s,
        notices=tuple(
            filter(
                None,
                [
                    *setting.notices,
                    duration.notice,
                    _warn_of_redirects(experiment),
                    note_affinity(experiment, setting.engine),
                    note_rehearsal(experiment.engine, is_emulated=setting.engine == "emulated"),
                    _note_cut_prompts(experiment),
                ],
            )
        ),
    )


def _lay_out(experiment: ExperimentConfig, setting: Setting) -> _Layout:
    on_gpus = setting.engine == "emulated" or experiment.engine.device == "cuda"
    gpu = find_gpu(experiment.cluster.gpu) if on_gpus else None
    fits = {name: fit_memory(name, expert, gpu) for name, expert in experiment.experts.items()}
    if gpu is None and setting.memory_bytes is not None:
        check_main_memory(experiment.experts, setting.memory_bytes)
    num_nodes, placed = place_replicas(
        experiment.experts,
        experiment.placement,
        gpus_per_node=setting.gpus_per_node if on_gpus else 0,
        max_nodes=_count_expert_nodes(experiment),
        on_gpus=on_gpus,
    )
    engine_ports = ENGINE_PORTS if setting.engine == "vllm" else 0
    ports = build_port_map(experiment.cluster.ports, num_replicas=len(placed), engine_ports=engine_ports)
    client_nodes = tuple(range(num_nodes, num_nodes + experiment.load.nodes)) or (0,)
    return _Layout(
        num_nodes=num_nodes + experiment.load.nodes,
        placed=placed,
        fits=fits,
        ports=ports,
        engine_ports=engine_ports,
        client_nodes=client_nodes,
    )


def _warn_of_redirects(experiment: ExperimentConfig) -> str | None:
    """What a gateway that sees no answers cannot do for this experiment, None if nothing."""
    router = experiment.router
    rules = {"policy": router.policy}
    if any(expert.replicas > 1 for expert in experiment.experts.values()):
        rules["replica_policy"] = router.replica_policy
    blind = [f"router.{key}={rule} {BLIND_RULES[rule]}" for key, rule in rules.items() if rule in BLIND_RULES]
    if router.overflow != "none":
        blind.append(f"router.overflow={router.overflow} sees only who is down")
    if not experiment.redirects or not blind:
        return None
    return f"gateway.data_path=redirect: the gateway does not see how loaded the replicas are: {', '.join(blind)}."


def _note_cut_prompts(experiment: ExperimentConfig) -> str | None:
    """Which lengths of prompts are more than the experts take, None if none."""
    longest = experiment.longest_prompt_tokens
    cut = sorted({tokens for tokens in experiment.workload.input_tokens_of_levels if tokens > longest})
    if not cut:
        return None
    return (
        f"workload.input_tokens_of_levels: {', '.join(map(str, cut))} cut to {longest}, which is what the experts' "
        "max_model_len leaves beside an answer."
    )


def _count_expert_nodes(experiment: ExperimentConfig) -> int:
    """Most nodes that experts may take, the clients' own nodes set aside."""
    num_nodes = experiment.cluster.max_nodes - experiment.load.nodes
    if num_nodes < 1:
        raise PlacementError(
            f"load.nodes={experiment.load.nodes} leaves no node for the experts: cluster.max_nodes="
            f"{experiment.cluster.max_nodes}. Raise cluster.max_nodes, or set load.nodes=0: clients then share the "
            "first node."
        )
    return num_nodes


def _plan_replicas(experiment: ExperimentConfig, layout: _Layout) -> tuple[PlannedReplica, ...]:
    node_bytes: Counter[int] = Counter()
    for placed in layout.placed:
        for leg in placed.legs:
            node_bytes[leg.node] += compute_weights_bytes(experiment.experts[placed.expert]) // len(placed.legs)
    return tuple(
        PlannedReplica(
            replica=placed.replica,
            expert=placed.expert,
            model=experiment.experts[placed.expert].model,
            served_name=placed.expert,
            legs=placed.legs,
            memory=layout.fits[placed.expert],
            url=f"http://{{address{placed.legs[0].node}}}:{{port{replica_port(index, layout.engine_ports)}}}",
            load_timeout_s=load_timeout_s(experiment.engine, max(node_bytes[leg.node] for leg in placed.legs)),
        )
        for index, placed in enumerate(layout.placed)
    )


def _plan_processes(
    experiment: ExperimentConfig,
    setting: Setting,
    layout: _Layout,
    replicas: tuple[PlannedReplica, ...],
    python: str,
) -> tuple[PlannedProcess, ...]:
    processes: list[PlannedProcess] = []
    numbered = [(replica, replica_port(index, layout.engine_ports)) for index, replica in enumerate(replicas)]
    if setting.engine == "emulated":
        for group in group_emulated(numbered, setting.num_cores, experiment.engine.faults):
            processes.append(commands.command_emulated_experts(experiment, group, python))
    else:
        for replica, port in numbered:
            processes.extend(commands.command_vllm_expert(experiment, replica, port, setting.vllm_python))
    routed = experiment.router.policy != "none"
    if routed:
        is_emulated = setting.engine == "emulated"
        processes.append(commands.command_gateway(experiment, replicas, GATEWAY_PORT, python, is_emulated=is_emulated))
    if experiment.load.calibrate:
        processes.append(commands.command_calibration(experiment, layout.client_nodes[0], python))
    for level in range(len(plan_levels(experiment.workload, experiment.search))):
        for worker in range(experiment.load.num_workers):
            node = layout.client_nodes[worker % len(layout.client_nodes)]
            gateway = GATEWAY_PORT if routed else None
            processes.append(commands.command_client(experiment, replicas, level, worker, node, gateway, python))
    return tuple(processes)


def _count_gpus_per_node(layout: _Layout) -> int:
    held: Counter[int] = Counter()
    for placed in layout.placed:
        for leg in placed.legs:
            held[leg.node] += len(leg.gpus)
    return max(held.values(), default=0)


def _count_cpus(
    experiment: ExperimentConfig, setting: Setting, processes: tuple[PlannedProcess, ...], gpus_per_node: int
) -> int:
    if experiment.cluster.cpus_per_node is not None:
        return experiment.cluster.cpus_per_node
    # Levels run one after the other, so the first one's clients count for all.
    per_node: Counter[int] = Counter()
    for process in processes:
        if process.level in (None, 0) and process.kind != "calibration":
            per_node[process.node] += experiment.gateway.processes if process.kind == "gateway" else 1
    return max(CPUS_PER_GPU * gpus_per_node if setting.requests_gpus else 0, *per_node.values())
