"""The plan of a run as plain data: what the job executes and what is saved beside the results.

It knows how to be written to and read from JSON; `erhpc.plan.building` makes one from an experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from erhpc.config import ExperimentConfig
from erhpc.errors import SchemaMismatch
from erhpc.plan.levels import LoadPoint
from erhpc.plan.memory import MemoryFit
from erhpc.plan.placement import Leg
from erhpc.plan.ports import PortMap

PLAN_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class PlannedReplica:
    """One replica: where it sits, what fits, where it answers (placeholders as in erhpc.plan.placeholders)."""

    replica: str
    expert: str
    model: str
    served_name: str
    legs: tuple[Leg, ...]
    memory: MemoryFit
    url: str
    load_timeout_s: float


@dataclass(frozen=True)
class ReadyCheck:
    """How to tell that a server serves: base URL, the model it must list and answer for, and the patience."""

    url: str
    model: str
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class PlannedProcess:
    """One process: its node, its exact command and what it needs before it may start."""

    name: str
    kind: Literal["expert", "gateway", "client", "calibration"]
    node: int
    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    python_path: str | None = None
    """A folder that its Python searches for modules before those of an inherited PYTHONPATH."""
    gpus: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    """Offsets within the port band that the process binds itself."""
    spec: dict[str, Any] | None = None
    """Written to the run's specs/<name>.json before the start; its path is in argv."""
    ready: tuple[ReadyCheck, ...] = ()
    """All that must serve, in the order of `ports`; none: being started is enough."""
    stop_timeout_s: float = 10.0
    replicas: tuple[str, ...] = ()
    """The replicas that it is, or is a leg of; only emulated ones share a process."""
    level: int | None = None
    """Of a client: the level it makes the load of."""


@dataclass(frozen=True, kw_only=True)
class PlannedLevel:
    """One load level and the longest it may take."""

    level: int
    point: LoadPoint | None
    """The load; None if a search decides it once the levels before are measured."""
    expected_s: float
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run needs, complete and checked."""

    version: int = PLAN_VERSION
    experiment: ExperimentConfig
    cluster: str
    engine: str
    num_nodes: int
    gpus_per_node: int
    """GPUs to ask for on each node; emulated ones are never asked for unless cluster.request_gpus says so."""
    requests_gpus: bool
    cpus_per_node: int
    replicas: tuple[PlannedReplica, ...]
    processes: tuple[PlannedProcess, ...]
    levels: tuple[PlannedLevel, ...]
    ports: PortMap
    parallel_loads: int
    expected_s: float
    walltime_s: float
    notices: tuple[str, ...] = ()

    @property
    def num_gpus(self) -> int:
        """GPUs that replicas hold, emulated ones included."""
        return sum(len(leg.gpus) for replica in self.replicas for leg in replica.legs)

    @property
    def uses_gpus(self) -> bool:
        """Whether experts run on GPUs: those asked for, or on nodes that give theirs without being asked."""
        return self.requests_gpus or (self.engine == "vllm" and self.experiment.engine.device == "cuda")

    @property
    def is_emulated(self) -> bool:
        """Whether tokens come from emulated experts."""
        return self.engine == "emulated"

    def gpu_hours(self, duration_s: float) -> float:
        """GPU-hours that the job is charged for `duration_s` seconds."""
        return self.num_nodes * self.gpus_per_node * duration_s / 3600 if self.requests_gpus else 0.0

    def process(self, name: str) -> PlannedProcess:
        """The process of that name; KeyError if the plan has none."""
        for process in self.processes:
            if process.name == name:
                return process
        raise KeyError(name)

    @property
    def gateway(self) -> PlannedProcess | None:
        """The gateway's process, None when users talk to the one replica directly."""
        return next((process for process in self.processes if process.kind == "gateway"), None)

    @property
    def calibration(self) -> PlannedProcess | None:
        """The process that measures the client itself before the first level, None if the plan has none."""
        return next((process for process in self.processes if process.kind == "calibration"), None)

    def clients(self, level: int) -> tuple[PlannedProcess, ...]:
        """The client processes of one level, in the order of their numbers."""
        return tuple(process for process in self.processes if process.level == level)

    def to_json(self) -> bytes:
        """Serialise, indented for people."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def plan_from_json(text: bytes) -> Plan:
    """Read a plan back.

    Raises:
        SchemaMismatch: the plan was written by another version of erhpc, or is damaged.
    """
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except msgspec.DecodeError as error:
        raise SchemaMismatch(f"plan.json cannot be read: {error}. Plan the experiment again.") from error
    if plan.version != PLAN_VERSION:
        raise SchemaMismatch(f"plan.json has version {plan.version}, this erhpc reads {PLAN_VERSION}. Plan again.")
    return plan
