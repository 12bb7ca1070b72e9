"""Runs of open loops with made-up numbers, beside those of `synthetic_results`: for tests of what reads results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

from erhpc.config import SloConfig
from erhpc.results.paths import RunPaths
from erhpc.results.record import ClientPart, LevelIdentity
from erhpc.results.store import append_level

from .synthetic_results import WINDOW_S, make_part, make_request, summarise

CAPACITY_PER_S = 40.0
"""Requests per second that the made-up server answers; above it they wait."""
TRACE_PER_S = 3.2


def make_open_part(rate_per_s: float, *, speed: float = 1.0) -> ClientPart:
    """Requests that come as a Poisson process and leave 0.2 to 0.4 ms late; above the capacity each waits longer."""
    random, due_s, records = Random(rate_per_s), 0.0, []
    while (due_s := due_s + random.expovariate(rate_per_s)) < WINDOW_S:
        waiting_s = due_s * max(0.0, rate_per_s / CAPACITY_PER_S - 1)
        ttft_s = (0.05 + 0.05 * random.random() + waiting_s) / speed
        request = make_request(len(records), 0, due_s, num_tokens=16, ttft_s=ttft_s, gap_us=round(15_000 / speed))
        sent_ns = request.sent_monotonic_ns + random.randrange(200_000, 400_000)
        records.append(
            replace(request, sent_monotonic_ns=sent_ns, latency_from="scheduled", stamped_by="kernel", expert=None)
        )
    return replace(make_part(1), records=records, cpu_s=0.1 + WINDOW_S * rate_per_s / 200, kernel_delay_p99_s=1e-4)


def write_open_run(
    folder: Path,
    *,
    experiment: str = "chat",
    engine: str = "external",
    rates_per_s: tuple[float | None, ...] = (2.0, 12.5, 60.0),
    arrivals: str = "poisson",
    speed: float = 1.0,
    slo: SloConfig | None = None,
    capacity_tokens_per_s: float | None = 2000.0,
    **changes: object,
) -> RunPaths:
    """A finished run of an open loop; a rate of None is a trace at its own. `changes` are columns of every level."""
    paths = RunPaths(folder)
    folder.mkdir(parents=True)
    for level, rate_per_s in enumerate(rates_per_s):
        identity = LevelIdentity(
            experiment=experiment,
            run_id=folder.name,
            engine=engine,
            level=level,
            arrivals="trace" if rate_per_s is None else arrivals,
            users=None,
            rate_per_s=rate_per_s,
            num_replicas=None,
            num_gpus=None,
        )
        part = make_open_part(rate_per_s or TRACE_PER_S, speed=speed)
        facts = {"slo": slo or SloConfig(), "capacity_tokens_per_s": capacity_tokens_per_s}
        append_level(paths, identity, [part], summarise(identity, [part], **facts) | changes)
    return paths


def write_search(run: RunPaths, *, kind: str, met: float | None, missed: float | None, num_levels: int = 3) -> None:
    """The search.json that a search leaves beside the levels of `run`."""
    values = [value for value in (met, missed) if value is not None]
    levels = [{"value": values[index % len(values)], "met": None} for index in range(num_levels)]
    result = {"kind": kind, "largest_met": met, "smallest_missed": missed, "levels": levels}
    run.search.write_text(json.dumps(result | {"reason": "the two are as near as asked"}))
