"""Turns what clients wrote for a level into rows of the results, with every reason to distrust it.

It asks the servers how late their event loops ran; formulas are in `erhpc.results.metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Any

import aiohttp

from erhpc.plan.plan import Plan, PlannedLevel
from erhpc.results import store
from erhpc.results.atomic import write_atomically
from erhpc.results.metrics import summarise_level
from erhpc.results.paths import RunPaths
from erhpc.results.record import ClientPart, LevelIdentity

_TELEMETRY_TIMEOUT_S = 2.0


class LevelStore:
    """Stores the levels of one run, one after the other."""

    def __init__(self, plan: Plan, run: RunPaths, key: str, gateway_url: str | None, replica_urls: list[str]) -> None:
        self._plan = plan
        self._run = run
        self._gateway_url = gateway_url
        self._replica_urls = replica_urls
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=_TELEMETRY_TIMEOUT_S),
            trust_env=False,
        )

    async def __aenter__(self) -> LevelStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def store(self, level: PlannedLevel, reasons: list[str]) -> dict[str, Any] | None:
        """Append a level's records and its row; returns the row, None when no client left records."""
        part_path = self._run.part(level.level, "client-0")
        if not part_path.exists():
            return None
        part = await asyncio.to_thread(store.read_part, part_path)
        gateway_lag_s, engine_lag_s = await self._read_lags(part, bool(reasons))
        await self._save_gateway_metrics()
        row = await asyncio.to_thread(self._append, level, part, gateway_lag_s, engine_lag_s, reasons)
        part_path.unlink()
        return row

    async def _read_lags(self, part: ClientPart, is_over: bool) -> tuple[float | None, float | None]:
        """Worst lag of the gateway and of the emulated experts since the window began; None where nobody says."""
        if is_over:
            return None, None
        # Rank 0 and its client share the node's monotonic clock; the drain after the window counts too.
        window_s = (time.monotonic_ns() - part.window_start_monotonic_ns) / 1e9
        gateway = [self._gateway_url] if self._gateway_url else []
        replicas = self._replica_urls if self._plan.is_emulated else []
        lags = await asyncio.gather(*(self._read_lag(url, window_s) for url in [*gateway, *replicas]))
        known = [lag for lag in lags[len(gateway) :] if lag is not None]
        return (lags[0] if gateway else None), max(known, default=None)

    async def _save_gateway_metrics(self) -> None:
        """Keep the gateway's counters beside the records: they must tell of the same number of requests."""
        if self._gateway_url is None:
            return
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.get(f"{self._gateway_url}/metrics") as answer:
                write_atomically(self._run.gateway_metrics, await answer.read())

    async def _read_lag(self, url: str, window_s: float) -> float | None:
        try:
            async with self._session.get(f"{url}/telemetry", params={"window_s": f"{window_s:.3f}"}) as answer:
                body = await answer.json() if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError):
            return None
        lag_s = body.get("lag_p99_s")
        return float(lag_s) if isinstance(lag_s, int | float) else None

    def _append(
        self,
        level: PlannedLevel,
        part: ClientPart,
        gateway_lag_s: float | None,
        engine_lag_s: float | None,
        reasons: list[str],
    ) -> dict[str, Any]:
        identity = LevelIdentity(
            experiment=self._plan.experiment.name,
            run_id=self._run.root.name,
            engine=self._plan.engine,
            level=level.level,
            users=level.users,
            num_replicas=len(self._plan.replicas),
            num_gpus=self._plan.num_gpus,
        )
        workload = self._plan.experiment.workload
        row = summarise_level(
            identity,
            [part],
            gateway_lag_s,
            engine_lag_s,
            reasons,
            think_time_s=workload.think_time_s,
            warmup_max_s=workload.warmup_max_s,
        )
        store.append_level(self._run, identity, [part], row)
        return row
