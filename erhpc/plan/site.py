"""What a site offers and what `auto` therefore means there. Pure: `erhpc.cluster.observation` looked."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.config import ExperimentConfig
from erhpc.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Site:
    """What was observed where the verb runs."""

    slurm_answers: bool = False
    slurm_gpus_per_node: int = 0
    """Most GPUs that any node of the partition offers; 0 without Slurm or without GPUs."""
    local_gpus: int = 0
    memory_bytes: int | None = None
    """Main memory of this machine."""
    num_cores: int | None = None
    """Cores of this machine that may be used."""
    vllm_python: str | None = None
    """Interpreter that $ERHPC_VLLM_PYTHON names."""
    vllm_cpu_python: str | None = None
    """Interpreter of the environment that `make vllm-env` builds; it serves on CPUs only."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An experiment's choices with every `auto` decided; `notices` say aloud what was decided and why."""

    cluster: str
    engine: str
    gpus_per_node: int
    """GPUs each node offers to replicas (emulated ones included)."""
    requests_gpus: bool
    memory_bytes: int | None
    """Main memory of each node, where it is known: on this machine."""
    vllm_python: str
    num_cores: int | None = None
    """Cores that all nodes share, where they are known: on this machine."""
    notices: tuple[str, ...] = ()


def decide_setting(experiment: ExperimentConfig, site: Site) -> Setting:
    """Decide every `auto` of an experiment from what the site offers.

    Raises:
        ConfigError: the experiment asks for what the site has not (Slurm, GPUs).
    """
    notices: list[str] = []
    cluster = _decide_cluster(experiment, site, notices)
    offered = site.slurm_gpus_per_node if cluster == "slurm" else site.local_gpus
    engine = _decide_engine(experiment, cluster, offered, notices)
    on_gpus = engine == "vllm" and experiment.engine.device == "cuda"
    if on_gpus and cluster == "local" and not offered:
        raise ConfigError(
            "engine=vllm with cluster=local needs GPUs and nvidia-smi shows none here. "
            "Choose engine=emulated, engine=vllm_cpu (small models), or a cluster that has GPUs."
        )
    configured = experiment.cluster.gpus_per_node
    observed = on_gpus and offered and (cluster == "local" or experiment.cluster.kind == "auto")
    wanted = experiment.cluster.request_gpus
    return Setting(
        cluster=cluster,
        engine=engine,
        gpus_per_node=offered if observed else configured,
        requests_gpus=on_gpus if wanted is None else wanted,
        memory_bytes=site.memory_bytes if cluster == "local" else None,
        vllm_python=_find_vllm_python(experiment, site),
        num_cores=site.num_cores if cluster == "local" else None,
        notices=tuple(notices),
    )


def _find_vllm_python(experiment: ExperimentConfig, site: Site) -> str:
    """The interpreter that serves vLLM, "" if none is known: a plan can do without, a launch cannot."""
    named = experiment.engine.python or site.vllm_python
    # The CPU build on a GPU node would serve, slowly, and look like a measurement of its GPUs.
    built = site.vllm_cpu_python if experiment.engine.device == "cpu" else None
    return named or built or ""


def _decide_cluster(experiment: ExperimentConfig, site: Site, notices: list[str]) -> str:
    if experiment.cluster.kind != "auto":
        return experiment.cluster.kind
    chosen = "slurm" if site.slurm_answers else "local"
    reason = "sbatch answers" if site.slurm_answers else "sbatch does not answer here"
    notices.append(f"cluster=auto took {chosen}: {reason}.")
    return chosen


def _decide_engine(experiment: ExperimentConfig, cluster: str, offered: int, notices: list[str]) -> str:
    if experiment.engine.kind != "auto":
        return experiment.engine.kind
    if offered:
        notices.append(f"engine=auto took vllm: the {cluster} nodes offer GPUs.")
        return "vllm"
    notices.append(
        f"engine=auto took EMULATED experts: the {cluster} cluster offers no GPUs. "
        "Their timing comes from a model; no number of this run is a measurement of a GPU."
    )
    return "emulated"
