"""Draws a forecast for a person: every number with its interval, and said to be predicted. Reads the forecast only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from erhpc.config import ExperimentConfig, SloConfig
from erhpc.forecast.placements import Found, Placement
from erhpc.forecast.prediction import Forecast, PredictedLevel

MARK = "PREDICTED: computed, not measured"
_MILLISECONDS_BELOW_S = 1.0


def draw_forecast(forecast: Forecast, experiment: ExperimentConfig, found: Found | None) -> RenderableType:
    """The levels, the knee, the SLO and the cost; `found` is the cheapest placement that meets the SLO, if asked."""
    slo = experiment.slo
    lines = [_describe_knee(forecast), *_describe_slo(forecast, slo), *_describe_cheapest(found, slo)]
    lines.append(
        f"the sweep: {forecast.sweep_s / 60:.1f} min, {forecast.gpu_hours:.2f} GPU-hours of the GPUs that replicas hold"
    )
    lines += [f"! {notice}" for notice in forecast.notices]
    return Group(_draw_levels(forecast, slo), Text("\n".join(lines)))


def draw_failure(reason: object) -> RenderableType:
    """Why nothing is predicted."""
    return Text(f"! not predicted: {reason}", style="yellow")


def draw_placements(found: Found, slo: SloConfig, most: int = 20) -> RenderableType:
    """The best placements, best first, and how to run the very best."""
    table = Table(box=None, title=f"placements for {found.load} ({MARK})", title_justify="left", title_style="bold")
    for heading in ("", "placement", "GPUs", "tok/s", "tok/s per GPU", "TTFT p50", "TPOT p50", "KV tokens"):
        table.add_column(heading, justify="left" if heading in ("", "placement") else "right", no_wrap=True)
    if slo.is_given:
        table.add_column("SLO %", justify="right")
    for rank, placement in enumerate(found.placements[:most], 1):
        table.add_row(str(rank), *_show_placement(placement), *(_show_attainment(placement.row, slo)))
    lines = [
        f"{found.num_fitting} placements on {found.num_nodes} node(s) of {found.gpus_per_node} GPUs; "
        f"{found.num_misfits} more do not fit" + (f"; {most} shown" if len(found.placements) > most else ""),
        *([_describe_met(found, slo)] if slo.is_given else []),
        *([f"first: {' '.join(found.placements[0].overrides)}"] if found.placements[0].overrides else []),
        *(f"! {notice}" for notice in found.notices),
    ]
    return Group(table, Text("\n".join(lines)))


def _draw_levels(forecast: Forecast, slo: SloConfig) -> Table:
    table = Table(
        box=None,
        title=f"{MARK} (engine profile {forecast.profile}; in brackets the 90 % interval of the constants' ranges)",
        title_justify="left",
        title_style="bold",
    )
    headings = ("load", "tok/s", "", "TTFT p50", "", "p99", "TPOT p50", "", "p99")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    if slo.is_given:
        table.add_column("SLO %", justify="right")
    table.add_column("held back by")
    for level in forecast.levels:
        table.add_row(*_show_level(level), *_show_attainment(level.row, slo), level.cause.word if level.cause else "")
    return table


def _show_level(level: PredictedLevel) -> list[str]:
    cells = [level.point.describe(), *_show_bounded(level, "output_tokens_per_s")]
    for name in ("ttft", "tpot"):
        cells += [*_show_bounded(level, f"{name}_p50_s"), _show_s(level.row[f"{name}_p99_s"])]
    return cells


def _show_bounded(level: PredictedLevel, column: str) -> tuple[str, str]:
    """A value, and its interval in brackets."""
    show = _show_rate if column.endswith("per_s") else _show_s
    bounds = level.bounds.get(column)
    return show(level.row[column]), f"[{show(bounds[0])}, {show(bounds[1])}]" if bounds else ""


def _describe_knee(forecast: Forecast) -> str:
    last = forecast.levels[-1]
    if forecast.knee is None:
        return f"knee: none up to {last.point.describe()}: throughput still grows with the load"
    knee = forecast.levels[forecast.knee]
    beyond = forecast.levels[forecast.knee + 1]
    why = f". Held back by {beyond.cause.detail}" if beyond.cause else ""
    return f"knee: {knee.point.describe()}; beyond it throughput grows less than half as fast as the load{why}"


def _describe_slo(forecast: Forecast, slo: SloConfig) -> list[str]:
    if not slo.is_given:
        return []
    met = forecast.find_largest_met(slo.attainment)
    which = "missed at every load" if met is None else f"met up to {met.point.describe()}"
    return [f"SLO ({_name_slo(slo)}): {which}"]


def _describe_cheapest(found: Found | None, slo: SloConfig) -> list[str]:
    if found is None:
        return []
    cheapest = found.find_cheapest(slo.attainment)
    tried = f"{len(found.placements)} of {found.num_fitting} placements on {found.num_nodes} node(s), cheapest first"
    if cheapest is None:
        return [
            f"cheapest placement that meets it at {found.load}: none of {tried}; placement.nodes and "
            "predict.users say where and for how many"
        ]
    how = f": {' '.join(cheapest.overrides)}" if cheapest.overrides else ""
    return [
        f"cheapest placement that meets it at {found.load}: {cheapest.name}, {cheapest.num_gpus} GPUs, "
        f"{_show_rate(cheapest.row['output_tokens_per_s'])} tok/s ({tried}){how}"
    ]


def _describe_met(found: Found, slo: SloConfig) -> str:
    num_met = sum(placement.meets(slo.attainment) for placement in found.placements)
    return f"{num_met} of them meet the SLO ({_name_slo(slo)}) and come first"


def _name_slo(slo: SloConfig) -> str:
    bounds = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "E2E": slo.e2e_s}
    shown = ", ".join(f"{name} <= {_show_s(bound_s)}" for name, bound_s in bounds.items() if bound_s is not None)
    return f"{shown} for {slo.attainment:.4g} of the requests"


def _show_placement(placement: Placement) -> Sequence[str]:
    row = placement.row
    rate = row["output_tokens_per_s"]
    kv_tokens = ", ".join(f"{tokens:,}" for tokens in dict.fromkeys(placement.kv_capacity_tokens.values()))
    latencies = (_show_s(row["ttft_p50_s"]), _show_s(row["tpot_p50_s"]))
    per_gpu = _show_rate(rate / placement.num_gpus)
    return placement.name, str(placement.num_gpus), _show_rate(rate), per_gpu, *latencies, kv_tokens


def _show_attainment(row: Mapping[str, Any], slo: SloConfig) -> list[str]:
    return [f"{100 * row['slo_attainment']:.3g}"] if slo.is_given else []


def _show_rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def _show_s(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    return f"{value_s * 1000:.3g} ms" if value_s < _MILLISECONDS_BELOW_S else f"{value_s:.3g} s"
