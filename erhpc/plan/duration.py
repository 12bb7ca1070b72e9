"""How long a run takes, expected and at most: what the queue is asked for. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.config import EngineConfig, ExperimentConfig, SearchConfig, WorkloadConfig
from erhpc.errors import PlacementError
from erhpc.plan.levels import list_points
from erhpc.plan.plan import PlannedLevel

LEVEL_OVERHEAD_S = 3.0
"""Starting a client and saving its records."""
CALIBRATION_S = 8.0
"""Measuring the client itself."""
MARGIN_S = 120.0
"""Starting agents, stopping processes, and slack of the file system."""
EXPECTED_DRAIN_S = 10.0
EXPECTED_WARMUP_S = 15.0
"""Until a level can be told to be steady, as seen in closed loops of 1 to 1,000 users."""
ENGINE_START_S = 60.0
"""vLLM's imports, compilation and graph capture, seen from 30 s up."""


def plan_levels(workload: WorkloadConfig, search: SearchConfig) -> tuple[PlannedLevel, ...]:
    """The levels in order, each with its expected and longest duration in seconds; as many as a search may take."""
    points = list_points(workload, search) or (None,) * search.max_levels
    expected_s = (
        max(workload.warmup_s, min(EXPECTED_WARMUP_S, workload.warmup_max_s))
        + workload.measure_s
        + min(workload.drain_s, EXPECTED_DRAIN_S)
        + LEVEL_OVERHEAD_S
    )
    limit_s = workload.warmup_max_s + workload.measure_s + workload.drain_s + LEVEL_OVERHEAD_S
    return tuple(
        PlannedLevel(level=level, point=point, expected_s=expected_s, limit_s=limit_s)
        for level, point in enumerate(points)
    )


def load_timeout_s(engine: EngineConfig, node_weights_bytes: int) -> float:
    """Patience for a replica to load: a constant plus the time the node's weights take at the slowest expected rate."""
    return engine.ready_timeout_s + node_weights_bytes / (engine.load_rate_gb_per_s * 1e9)


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long a run is expected to take, and the walltime to ask for; `notice` says what a cut may cost."""

    expected_s: float
    walltime_s: float
    notice: str | None = None


def plan_duration(
    experiment: ExperimentConfig, levels: tuple[PlannedLevel, ...], load_limit_s: float, *, emulated: bool
) -> Duration:
    """Work out the duration of a run whose replicas load within `load_limit_s`.

    Raises:
        PlacementError: even the expected duration is beyond the site's time limit.
    """
    load_s = 2.0 if emulated else ENGINE_START_S + (load_limit_s - experiment.engine.ready_timeout_s)
    load_s += CALIBRATION_S if experiment.load.calibrate else 0.0
    expected_s = load_s + sum(level.expected_s for level in levels)
    walltime_s = load_limit_s + sum(level.limit_s for level in levels) + MARGIN_S + experiment.cluster.signal_delay_s
    limit_min = experiment.cluster.time_limit_min
    if limit_min is None or walltime_s <= limit_min * 60:
        return Duration(expected_s=expected_s, walltime_s=walltime_s)
    if expected_s > limit_min * 60:
        raise PlacementError(
            f"the run is expected to take {expected_s / 60:.0f} min and cluster.time_limit_min={limit_min}. "
            "Shorten workload.measure_s or workload.users, or split the levels."
        )
    notice = (
        f"walltime cut from {walltime_s / 60:.0f} min to cluster.time_limit_min={limit_min}: "
        "if levels take longer than expected, the last ones will be missing."
    )
    return Duration(expected_s=expected_s, walltime_s=limit_min * 60, notice=notice)
