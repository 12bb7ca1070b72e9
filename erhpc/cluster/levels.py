"""Turns what clients wrote for a level into rows of the results, with every reason to distrust it.

It asks the servers how late they ran; the row is made in `erhpc.results.summary`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from erhpc.load.calibrating import read_capacity
from erhpc.plan.emulation import explain_rehearsal
from erhpc.plan.levels import LoadPoint
from erhpc.plan.plan import Plan, PlannedLevel
from erhpc.results import store
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.record import ClientPart, LevelIdentity
from erhpc.results.summary import summarise_level
from erhpc.results.telemetry import KEEP_S, Lookback

_TELEMETRY_TIMEOUT_S = 2.0


class _Telemetry(msgspec.Struct):
    """What gateways and emulated experts say; only the latter run steps."""

    lag_p99_s: float
    step_lateness_p99_s: float = 0.0
    restarts: int = 0
    """Processes of the gateway that died and were started again, since its start."""

    @property
    def lateness_s(self) -> float:
        """How late it ran, its event loop or its steps."""
        return max(self.lag_p99_s, self.step_lateness_p99_s)


_decode_telemetry = msgspec.json.Decoder(_Telemetry).decode


class LevelStore:
    """Stores the levels of one run, one after the other."""

    def __init__(self, plan: Plan, run: RunPaths, key: str, status_url: str | None, replica_urls: list[str]) -> None:
        self._plan = plan
        self._run = run
        self._status_url = status_url
        """Where the gateway tells of itself."""
        self._num_restarts = 0
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

    async def store(self, level: PlannedLevel, point: LoadPoint, reasons: list[str]) -> dict[str, Any] | None:
        """Append a level's records and its row; returns the row, None when no client left records."""
        paths = [self._run.part(level.level, worker) for worker in range(self._plan.experiment.load.num_workers)]
        found = [path for path in paths if path.exists()]
        if not found:
            return None
        parts = await asyncio.to_thread(lambda: [store.read_part(path) for path in found])
        lost = len(paths) - len(found)
        reasons = [*reasons, *([f"{lost} of {len(paths)} client processes left no records"] if lost else [])]
        # Once a server died or the run was interrupted, silence has its reason already.
        gateway_lag_s, engine_lag_s, complaints = (None, None, []) if reasons else await self._read_lags(parts)
        await self._save_gateway_metrics()
        lags_s = (gateway_lag_s, engine_lag_s)
        row = await asyncio.to_thread(self._append, level, point, parts, lags_s, [*reasons, *complaints])
        for path in found:
            path.unlink()
        return row

    async def _read_lags(self, parts: list[ClientPart]) -> tuple[float | None, float | None, list[str]]:
        """Lag of the gateway, worst lag of the emulated experts, and what was wrong."""
        lookback = _look_back(parts, time.monotonic_ns())
        servers = {"gateway": self._status_url} if self._status_url else {}
        if self._plan.is_emulated:
            names = (replica.replica for replica in self._plan.replicas)
            servers |= dict(zip(names, self._replica_urls, strict=True))
        answers = await asyncio.gather(*(self._ask(url, lookback) for url in servers.values()))
        found = dict(zip(servers, answers, strict=True))
        lags_s = {name: answer.lateness_s for name, answer in found.items() if isinstance(answer, _Telemetry)}
        complaints = [f"{name}: no telemetry ({answer})" for name, answer in found.items() if isinstance(answer, str)]
        complaints += self._note_restarts(found.get("gateway"))
        return lags_s.pop("gateway", None), max(lags_s.values(), default=None), complaints

    def _note_restarts(self, gateway: _Telemetry | str | None) -> list[str]:
        if not isinstance(gateway, _Telemetry):
            return []
        num_new, self._num_restarts = gateway.restarts - self._num_restarts, gateway.restarts
        return [f"{num_new} processes of the gateway died and were started again"] if num_new else []

    async def _save_gateway_metrics(self) -> None:
        """Keep the gateway's counters beside the records: they tell the same, but for what was cut as it was sent."""
        if self._status_url is None:
            return
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.get(f"{self._status_url}/metrics") as answer:
                write_atomically(self._run.gateway_metrics, await answer.read())

    async def _ask(self, url: str, lookback: Lookback) -> _Telemetry | str:
        """How a server fared; a text says why it does not tell."""
        try:
            params = {"window_s": f"{lookback.window_s:.3f}", "ago_s": f"{lookback.ago_s:.3f}"}
            async with self._session.get(f"{url}/telemetry", params=params) as answer:
                if answer.status != 200:
                    return f"HTTP {answer.status}"
                return _decode_telemetry(await answer.read())
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError) as error:
            return str(error) or type(error).__name__

    def _append(
        self,
        level: PlannedLevel,
        point: LoadPoint,
        parts: list[ClientPart],
        lags_s: tuple[float | None, float | None],
        reasons: list[str],
    ) -> dict[str, Any]:
        experiment = self._plan.experiment
        identity = LevelIdentity(
            experiment=experiment.name,
            run_id=self._run.root.name,
            engine=self._plan.engine,
            level=level.level,
            arrivals=experiment.workload.arrivals.kind,
            users=point.users,
            rate_per_s=point.rate_per_s,
            num_replicas=len(self._plan.replicas),
            num_gpus=self._plan.num_gpus,
        )
        row = summarise_level(
            identity,
            parts,
            gateway_lag_p99_s=lags_s[0],
            engine_lag_p99_s=lags_s[1],
            reasons=[*(explain_rehearsal(experiment.engine) if self._plan.is_emulated else ()), *reasons],
            workload=experiment.workload,
            slo=experiment.slo,
            capacity_tokens_per_s=read_capacity(self._run.calibration),
        )
        store.append_level(self._run, identity, parts, row)
        return row


def _look_back(parts: Sequence[ClientPart], now_ns: int) -> Lookback:
    """From the window's begin to the end of the last request that counts: what is cut after it keeps servers busy too.

    Clients on other nodes have other clocks, but one window. Of what was longer ago than servers remember, the rest.
    """
    start_ns = min(part.window_start_monotonic_ns - part.clock_offset_ns for part in parts)
    ends_ns = [
        record.end_monotonic_ns - part.clock_offset_ns
        for part in parts
        for record in part.records
        if record.phase != "drain"
    ]
    since_s = min((now_ns - start_ns) / 1e9, KEEP_S)
    ago_s = max(0.0, (now_ns - max(ends_ns, default=now_ns)) / 1e9)
    return Lookback(since_s - ago_s, ago_s) if ago_s < since_s else Lookback(since_s)
