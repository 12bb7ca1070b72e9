"""How long a run takes, expected and at most: what the queue is asked for. Pure arithmetic."""

from __future__ import annotations

from erhpc.config import EngineConfig, ExperimentConfig, WorkloadConfig
from erhpc.errors import PlacementError
from erhpc.plan.plan import PlannedLevel

LEVEL_OVERHEAD_S = 3.0
"""Starting a client and saving its records."""
MARGIN_S = 120.0
"""Starting agents, stopping processes, and slack of the file system."""
EXPECTED_DRAIN_S = 10.0
ENGINE_START_S = 60.0
"""vLLM's imports, compilation and graph capture, seen from 30 s up."""


def plan_levels(workload: WorkloadConfig) -> tuple[PlannedLevel, ...]:
    """The levels in order, each with its expected and longest duration in seconds."""
    expected_s = workload.warmup_s + workload.measure_s + min(workload.drain_s, EXPECTED_DRAIN_S) + LEVEL_OVERHEAD_S
    limit_s = workload.warmup_max_s + workload.measure_s + workload.drain_s + LEVEL_OVERHEAD_S
    return tuple(
        PlannedLevel(level=level, users=users, expected_s=expected_s, limit_s=limit_s)
        for level, users in enumerate(workload.users)
    )


def load_timeout_s(engine: EngineConfig, node_weights_bytes: int) -> float:
    """Patience for a replica to load: a constant plus the time the node's weights take at the slowest expected rate."""
    return engine.ready_timeout_s + node_weights_bytes / (engine.load_rate_gb_per_s * 1e9)


def plan_walltime(
    experiment: ExperimentConfig, levels: tuple[PlannedLevel, ...], load_limit_s: float, *, emulated: bool
) -> tuple[float, float]:
    """Expected duration and walltime to ask for, in seconds.

    Raises:
        PlacementError: even the expected duration is beyond the site's time limit.
    """
    load_s = 2.0 if emulated else ENGINE_START_S + (load_limit_s - experiment.engine.ready_timeout_s)
    expected_s = load_s + sum(level.expected_s for level in levels)
    walltime_s = load_limit_s + sum(level.limit_s for level in levels) + MARGIN_S + experiment.cluster.signal_delay_s
    if experiment.cluster.time_limit_min is None:
        return expected_s, walltime_s
    site_limit_s = experiment.cluster.time_limit_min * 60
    if expected_s > site_limit_s:
        raise PlacementError(
            f"the run is expected to take {expected_s / 60:.0f} min and cluster.time_limit_min="
            f"{experiment.cluster.time_limit_min}. Shorten workload.measure_s or workload.users, or split the levels."
        )
    return expected_s, min(walltime_s, site_limit_s)
