"""The site: nodes, GPUs, partitions and paths, and which node each replica goes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from erhpc.errors import ConfigError, require_choice, require_range

CLUSTER_KINDS = ("auto", "local", "slurm")
PLACEMENTS = ("packed", "spread", "one_per_node")


@dataclass
class PlacementConfig:
    """Which node each replica goes to."""

    strategy: str = "packed"
    """packed: fill a node before the next; spread: emptiest node first; one_per_node: one replica each."""
    nodes: int | None = None
    """Nodes to use; None: as few as the strategy needs."""

    def __post_init__(self) -> None:
        require_choice("placement.strategy", self.strategy, PLACEMENTS)
        if self.nodes is not None:
            require_range("placement.nodes", self.nodes, 1)


@dataclass
class ClusterConfig:
    """The site: the only group that knows nodes, GPUs, partitions and paths."""

    kind: str = "auto"
    """auto: Slurm where `sbatch` answers, else local; local; slurm."""
    gpu: str = "a100_80"
    """GPU type of the nodes: a name of erhpc/plan/data/gpus, or the path of such a file (ending in .toml) for another
    card. Memory for the fit, timing for emulation."""
    gpus_per_node: int = 8
    cpus_per_node: int | None = None
    """CPUs per node to ask Slurm for; None: 4 per planned GPU or process, whichever is more."""
    max_nodes: int = 1
    """Most nodes a run may take."""
    request_gpus: bool | None = None
    """Ask Slurm for GPUs; None: for vLLM yes, for emulated experts no (they would idle)."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    time_limit_min: int | None = None
    """Longest walltime the site allows, in minutes: the job asks for no more, and a run expected to take longer is
    refused."""
    signal_delay_s: int = 90
    """How long before the time limit Slurm warns the job, so that it can save and stop."""
    ports: list[int] = field(default_factory=lambda: [20000, 32000])
    """First and last port erhpc may use; keep it below the ephemeral range of the nodes."""
    tmp: str = "/tmp"
    """Node-local folder; keep it short: Unix socket paths end at 107 bytes."""
    interface: str | None = None
    """Network interface between nodes; None: the address that the node's own name stands for."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job starts, e.g. [module load python]."""

    def __post_init__(self) -> None:
        require_choice("cluster.kind", self.kind, CLUSTER_KINDS)
        require_range("cluster.gpus_per_node", self.gpus_per_node, 0)
        require_range("cluster.max_nodes", self.max_nodes, 1)
        require_range("cluster.signal_delay_s", self.signal_delay_s, 0)
        for name in ("cpus_per_node", "time_limit_min"):
            if getattr(self, name) is not None:
                require_range(f"cluster.{name}", getattr(self, name), 1)
        if len(self.ports) != 2 or not 1024 <= self.ports[0] <= self.ports[1] <= 65535:
            raise ConfigError(
                f"cluster.ports={self.ports} must be [first,last] within 1024..65535, e.g. [20000,32000]."
            )
