"""How the bench launches erhpc and reads what it measured: the only module here that knows erhpc's client."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from erhpc.config import LengthConfig, WorkloadConfig
from erhpc.plan.specs import ClientSpec
from erhpc.results import metrics
from erhpc.results.store import read_part
from tests.bench.load.case import PROMPT_TOKENS, Case, Report
from tests.bench.load.truth import NS_PER_MS, NS_PER_S, Latencies

WARMUP_S = 2.0
ROOT = Path(__file__).resolve().parents[3]


class ErhpcClient:
    """`python -m jobs.client` on a spec, its figures from the formulas of `erhpc.results.metrics`."""

    name = "erhpc"

    def prepare(self) -> None:
        """It is here."""

    def command(self, case: Case) -> list[str]:
        """One client process with all users."""
        spec = ClientSpec(
            url=case.url, model=case.model, level=0, users=case.users, workload=workload_of(case), seed=1,
            output=str(case.folder / "part.parquet"),
        )  # fmt: skip
        (case.folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        return [sys.executable, "-m", "jobs.client", "--spec", str(case.folder / "spec.json")]

    def read_report(self, case: Case) -> Report:
        """The window's latencies; its rate by arrival within the window."""
        part = read_part(case.folder / "part.parquet")
        measured = metrics.measured_records(part)
        ttfts_s = (found for record in measured if (found := metrics.ttft_s(record)) is not None)
        return Report(
            ttft=_latencies(metrics.quantiles(ttfts_s)),
            gap=_latencies(metrics.quantiles(metrics.itl_s(measured))),
            tokens_per_s=metrics.output_tokens_per_s(part),
            requests=len(measured),
            window_ns=(part.window_start_monotonic_ns, part.window_end_monotonic_ns),
            is_steady=True,
        )


def workload_of(case: Case) -> WorkloadConfig:
    """Synthetic prompts and fixed lengths; the window is what `case.seconds` leaves after the warm-up."""
    return WorkloadConfig(
        users=[case.users],
        format="synthetic",
        input_tokens=LengthConfig(mean=PROMPT_TOKENS),
        output_tokens=LengthConfig(mean=case.tokens, high=max(4096, case.tokens)),
        warmup_s=min(WARMUP_S, case.seconds / 4),
        measure_s=max(case.seconds - WARMUP_S, case.seconds / 2),
        drain_s=30.0,
        timeout_s=120.0,
    )


def _latencies(found_s: dict[str, float] | None) -> Latencies:
    if found_s is None:
        return Latencies(None, None, None)
    ms = {name: value * NS_PER_S / NS_PER_MS for name, value in found_s.items()}
    return Latencies(ms["mean"], ms["p50"], ms["p99"])
