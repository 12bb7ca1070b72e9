"""Draws a plan for a person: what sits where, what fits, how long it takes, and every command. Reads the plan only."""

from __future__ import annotations

import shlex

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from erhpc.plan.gpus import GIB
from erhpc.plan.placeholders import Bindings
from erhpc.plan.plan import Plan, PlannedProcess


def draw_plan(plan: Plan) -> RenderableType:
    """What sits where, what fits and how long it takes; hosts are shown as node0, node1, ..."""
    return Group(_draw_head(plan), _draw_replicas(plan), _draw_levels(plan), _draw_cost(plan))


def draw_commands(plan: Plan) -> RenderableType:
    """The command of every process, with the ports of the first band."""
    return Group(Text("\ncommands", style="bold"), *(_draw_command(plan, process) for process in plan.processes))


def draw_notices(plan: Plan) -> RenderableType:
    """What `auto` decided, loud where experts are emulated."""
    notices = list(plan.notices)
    if plan.is_emulated and not any("EMULATED" in notice for notice in notices):
        notices.append("engine=emulated: EMULATED experts; no number of this run is a measurement of a GPU.")
    return Group(*(Text(f"! {notice}", style="bold magenta") for notice in notices))


def _preview(plan: Plan) -> Bindings:
    nodes = [f"node{node}" for node in range(plan.num_nodes)]
    tmp = f"{plan.experiment.cluster.tmp}/erhpc-JOB-RANK"
    return Bindings("RUN", tmp, nodes, plan.ports.base(0))


def _draw_head(plan: Plan) -> RenderableType:
    gpus = f"{plan.num_gpus} {'emulated ' if plan.is_emulated else ''}GPUs ({plan.experiment.cluster.gpu})"
    on_gpus = gpus if plan.num_gpus else "no GPUs (CPU)"
    head = (
        f"{plan.experiment.name}: {len(plan.replicas)} replicas of {len(plan.experiment.experts)} experts, "
        f"{plan.num_nodes} node(s), {on_gpus}, engine {plan.engine}, cluster {plan.cluster}, "
        f"router {plan.experiment.router.policy}"
    )
    return Group(Text(head, style="bold"), draw_notices(plan))


def _draw_replicas(plan: Plan) -> Table:
    table = Table(box=None, title="placement and memory per GPU", title_justify="left")
    for heading in ("replica", "model", "node: GPUs", "port", "weights GiB", "usable GiB", "KV tokens"):
        table.add_column(heading, justify="left" if heading in ("replica", "model", "node: GPUs") else "right")
    bindings = _preview(plan)
    for replica in plan.replicas:
        legs = "; ".join(f"node{leg.node}: {','.join(map(str, leg.gpus)) or '-'}" for leg in replica.legs)
        table.add_row(
            replica.replica,
            replica.model.rpartition("/")[2],
            legs,
            bindings.fill(replica.url).rpartition(":")[2],
            f"{replica.memory.weights_bytes_per_gpu / GIB:.1f}",
            f"{replica.memory.usable_bytes_per_gpu / GIB:.1f}",
            f"{replica.memory.kv_capacity_tokens:,}",
        )
    return table


def _draw_levels(plan: Plan) -> Text:
    workload = plan.experiment.workload
    longest_s = max(level.limit_s for level in plan.levels)
    return Text(
        f"levels: {_describe_points(plan)}; warm-up {workload.warmup_s:g} s, window {workload.measure_s:g} s; "
        f"at most {longest_s:.0f} s each"
    )


def _describe_points(plan: Plan) -> str:
    search = plan.experiment.search
    if search.kind != "none":
        return f"at most {len(plan.levels)}, in search of the largest {search.kind} that meets the SLO"
    points = [level.point for level in plan.levels if level.point is not None]
    if all(point.users is not None for point in points):
        return f"{', '.join(str(point.users) for point in points)} users"
    if all(point.rate_per_s is not None for point in points):
        arrivals = plan.experiment.workload.arrivals.kind
        return f"{', '.join(f'{point.rate_per_s:g}' for point in points)} requests/s ({arrivals})"
    return ", ".join(point.describe() for point in points)


def _draw_cost(plan: Plan) -> Text:
    ports = (
        f"ports shown are those of the first of {plan.ports.num_bands} bands in {plan.ports.first}..{plan.ports.last}; "
        "the job id decides which is taken"
    )
    time = f"expected {plan.expected_s / 60:.1f} min, walltime {plan.walltime_s / 60:.0f} min"
    hours = f"GPU-hours: expected {plan.gpu_hours(plan.expected_s):.2f}, at most {plan.gpu_hours(plan.walltime_s):.2f}"
    asked = f"per node: {plan.gpus_per_node if plan.requests_gpus else 0} GPUs, {plan.cpus_per_node} CPUs asked for"
    return Text(f"{time}; {hours}; {asked}; {ports}")


def _draw_command(plan: Plan, process: PlannedProcess) -> Text:
    bindings = _preview(plan)
    settings = {name: bindings.fill(value) for name, value in process.environment.items()}
    if process.python_path is not None:
        settings["PYTHONPATH"] = bindings.fill(process.python_path)
    if process.gpus:
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, process.gpus)) if plan.uses_gpus else ""
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    command = " ".join(shlex.quote(bindings.fill(word)) for word in process.argv)
    environment = f"    {words} \\\n" if words else ""
    return Text(f"  [node{process.node}] {process.name}:\n{environment}    {command}", overflow="fold")
