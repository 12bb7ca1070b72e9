"""The planned processes of one node: start them, tell when they serve or end, stop them with proof.

It knows the plan and this node; when something starts or stops is decided elsewhere and said over TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from erhpc.cluster import network
from erhpc.cluster.janitor import Janitor
from erhpc.cluster.messages import Output, ProcessReport
from erhpc.cluster.process import ChildProcess
from erhpc.errors import ErhpcError, ProcessError
from erhpc.experts.engine_log import first_error
from erhpc.experts.readiness import wait_until_ready
from erhpc.plan.placeholders import Bindings
from erhpc.plan.plan import Plan, PlannedProcess
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths

SIGNAL_GRACE_S = 0.5
"""A scancel reaches the children too; an exit this close to our own signal is no failure of theirs."""

CLIENTS = ("client", "calibration")
"""Kinds of processes that end by themselves and talk by lines."""
_LOG_TAIL_BYTES = 256 * 1024


class Children:
    """Runs planned processes; `send` receives every ProcessReport and every line of a client."""

    def __init__(
        self,
        plan: Plan,
        run: RunPaths,
        *,
        rank: int,
        node: str,
        key: str,
        janitor: Janitor,
        inherited: Mapping[str, str],
        send: Callable[[ProcessReport | Output], None],
        stop_signal: asyncio.Event,
    ) -> None:
        self._plan = plan
        self._run = run
        self._rank = rank
        self._node = node
        self._key = key
        self._janitor = janitor
        self._inherited = inherited
        self._send = send
        self._stop_signal = stop_signal
        self._bindings: Bindings | None = None
        self._address = ""
        self._running: dict[str, ChildProcess] = {}
        self._stopping: set[str] = set()
        self._loads = asyncio.Semaphore(plan.parallel_loads)
        self._starts: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()

    def bind(self, bindings: Bindings, address: str) -> None:
        """Learn what the plan left open, and this node's own address; nothing can start before."""
        self._bindings = bindings
        self._address = address

    def start(self, name: str) -> None:
        """Start a process in the background; its reports tell how that goes."""
        _keep(self._starts, self._start(self._plan.process(name)))

    def write_line(self, name: str, line: str) -> None:
        """Write a line to the stdin of a running client; one that has ended needs none."""
        if name in self._running:
            self._running[name].write_line(line.encode())

    async def stop(self, name: str) -> None:
        """Stop a process and everything it started.

        Raises:
            ProcessError: something outlived SIGKILL.
        """
        self._stopping.add(name)
        child = self._running.pop(name, None)
        if child is not None:
            await child.stop(self._plan.process(name).stop_timeout_s)
            self._janitor.forget(child.pid)
        self._report(name, "stopped")

    async def stop_everything(self) -> list[str]:
        """Stop all, clients first: they save their records while the servers still stand. Returns what is left."""
        # A replica that dies now would give its turn to load to the next one, which nobody would stop.
        await _cancel(self._starts)
        leftovers: list[str] = []
        for kinds in (CLIENTS, ("gateway", "expert")):
            names = [name for name in self._running if self._plan.process(name).kind in kinds]
            results = await asyncio.gather(*(self.stop(name) for name in names), return_exceptions=True)
            leftovers += [f"{name}: {r}" for name, r in zip(names, results, strict=True) if r is not None]
        await _cancel(self._watches)
        return leftovers

    async def _start(self, planned: PlannedProcess) -> None:
        try:
            if planned.kind == "expert":
                async with self._loads:
                    await self._start_and_await(planned)
            else:
                await self._start_and_await(planned)
        except (ErhpcError, OSError) as error:
            self._report(planned.name, "failed", detail=self._explain(planned.name, str(error)))

    async def _start_and_await(self, planned: PlannedProcess) -> None:
        if planned.name in self._stopping or self._bindings is None:
            return
        started_s = time.monotonic()
        child = await self._execute(planned, self._bindings)
        self._report(planned.name, "started")
        _keep(self._watches, self._watch(planned, child))
        for check in planned.ready:
            await wait_until_ready(
                self._bindings.fill(check.url),
                check.model,
                self._key,
                timeout_s=check.timeout_s,
                is_alive=lambda: child.is_alive,
            )
        self._report(planned.name, "ready", seconds=time.monotonic() - started_s)

    async def _execute(self, planned: PlannedProcess, bindings: Bindings) -> ChildProcess:
        for offset in planned.ports:
            if not network.is_free(self._address, bindings.base_port + offset):
                raise ProcessError(
                    f"port {bindings.base_port + offset} on {self._node} was taken by a stranger meanwhile. "
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
            self._environment(planned, bindings),
            self._run.log(planned.name),
            on_line=self._relay_line(planned.name) if planned.kind in CLIENTS else None,
        )
        self._running[planned.name] = child
        self._janitor.watch(child.pid)
        return child

    def _environment(self, planned: PlannedProcess, bindings: Bindings) -> dict[str, str]:
        # VLLM_PORT of a foreign shell would put every engine on one port.
        environment = {name: value for name, value in self._inherited.items() if name != "VLLM_PORT"}
        environment |= network.extend_no_proxy(self._inherited, bindings.addresses)
        environment |= {name: bindings.fill(value) for name, value in planned.environment.items()}
        if planned.python_path is not None:
            folder = bindings.fill(planned.python_path)
            environment["PYTHONPATH"] = prepend_folder(folder, environment.get("PYTHONPATH"))
        if planned.kind == "expert":
            environment["VLLM_API_KEY"] = self._key
            environment["CUDA_VISIBLE_DEVICES"] = self._choose_devices(planned)
        if "TMPDIR" in planned.environment:
            Path(environment["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        return environment

    def _choose_devices(self, planned: PlannedProcess) -> str:
        if not self._plan.uses_gpus or not planned.gpus:
            return ""
        visible = network.find_visible_devices(self._inherited)
        if not visible and not self._plan.requests_gpus:
            visible = ",".join(map(str, range(self._plan.gpus_per_node)))  # a site that gives whole nodes, unasked
        return network.slice_devices(visible, planned.gpus)

    def _relay_line(self, name: str) -> Callable[[bytes], None]:
        return lambda line: self._send(Output(name=name, line=line.decode(errors="replace")))

    async def _watch(self, planned: PlannedProcess, child: ChildProcess) -> None:
        code = await child.wait()
        if planned.name in self._stopping:
            return
        if planned.kind not in CLIENTS:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_signal.wait(), SIGNAL_GRACE_S)
                return
        reason = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        try:
            # What the command left behind in its session must not outlive it.
            await child.stop(planned.stop_timeout_s)
            self._running.pop(planned.name, None)
            self._janitor.forget(child.pid)
        except (ErhpcError, OSError) as error:
            reason = f"{reason}; {error}"
            code = code or -1
        detail = "" if code == 0 else self._explain(planned.name, reason)
        self._report(planned.name, "exited", detail=detail, exit_code=code)

    def _explain(self, name: str, reason: str) -> str:
        log = self._run.log(name)
        text = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""
        cause = first_error(text)
        where = f"{name} on {self._node}"
        if cause and reason.startswith("killed"):
            return f"{where}: {reason}; last in its log: {cause} (log: {log})"
        return f"{where}: {cause} ({reason}; log: {log})" if cause else f"{where}: {reason} (log: {log})"

    def _report(self, name: str, phase: Any, **details: Any) -> None:
        self._send(ProcessReport(rank=self._rank, name=name, phase=phase, **details))


def prepend_folder(folder: str, inherited: str | None) -> str:
    """A search path that begins with `folder`; an empty entry would stand for the working folder."""
    return f"{folder}{os.pathsep}{inherited}" if inherited else folder


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
