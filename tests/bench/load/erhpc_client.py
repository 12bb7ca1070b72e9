"""How the bench launches erhpc and reads what it measured: the only module here that knows erhpc's client."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any

from erhpc.results.store import read_levels
from tests.bench.load.case import PROMPT_TOKENS, Case, Report
from tests.bench.load.truth import NS_PER_S, Latencies

WARMUP_S = 4.0


class ErhpcClient:
    """The verb `python -m erhpc.load` with one client process; reports over its measuring window."""

    def __init__(self, name: str, *overrides: str) -> None:
        self.name = name
        self._overrides = overrides

    def prepare(self) -> None:
        """It is here."""

    def command(self, case: Case) -> list[str]:
        """The window is what `case.seconds` leaves after the warm-up."""
        return [
            sys.executable, "-m", "erhpc.load", f"url={case.url}", f"model={case.model}", f"users=[{case.users}]",
            "workload=synthetic", f"workload.input_tokens.mean={PROMPT_TOKENS}",
            f"workload.output_tokens.mean={case.tokens}", f"workload.output_tokens.high={max(4096, case.tokens)}",
            f"workload.warmup_s={_warmup_s(case)}", f"workload.warmup_max_s={_warmup_s(case)}",
            f"workload.measure_s={case.seconds - _warmup_s(case)}",
            "load.calibrate=false", f"output_root={case.folder / 'runs'}", *self._overrides,
        ]  # fmt: skip

    def read_report(self, case: Case) -> Report:
        """Its row of levels.parquet."""
        [run] = (case.folder / "runs").glob("*/*/")
        row = read_levels(run).iloc[0]
        start_s = datetime.fromisoformat(row["window_start_utc"]).timestamp()
        start_ns = round(start_s * NS_PER_S) + time.monotonic_ns() - time.time_ns()
        return Report(
            ttft=_latencies(row, "ttft"),
            gap=_latencies(row, "itl"),
            tokens_per_s=float(row["output_tokens_per_s"]),
            requests=int(row["requests_ok"]),
            window_ns=(start_ns, start_ns + round(row["window_s"] * NS_PER_S)),
            is_steady=True,
        )


def _warmup_s(case: Case) -> float:
    """Of fixed length: the mock is as steady as its schedule from the second answer on."""
    return min(WARMUP_S, case.seconds / 4)


def _latencies(row: Any, name: str) -> Latencies:
    return Latencies(*(float(row[f"{name}_{key}_s"]) * 1000 for key in ("mean", "p50", "p99")))


ERHPC_CLIENTS = {
    "erhpc": ErhpcClient("erhpc"),
    "erhpc-4": ErhpcClient("erhpc, 4 processes", "load.processes=4"),
    "erhpc-loop": ErhpcClient("erhpc (loop stamps)", "load.stamps=loop"),
    "erhpc-aiohttp": ErhpcClient("erhpc (aiohttp)", "load.client=aiohttp"),
}
