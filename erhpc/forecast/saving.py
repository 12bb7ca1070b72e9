"""Leaves the prediction of a run beside its plan, and reads the classifier that it is made with."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from erhpc.errors import ErhpcError
from erhpc.forecast.prediction import Forecast, predict
from erhpc.plan.plan import Plan
from erhpc.results.paths import RunPaths
from erhpc.results.record import PREDICTED, PREDICTION_COLUMNS, name_bound
from erhpc.results.store import write_prediction
from erhpc.routing.artefact import read_artefact
from erhpc.routing.classifier import Classifier


def find_classifier(plan: Plan, run: RunPaths | None = None) -> Classifier | None:
    """The classifier of a run that is prepared, else the configured one; None where there is none (yet).

    Raises:
        InputError: router.artefact cannot be read.
    """
    router = plan.experiment.router
    if router.policy != "cluster":
        return None
    if run is not None and run.artefact.exists():
        return read_artefact(run.artefact)
    return None if router.artefact is None else read_artefact(Path(router.artefact))


def save_prediction(plan: Plan, run: RunPaths, now: datetime) -> str | None:
    """Predict a run that is prepared and write its prediction.parquet; returns why not, None if it did.

    A prediction that fails must not keep a run from starting.
    """
    if not plan.experiment.predict.enabled:
        return None
    try:
        forecast = predict(plan, find_classifier(plan, run))
    except ErhpcError as error:
        return str(error)
    write_prediction(run.prediction, list_rows(forecast, plan, run.root.name, now))
    return None


def list_rows(forecast: Forecast, plan: Plan, run_id: str, now: datetime) -> list[dict[str, Any]]:
    """The levels of a forecast as rows of PREDICTION_COLUMNS; what is not predicted is None."""
    identity = {
        "experiment": plan.experiment.name,
        "run_id": run_id,
        "engine": PREDICTED,
        "arrivals": plan.experiment.workload.arrivals.kind,
        "num_replicas": len(plan.replicas),
        "num_gpus": plan.num_gpus,
        "started_utc": now.isoformat(timespec="milliseconds"),
        "valid": True,
        "invalid_reasons": [],
    }
    rows = []
    for number, level in enumerate(forecast.levels):
        known = identity | {"level": number, "users": level.point.users, "rate_per_s": level.point.rate_per_s}
        known |= dict(level.row)
        for name, (low, high) in level.bounds.items():
            known |= {name_bound(name, "low"): low, name_bound(name, "high"): high}
        known["limited_by"] = level.cause.word if level.cause else None
        rows.append({column.name: known.get(column.name) for column in PREDICTION_COLUMNS})
    return rows
