"""A load on a server that erhpc did not start: client processes on this machine, no router and no scheduler.

The same clients, conductor and results as in a run on a cluster; only who starts the processes differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from erhpc.cluster.process import ChildProcess
from erhpc.config import EngineConfig, LoadTestConfig
from erhpc.discovery import find_base_url, is_emulated, list_models
from erhpc.errors import ConfigError, ProcessError
from erhpc.experts.engine_log import first_error
from erhpc.key_file import read_key_file
from erhpc.load.calibrating import read_capacity
from erhpc.load.conductor import Conductor
from erhpc.load.messages import encode_line, parse_report
from erhpc.load.progress import Progress
from erhpc.load.sweep import Sweep
from erhpc.plan.commands import CLIENT_STOP_S, SEED_STRIDE
from erhpc.plan.duration import plan_levels
from erhpc.plan.emulation import explain_rehearsal
from erhpc.plan.levels import LoadPoint
from erhpc.plan.protocol import read_speedup
from erhpc.plan.specs import CalibrationSpec, ClientSpec
from erhpc.results import store
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.provenance import collect_provenance, write_manifest
from erhpc.results.record import SCHEMA_VERSION, LevelIdentity
from erhpc.results.summary import summarise_level

EXTERNAL = "external"
"""What the column `engine` says of a server that erhpc did not start."""
EMULATED = "emulated"


def prepare_folder(config: LoadTestConfig, yaml: str, server: Server, key: str | None, now: datetime) -> RunPaths:
    """Make `<output_root>/<name>/<time>-<id>/` with the configuration, the provenance and empty results.

    The key lies in it, readable by its owner only, for as long as the clients need it.
    """
    name = f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run = RunPaths(Path(config.output_root).resolve() / config.name / name)
    for folder in (run.logs, run.parts):
        folder.mkdir(parents=True)
    write_atomically(run.config, yaml.encode())
    if key is not None:
        write_atomically(run.key, key.encode(), mode=0o600)
    store.empty_results(run)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "experiment": config.name,
        "run_id": run.root.name,
        "engine": server.engine,
        "url": config.url,
        "model": server.model,
        "seed": config.seed,
        "config": msgspec.to_builtins(config),
        "submitted_from": collect_provenance(),
    }
    write_manifest(run.manifest, manifest)
    return run


def read_api_key(config: LoadTestConfig) -> str | None:
    """The bearer token: the file that `key` names, else $OPENAI_API_KEY, else none. Raises InputError."""
    if config.key is None:
        return os.environ.get("OPENAI_API_KEY") or None
    return read_key_file("key", config.key)


@dataclass(frozen=True)
class Server:
    """What is asked: base URL, model, and the engine as far as the server tells."""

    url: str
    model: str
    engine: str
    speedup: float = 1.0
    """How many times as fast time runs for it: an emulated expert may say so."""


async def find_server(config: LoadTestConfig, key: str | None) -> Server:
    """Ask the server which models it has: the first one is taken unless the configuration names one.

    An emulated expert of erhpc says that it is one, so that its numbers cannot pass for those of a real server.

    Raises:
        ConfigError: the server cannot be asked, or lists no model and none is named.
    """
    try:
        cards = await list_models(config.url, key)
    except (aiohttp.ClientError, OSError) as error:
        raise ConfigError(
            f"url={config.url}: the server cannot be asked ({type(error).__name__}: {error}). Is it up? Give its base "
            "URL."
        ) from error
    if config.model is None and not cards:
        raise ConfigError(f"url={config.url}: /v1/models lists no model. Name one: model=NAME.")
    model = config.model or next(iter(cards))
    engine = EMULATED if is_emulated(cards) else EXTERNAL
    return Server(find_base_url(config.url), model, engine, max(map(read_speedup, cards.values()), default=1.0))


class LoadTest:
    """One run of all levels. `stop` ends the level in progress, whose records are kept, and with it the run."""

    def __init__(
        self,
        config: LoadTestConfig,
        run: RunPaths,
        server: Server,
        stop: asyncio.Event,
        *,
        on_progress: Callable[[Progress], None],
        on_row: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config = config
        self._run = run
        self._server = server
        self._stop = stop
        self._on_progress = on_progress
        self._on_row = on_row

    async def conduct(self) -> str:
        """Run every level; returns why the sweep ended before its last one, empty if it did not.

        Raises:
            ProcessError: a client process failed; the levels before are saved.
        """
        config = self._config
        await self._calibrate()
        levels = plan_levels(config.workload, config.search)
        sweep = Sweep([level.point for level in levels], config.search, config.stop, config.slo)
        begun_s = time.monotonic()
        for level in levels:
            point = sweep.next_point(level.expected_s, time.monotonic() - begun_s)
            if point is None or self._stop.is_set():
                break
            row = await self._run_level(level.level, point)
            sweep.add(row)
            self._on_row(row)
            if sweep.result is not None:
                write_atomically(self._run.search, msgspec.json.format(msgspec.json.encode(sweep.result), indent=2))
        return sweep.reason

    async def _calibrate(self) -> None:
        if not self._config.load.calibrate:
            return
        spec = CalibrationSpec(load=self._config.load, output=str(self._run.calibration))
        child = await self._start("calibration", "calibration", spec, lambda line: None)
        await self._wait_for([child])

    async def _run_level(self, level: int, point: LoadPoint) -> dict[str, Any]:
        config, num_workers = self._config, self._config.load.num_workers
        children: list[ChildProcess] = []
        conductor = Conductor(
            config.workload,
            level,
            point,
            num_workers,
            tell=lambda worker, command: children[worker].write_line(encode_line(command)),
            on_progress=self._on_progress,
        )
        for worker in range(num_workers):
            children.append(await self._start_client(level, worker, conductor))
        conducting = asyncio.create_task(conductor.conduct())
        try:
            await self._wait_for(children, on_end=conductor.lose)
        finally:
            conducting.cancel()
            await asyncio.gather(conducting, return_exceptions=True)
        return self._store(level, point)

    async def _start_client(self, level: int, worker: int, conductor: Conductor) -> ChildProcess:
        config = self._config
        spec = ClientSpec(
            url=self._server.url,
            model=self._server.model,
            level=level,
            workload=config.workload.at_level(level),
            load=config.load,
            seed=config.seed * SEED_STRIDE + level,
            output=str(self._run.part(level, worker)),
            worker=worker,
            num_workers=config.load.num_workers,
            key_file=str(self._run.key) if self._run.key.exists() else None,
        )

        def hear(line: bytes) -> None:
            report = parse_report(line)
            if report is not None:
                conductor.hear(worker, report)

        return await self._start(f"client-{level:03d}-{worker}", "client", spec, hear)

    async def _start(self, name: str, kind: str, spec: object, on_line: Callable[[bytes], None]) -> ChildProcess:
        path = self._run.spec(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(spec), indent=2))
        argv = [sys.executable, "-m", f"jobs.{kind}", "--spec", str(path)]
        return await ChildProcess.start(name, argv, os.environ, self._run.log(name), on_line)

    async def _wait_for(
        self, children: list[ChildProcess], on_end: Callable[[int], None] = lambda worker: None
    ) -> None:
        """Wait until all have ended; stop them as soon as `stop` is set or one of them fails."""
        waits = {asyncio.create_task(child.wait()): number for number, child in enumerate(children)}
        stopping = asyncio.create_task(self._stop.wait())
        pending = set(waits)
        failed: list[ChildProcess] = []
        try:
            while pending and not failed and not stopping.done():
                done, _ = await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
                for task in done & pending:
                    pending.discard(task)
                    on_end(waits[task])
                    failed += [children[waits[task]]] if task.result() else []
        finally:
            stopping.cancel()
            await asyncio.gather(*(child.stop(CLIENT_STOP_S) for child in children))
        if failed:
            raise ProcessError(self._explain(failed[0]))

    def _explain(self, child: ChildProcess) -> str:
        log = self._run.log(child.name)
        cause = first_error(log.read_text(errors="replace")) if log.exists() else None
        return f"{child.name}: {cause or 'ended without a word'} (log: {log})"

    def _store(self, level: int, point: LoadPoint) -> dict[str, Any]:
        config = self._config
        paths = [self._run.part(level, worker) for worker in range(config.load.num_workers)]
        parts = [store.read_part(path) for path in paths if path.exists()]
        identity = LevelIdentity(
            experiment=config.name,
            run_id=self._run.root.name,
            engine=self._server.engine,
            level=level,
            arrivals=config.workload.arrivals.kind,
            users=point.users,
            rate_per_s=point.rate_per_s,
            num_replicas=None,
            num_gpus=None,
        )
        row = summarise_level(
            identity,
            parts,
            gateway_lag_p99_s=None,
            engine_lag_p99_s=None,
            reasons=self._list_reasons(),
            workload=config.workload,
            slo=config.slo,
            capacity_tokens_per_s=read_capacity(self._run.calibration),
        )
        store.append_level(self._run, identity, parts, row)
        for path in paths:
            path.unlink(missing_ok=True)
        return row

    def _list_reasons(self) -> list[str]:
        """Why the level is invalid as seen from outside."""
        reasons = explain_rehearsal(EngineConfig(speedup=self._server.speedup))
        return [*reasons, "interrupted"] if self._stop.is_set() else reasons


def stop_on_signals() -> asyncio.Event:
    """Set once the process is told to end; needs a running event loop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
