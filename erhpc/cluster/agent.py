"""The node agent: starts the planned processes of one node, watches them, reports, and stops them with proof.

The same function runs on every node. It decides nothing: rank 0's coordinator says what starts and stops when.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from erhpc.cluster import network
from erhpc.cluster.janitor import Janitor
from erhpc.cluster.messages import (
    Assign,
    CoordinatorMessage,
    Done,
    FreeBands,
    Hello,
    Interrupted,
    Output,
    ProcessPhase,
    ProcessReport,
    Start,
    Stop,
    Survey,
)
from erhpc.cluster.process import ChildProcess
from erhpc.cluster.rendezvous import Link
from erhpc.errors import ErhpcError, ProcessError
from erhpc.experts.engine_log import first_error
from erhpc.experts.readiness import wait_until_ready
from erhpc.plan.placeholders import Bindings
from erhpc.plan.plan import Plan, PlannedProcess
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.provenance import collect_provenance

SIGNAL_GRACE_S = 0.5
"""A scancel reaches the children too; an exit this close to our own signal is no failure of theirs."""

_LOG_TAIL_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class NodeIdentity:
    """Who this agent is within its job."""

    rank: int
    node: str
    num_nodes: int
    job_id: str


class NodeAgent:
    """Runs the processes of one node. `stop_signal` is set from outside when the node is told to stop."""

    def __init__(
        self,
        plan: Plan,
        run: RunPaths,
        identity: NodeIdentity,
        link: Link[CoordinatorMessage],
        key: str,
        stop_signal: asyncio.Event,
    ) -> None:
        self._plan = plan
        self._run = run
        self._identity = identity
        self._link = link
        self._key = key
        self._stop_signal = stop_signal
        self._address = network.choose_own_address(
            node=identity.node,
            num_nodes=identity.num_nodes,
            interface=plan.experiment.cluster.interface,
            link_address=link.local_address,
            coordinator_address=link.peer_address,
        )
        self._tmp = Path(plan.experiment.cluster.tmp) / f"erhpc-{identity.job_id}-{identity.rank}"
        self._bindings: Bindings | None = None
        self._children: dict[str, ChildProcess] = {}
        self._stopping: set[str] = set()
        self._loads = asyncio.Semaphore(plan.parallel_loads)
        self._starts: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._janitor = Janitor()

    async def serve(self) -> None:
        """Obey the coordinator until it says stop or vanishes; afterwards no process of this node is left."""
        self._tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._link.send(self._introduce())
        watcher = asyncio.create_task(self._relay_signal())
        try:
            while (message := await self._link.receive()) is not None:
                if await self._obey(message):
                    break
        finally:
            watcher.cancel()
            leftovers = await self._stop_everything()
            self._link.send(Done(rank=self._identity.rank, leftovers=leftovers))
            self._janitor.close()
            shutil.rmtree(self._tmp, ignore_errors=True)
            await self._link.close()

    def _introduce(self) -> Hello:
        facts = collect_provenance() | {
            "address": self._address,
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        return Hello(
            rank=self._identity.rank,
            node=self._identity.node,
            address=self._address,
            coordinator_address=self._link.peer_address,
            facts=facts,
        )

    async def _relay_signal(self) -> None:
        await self._stop_signal.wait()
        self._link.send(Interrupted(rank=self._identity.rank, signal="stop"))

    async def _obey(self, message: CoordinatorMessage) -> bool:
        match message:
            case Survey():
                free = network.find_free_bands(self._plan.ports, message.bands, self._address)
                self._link.send(FreeBands(rank=self._identity.rank, bands=free))
            case Assign():
                base_port = self._plan.ports.base(message.band)
                self._bindings = Bindings(str(self._run.root), str(self._tmp), message.addresses, base_port)
            case Start():
                for name in message.names:
                    _keep(self._starts, self._start(self._plan.process(name)))
            case Stop(names=[]):
                return True
            case Stop():
                await asyncio.gather(*(self._stop(name) for name in message.names))
        return False

    async def _start(self, planned: PlannedProcess) -> None:
        try:
            if planned.kind == "expert":
                async with self._loads:
                    await self._start_and_await(planned)
            else:
                await self._start_and_await(planned)
        except ErhpcError as error:
            self._report(planned.name, "failed", detail=self._explain(planned.name, error))

    async def _start_and_await(self, planned: PlannedProcess) -> None:
        if planned.name in self._stopping or self._bindings is None:
            return
        started_s = time.monotonic()
        child = await self._execute(planned, self._bindings)
        self._report(planned.name, "started")
        _keep(self._watches, self._watch(planned, child))
        if planned.ready is not None:
            await wait_until_ready(
                self._bindings.fill(planned.ready.url),
                planned.ready.model,
                self._key,
                timeout_s=planned.ready.timeout_s,
                is_alive=lambda: child.is_alive,
            )
        self._report(planned.name, "ready", seconds=time.monotonic() - started_s)

    async def _execute(self, planned: PlannedProcess, bindings: Bindings) -> ChildProcess:
        for offset in planned.ports:
            if not network.is_free(self._address, bindings.base_port + offset):
                raise ProcessError(
                    f"port {bindings.base_port + offset} on {self._identity.node} was taken by a stranger meanwhile. "
                    "Run again, or move cluster.ports below the nodes' ephemeral range."
                )
        if planned.spec is not None:
            path = self._run.spec(planned.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = bindings.fill(msgspec.json.encode(planned.spec).decode())
            write_atomically(path, msgspec.json.format(text.encode(), indent=2))
        child = await ChildProcess.start(
            planned.name,
            [bindings.fill(word) for word in planned.argv],
            self._environment(planned, bindings, os.environ),
            self._run.log(planned.name),
            on_line=self._relay_line(planned.name) if planned.kind == "client" else None,
        )
        self._children[planned.name] = child
        self._janitor.watch(child.pid)
        return child

    def _environment(self, planned: PlannedProcess, bindings: Bindings, inherited: Mapping[str, str]) -> dict[str, str]:
        # VLLM_PORT of a foreign shell would put every engine on one port.
        environment = {name: value for name, value in inherited.items() if name != "VLLM_PORT"}
        environment |= network.extend_no_proxy(inherited, bindings.addresses)
        environment |= {name: bindings.fill(value) for name, value in planned.environment.items()}
        if planned.kind == "expert":
            environment["VLLM_API_KEY"] = self._key
            on_gpus = self._plan.requests_gpus and bool(planned.gpus)
            visible = inherited.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = network.slice_devices(visible, planned.gpus) if on_gpus else ""
        if "TMPDIR" in planned.environment:
            Path(environment["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        return environment

    def _relay_line(self, name: str) -> Any:
        return lambda line: self._link.send(Output(name=name, line=line.decode(errors="replace")))

    async def _watch(self, planned: PlannedProcess, child: ChildProcess) -> None:
        code = await child.wait()
        if planned.name in self._stopping:
            return
        if planned.kind != "client":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_signal.wait(), SIGNAL_GRACE_S)
                return
        # What the command left behind in its session must not outlive it.
        await child.stop(planned.stop_timeout_s)
        self._janitor.forget(child.pid)
        reason = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        detail = "" if code == 0 else self._explain(planned.name, ProcessError(reason))
        self._report(planned.name, "exited", detail=detail, exit_code=code)

    def _explain(self, name: str, error: ErhpcError) -> str:
        log = self._run.log(name)
        text = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""
        cause = first_error(text)
        where = f"{name} on {self._identity.node}"
        return f"{where}: {cause} ({error}; log: {log})" if cause else f"{where}: {error} (log: {log})"

    def _report(self, name: str, phase: ProcessPhase, **details: Any) -> None:
        self._link.send(ProcessReport(rank=self._identity.rank, name=name, phase=phase, **details))

    async def _stop(self, name: str) -> None:
        self._stopping.add(name)
        child = self._children.get(name)
        if child is not None:
            await child.stop(self._plan.process(name).stop_timeout_s)
            self._janitor.forget(child.pid)
        self._report(name, "stopped")

    async def _stop_everything(self) -> list[str]:
        """Clients first: they save their records while the servers still stand."""
        # A replica that dies now would give its turn to load to the next one, which nobody would stop.
        await _cancel(self._starts)
        leftovers: list[str] = []
        for kinds in (("client",), ("gateway", "expert")):
            names = [name for name in self._children if self._plan.process(name).kind in kinds]
            results = await asyncio.gather(*(self._stop(name) for name in names), return_exceptions=True)
            leftovers += [f"{name}: {r}" for name, r in zip(names, results, strict=True) if r is not None]
        await _cancel(self._watches)
        return leftovers


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
