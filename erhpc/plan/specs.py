"""What each process of a run is told at its start: one spec per kind of process, written by the plan as JSON.

A spec is complete: `python -m jobs.<kind> --spec FILE` needs nothing else. Texts may hold the placeholders
`{run}`, `{tmp}`, `{addressN}` and `{portN}`, which the agent fills in once nodes and ports are known. Keys are
never in a spec, only the path of the file that holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erhpc.config import ArchitectureConfig, FaultConfig, GatewayConfig, LoadConfig, RouterConfig, WorkloadConfig


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where one replica answers."""

    replica: str
    expert: str
    model: str
    """Name under which the replica serves its model; requests are rewritten to it."""
    url: str
    """http://address:port, without a path."""


@dataclass(frozen=True, kw_only=True)
class EmulatedExpertSpec:
    """One emulated replica: which model it pretends to serve, on which GPUs."""

    replica: str
    model: str
    host: str
    port: int | str
    architecture: ArchitectureConfig
    dtype: str
    quantization: str | None
    tensor_parallel: int
    gpu: str
    kv_capacity_tokens: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    load_s: float = 0.0
    """How long loading is made to take before /health answers 200."""
    kernel: str | None = None
    profile: str
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Those of vLLM that the twin knows (`erhpc.twin.serving.FLAGS`) count, the others do not."""
    prefix_caching: bool = False
    speedup: float = 1.0
    """How many times as fast its time runs."""
    faults: list[FaultConfig] = field(default_factory=list)
    """What goes wrong on purpose."""
    aliases: list[str] = field(default_factory=list)
    """Other names of the model that requests may use."""
    key_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class EmulatedExpertsSpec:
    """The emulated replicas that one process serves, each on its own port."""

    experts: list[EmulatedExpertSpec]


@dataclass(frozen=True, kw_only=True)
class GatewaySpec:
    """The gateway: where it listens, which replicas it fronts, how it routes."""

    host: str
    port: int | str
    status_port: int | str = 0
    """Where it tells of itself, apart from the requests; 0: any free port."""
    endpoints: list[Endpoint]
    router: RouterConfig
    limits: GatewayConfig
    artefact: str | None
    """Directory of the classifier (policy `cluster` only)."""
    seed: int
    is_emulated: bool = False
    """Whether the replicas are emulated experts, which the list of models must not hide."""
    key_file: str | None = None
    """Holds the key that users need."""
    expert_key_file: str | None = None
    """Holds the key that the replicas need; None: the same, empty: they need none."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """Measures the client of `load` against a null expert on this machine."""

    load: LoadConfig
    output: str
    """Where the Calibration goes (JSON)."""


@dataclass(frozen=True, kw_only=True)
class ClientSpec:
    """One client process at one level: whom it asks, what, and where its part goes.

    How many users it plays, or at which rate it asks, and when, it is told while it runs (`erhpc.load.messages`).
    """

    url: str
    """Base URL of the gateway, or of the one replica when there is no router."""
    model: str
    """Model name to ask for: `auto`, or the served name of the one replica."""
    level: int
    workload: WorkloadConfig
    load: LoadConfig
    seed: int
    output: str
    """Where the client writes its ClientPart (Parquet)."""
    worker: int = 0
    """Which of the level's client processes this is, from 0."""
    num_workers: int = 1
    """Users and arrivals are dealt to the client processes in turn: number k goes to worker k modulo num_workers."""
    direct: Endpoint | None = None
    """The replica that is asked without a gateway; fills expert and replica of every record."""
    key_file: str | None = None
