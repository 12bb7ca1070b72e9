"""Predicts a plan: every level played through by the twin, with an interval, what holds it back, and what it costs.

It draws and simulates; what is asked, where it goes and what serves it, the other modules of this room know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import exp, isfinite, log
from statistics import fmean
from typing import Any

import numpy as np

from erhpc.config import ExperimentConfig, SearchConfig
from erhpc.errors import ConfigError, InputError
from erhpc.forecast.causes import Cause, find_cause, find_knee
from erhpc.forecast.demand import MOST_ARRIVALS, Asked, AskedSource
from erhpc.forecast.fleet import Fleet, build_fleet, list_constants
from erhpc.forecast.outcome import read_level
from erhpc.forecast.routes import Routes, plan_routes
from erhpc.plan.duration import LEVEL_OVERHEAD_S
from erhpc.plan.levels import LoadPoint, list_points
from erhpc.plan.plan import Plan
from erhpc.results.record import BOUNDED_COLUMNS
from erhpc.routing.classifier import Classifier
from erhpc.twin.demand import ClosedLoop, Demand, OpenLoop
from erhpc.twin.evidence import NORMAL_95
from erhpc.twin.records import Window
from erhpc.twin.simulation import Prediction, simulate

LEAST_REQUESTS = 100
"""Requests of a level with few users."""
MOST_DRAWN_USERS = 5_000
"""Levels of more users have no interval: a plan must not take minutes."""
STARTS_PER_S = 1000
"""Users that begin per second, as clients let them (workload.ramp_s=null)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedLevel:
    """One load point."""

    point: LoadPoint
    row: Mapping[str, Any]
    """What LEVEL_COLUMNS of it would read, as far as it is predicted."""
    bounds: Mapping[str, tuple[float, float]]
    """Low and high end of a 90 % interval of each of BOUNDED_COLUMNS that has a value."""
    cause: Cause | None
    """What holds it back; None below the knee."""
    expected_s: float
    """How long the level takes, from its first request to its last record."""

    @property
    def load(self) -> float:
        """Users, or requests per second."""
        return float(self.point.users or self.point.rate_per_s or self.row["due_per_s"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Everything predicted of a plan."""

    levels: Sequence[PredictedLevel]
    knee: int | None
    """Index of the last level before throughput flattens; None: it does not."""
    profile: str
    """The engine profile that it holds for."""
    sweep_s: float
    """How long the run takes."""
    gpu_hours: float
    """GPUs that the replicas hold, times that."""
    notices: Sequence[str]

    def find_largest_met(self, attainment: float) -> PredictedLevel | None:
        """The largest load that meets the SLO, together with all smaller ones; None if the smallest misses it."""
        ordered = sorted(self.levels, key=lambda level: level.load)
        met = list(takewhile(lambda level: level.row["slo_attainment"] >= attainment, ordered))
        return met[-1] if met else None


def predict(plan: Plan, classifier: Classifier | None = None) -> Forecast:
    """Predict every level of a plan.

    Args:
        classifier: where prompts go under router.policy=cluster; None: balanced shares.

    Raises:
        ConfigError: the plan is for CPUs, or something of it is not simulated or not known.
        InputError: a file of the workload cannot be read, or no request fits the experts.
    """
    experiment = plan.experiment
    kv_capacity_tokens = {replica.expert: replica.memory.kv_capacity_tokens for replica in plan.replicas}
    check_predictable(plan)
    source, routes = AskedSource(experiment, engine=plan.engine), plan_routes(experiment, classifier)
    fleets = [
        build_fleet(experiment, routes.pools, routes.rule, kv_capacity_tokens, constants_of)
        for constants_of in list_constants(experiment, experiment.predict.draws)
    ]
    played = [
        _predict_level(experiment, point, source.draw(point, level), routes, fleets)
        for level, point in enumerate(list_load_points(experiment))
    ]
    loads = [level.load for level, _ in played]
    knee = find_knee(loads, [level.row["output_tokens_per_s"] for level, _ in played])
    levels = [
        level if knee is None or level.load <= loads[knee] else replace(level, cause=cause) for level, cause in played
    ]
    sweep_s = plan.expected_s - sum(level.expected_s for level in plan.levels)
    sweep_s += sum(level.expected_s for level in levels)
    return Forecast(
        levels=levels,
        knee=knee,
        profile=experiment.engine.profile,
        sweep_s=sweep_s,
        gpu_hours=plan.num_gpus * sweep_s / 3600,
        notices=[*_note_spared(experiment), *routes.notices, *_note_requests(experiment, source)],
    )


def check_predictable(plan: Plan) -> None:
    """Raise ConfigError for a plan that the twin knows no hardware of."""
    if not plan.num_gpus:
        raise ConfigError(
            "the twin knows GPUs, and this plan is for CPUs (engine.device=cpu). Leave the prediction out: "
            "predict.enabled=false."
        )


def list_load_points(experiment: ExperimentConfig) -> list[LoadPoint]:
    """The points of the sweep; where a search finds them, doubled from its lowest to its highest."""
    points = list_points(experiment.workload, experiment.search)
    return list(points) or [
        LoadPoint.from_search(experiment.search.kind, value) for value in _double(experiment.search)
    ]


def play(experiment: ExperimentConfig, point: LoadPoint, asked: Asked, routes: Routes, fleet: Fleet) -> Prediction:
    """Simulate one level on one fleet."""
    demand = Demand(
        prompt_tokens=asked.prompt_tokens,
        answer_tokens=asked.answer_tokens,
        pool=routes.find_pools(asked),
        think_s=asked.think_s,
    )
    if asked.due_s is not None:
        return simulate(fleet.pools, demand, OpenLoop(due_s=asked.due_s, num_counted=asked.num_counted), fleet.gateway)
    users, ramp_s = point.users or 1, experiment.workload.ramp_s
    load = ClosedLoop(
        users=users,
        num_requests=max(LEAST_REQUESTS, users * experiment.predict.requests_per_user),
        ramp_s=users / STARTS_PER_S if ramp_s is None else ramp_s,
        keeps_load=True,
    )
    return simulate(fleet.pools, demand, load, fleet.gateway)


def choose_window(experiment: ExperimentConfig, prediction: Prediction) -> Window:
    """When a simulated level counts: in a closed loop once every user had an answer, in an open one after the warm-up.

    But at the latest from when half of all requests were sent: a user may wait longer than all others. Where more
    requests are due than are simulated, the warm-up is at most a quarter of them.
    """
    last_s = float(prediction.sent_s.max())
    if not experiment.workload.arrivals.is_open:
        answered_s = float(prediction.last_token_s[prediction.sequence == 0].max())
        return Window(start_s=min(answered_s, float(np.median(prediction.sent_s))), end_s=last_s)
    try:
        return Window(start_s=min(experiment.workload.warmup_s, last_s / 4), end_s=last_s)
    except InputError as error:
        raise InputError("The open loop has a single request, or all are due at once: nothing to predict.") from error


def _predict_level(
    experiment: ExperimentConfig, point: LoadPoint, asked: Asked, routes: Routes, fleets: Sequence[Fleet]
) -> tuple[PredictedLevel, Cause]:
    prediction = play(experiment, point, asked, routes, fleets[0])
    window = choose_window(experiment, prediction)
    row = read_level(prediction, window, experiment.slo)
    spared = (point.users or 0) > MOST_DRAWN_USERS
    drawn = [] if spared else [play(experiment, point, asked, routes, fleet) for fleet in fleets[1:]]
    others = [read_level(other, choose_window(experiment, other), experiment.slo) for other in drawn]
    level = PredictedLevel(
        point=point,
        row=row,
        bounds=dict(_find_bounds(row, others)),
        cause=None,
        expected_s=_expect_s(experiment, row),
    )
    return level, find_cause(prediction, window)


def _find_bounds(
    row: Mapping[str, Any], others: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Low and high of a 90 % interval around each value: the spread of the others, in logarithms."""
    for name in BOUNDED_COLUMNS:
        value = row.get(name)
        drawn = [other[name] for other in others if other.get(name)]
        if not value or not drawn:
            continue
        reach = exp(NORMAL_95 * fmean(log(other / value) ** 2 for other in drawn) ** 0.5)
        if isfinite(reach):
            yield name, (value / reach, value * reach)


def _expect_s(experiment: ExperimentConfig, row: Mapping[str, Any]) -> float:
    """How long a level takes: until every user had an answer, the window, and the answers in flight at its end."""
    workload = experiment.workload
    warmup_s = float(np.clip(row["warmup_s"], workload.warmup_s, workload.warmup_max_s))
    drain_s = min(workload.drain_s, row["e2e_p99_s"] or 0.0)
    return warmup_s + workload.measure_s + drain_s + LEVEL_OVERHEAD_S


def _double(search: SearchConfig) -> Iterator[float]:
    value = search.low
    while value < search.high:
        yield value
        value *= 2
    yield search.high


def _note_spared(experiment: ExperimentConfig) -> Iterator[str]:
    if any((point.users or 0) > MOST_DRAWN_USERS for point in list_load_points(experiment)):
        yield f"levels of more than {MOST_DRAWN_USERS:,} users have no interval"


def _note_requests(experiment: ExperimentConfig, source: AskedSource) -> Iterator[str]:
    if source.is_cut:
        yield f"of each level the first {MOST_ARRIVALS:,} arrivals are simulated: a backlog grows on after them"
    left_out = source.num_left_out
    if left_out:
        longest = min(expert.max_model_len for expert in experiment.experts.values())
        yield f"{left_out} of the requests drawn are longer than max_model_len={longest}, and left out: refused"
