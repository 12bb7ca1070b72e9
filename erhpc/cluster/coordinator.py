"""Rank 0's part: gather the agents, give out ports, start experts, gateway and clients, store each level, stop all.

The course of a run reads top to bottom in `Coordinator.conduct`. It starts no process itself (agents do).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from erhpc.cluster import network
from erhpc.cluster.clients import GONE, STOP_MARGIN_S, LevelClients
from erhpc.cluster.crew import Crew
from erhpc.cluster.levels import LevelStore
from erhpc.cluster.machine_lock import find_holder, hold_machine
from erhpc.cluster.messages import Assign, Output, Start, Stop, Survey
from erhpc.cluster.status import LevelResult, ReplicaStatus, RunState, RunStatus, StatusFile
from erhpc.errors import ProcessError
from erhpc.load.progress import Progress
from erhpc.load.sweep import Sweep
from erhpc.plan.commands import GATEWAY_STATUS_URL
from erhpc.plan.levels import LoadPoint
from erhpc.plan.placeholders import Bindings
from erhpc.plan.plan import Plan, PlannedLevel, PlannedProcess
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.provenance import add_to_manifest

GATHER_TIMEOUT_S = 300.0
EVERYBODY = -1
"""The rank under which the end of the walltime is noted."""


class Interruption(Exception):
    """The run was told to stop (scancel, Ctrl-C, time limit); caught where the run ends."""


class Coordinator:
    """Leads one run. `conduct` returns its final status; whatever happens, everything is stopped and saved."""

    def __init__(self, plan: Plan, run: RunPaths, key: str, job_number: int) -> None:
        self._plan = plan
        self._run = run
        self._key = key
        self._job_number = job_number
        self.crew = Crew(num_nodes=plan.num_nodes, on_output=self._hear)
        replicas = {replica.replica: ReplicaStatus() for replica in plan.replicas}
        status = RunStatus(
            experiment=plan.experiment.name, engine=plan.engine, num_levels=len(plan.levels), replicas=replicas
        )
        self._file = StatusFile(run.status, status)
        self._servers: list[PlannedProcess] = []
        self._addresses: list[str] = []
        self._clients: LevelClients | None = None
        self._conclusion = ""
        self._end: Interruption | ProcessError | None = None

    async def conduct(self) -> RunStatus:
        """Run the plan from the first handshake to the last proof."""
        # The machine is held until everything is stopped, so the stack encloses the stopping.
        async with contextlib.AsyncExitStack() as stack:
            try:
                self._enter("starting", "gathering the nodes")
                await self._gather()
                if self._plan.cluster == "local":
                    self._enter("waiting", f"this machine is held by {find_holder(self._plan)}")
                    await self._unless_interrupted(stack.enter_async_context(hold_machine(self._plan, self._run)))
                expiry = asyncio.create_task(self._expire())
                stack.callback(expiry.cancel)
                bindings = await self._assign()
                await self._load_servers()
                await self._run_levels(bindings)
                self._enter("finished", self._conclusion)
            except Interruption:
                self._enter("interrupted", f"told to stop; levels saved: {len(self._file.status.levels)}")
            except ProcessError as error:
                self._fail(str(error))
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")
                raise
            finally:
                await self._stop_all()
        return self._file.status

    async def _expire(self) -> None:
        """End the run like a failure once its walltime is over; Slurm warns before, a local run has only this."""
        await asyncio.sleep(self._plan.walltime_s)
        reason = (
            f"the planned walltime of {self._plan.walltime_s / 60:.0f} min is over ({self._file.status.detail}). "
            "Shorten the levels (workload.measure_s, drain_s) or ask for fewer of them"
        )
        await self.crew.lose(EVERYBODY, reason)

    async def _gather(self) -> None:
        everybody = self.crew.wait_for(
            lambda: len(self.crew.hellos) == self._plan.num_nodes or self._is_over(),
            GATHER_TIMEOUT_S,
        )
        complete = await everybody
        self._check()
        if not complete:
            missing = sorted(set(range(self._plan.num_nodes)) - set(self.crew.hellos))
            raise ProcessError(
                f"ranks {missing} did not reach rank 0 within {GATHER_TIMEOUT_S:.0f} s. "
                "See their logs in submission/; may the nodes reach each other on cluster.ports?"
            )

    async def _assign(self) -> Bindings:
        hellos = [self.crew.hellos[rank] for rank in range(self._plan.num_nodes)]
        bands = list(self._plan.ports.bands_for(self._job_number))
        self.crew.tell(Survey(bands=bands))
        await self.crew.wait_for(lambda: len(self.crew.free_bands) == self._plan.num_nodes or self._is_over())
        self._check()
        common = [band for band in bands if all(band in free for free in self.crew.free_bands.values())]
        if not common:
            raise ProcessError(
                f"no port band is free on every node: tried {len(bands)} bands of {self._plan.ports.width} ports "
                f"within {self._plan.ports.first}..{self._plan.ports.last}. Choose other cluster.ports."
            )
        add_to_manifest(self._run.manifest, nodes={hello.node: hello.facts for hello in hellos})
        self._addresses = [hello.address for hello in hellos]
        if network.is_loopback(self._addresses[0]):
            # Rank 0 may know itself as loopback only; the others know the address they reached it by.
            reached = [h.coordinator_address for h in hellos[1:] if not network.is_loopback(h.coordinator_address)]
            self._addresses[0] = next(iter(reached), self._addresses[0])
        self.crew.tell(Assign(addresses=self._addresses, band=common[0]))
        return Bindings(str(self._run.root), "", self._addresses, self._plan.ports.base(common[0]))

    async def _load_servers(self) -> None:
        experts = [process for process in self._plan.processes if process.kind == "expert"]
        self._enter("loading", f"{len(self._plan.replicas)} replicas")
        await self._start_and_await(experts)
        if self._plan.gateway is not None:
            self._enter("loading", "gateway")
            await self._start_and_await([self._plan.gateway])

    async def _start_and_await(self, processes: Sequence[PlannedProcess]) -> None:
        for process in processes:
            self.crew.tell(Start(names=[process.name]), [process.node])
        self._servers.extend(processes)
        waiting = [process.name for process in processes]
        while waiting:
            await self.crew.wait_for(functools.partial(self._is_news, waiting))
            self._show_replicas()
            self._check()
            waiting = [name for name in waiting if self.crew.phase(name) != "ready"]

    def _is_news(self, waiting: Sequence[str]) -> bool:
        return self._is_over() or any(self.crew.phase(name) == "ready" for name in waiting)

    async def _run_levels(self, bindings: Bindings) -> None:
        endpoints = {replica.replica: bindings.fill(replica.url) for replica in self._plan.replicas}
        gateway = self._plan.gateway
        gateway_url = bindings.fill(gateway.ready[0].url) if gateway is not None else None
        status_url = bindings.fill(GATEWAY_STATUS_URL) if gateway is not None else None
        listing = {"gateway": gateway_url, "gateway_status": status_url, "replicas": endpoints}
        write_atomically(self._run.endpoints, msgspec.json.format(msgspec.json.encode(listing), indent=2))
        async with LevelStore(self._plan, self._run, self._key, status_url, list(endpoints.values())) as store:
            await self._calibrate()
            await self._sweep(store)

    async def _calibrate(self) -> None:
        """Measure the client before it measures anything."""
        calibration = self._plan.calibration
        if calibration is None:
            return
        self._enter("loading", "calibrating the client")
        self.crew.tell(Start(names=[calibration.name]), [calibration.node])
        await self.crew.wait_for(lambda: self.crew.phase(calibration.name) in GONE or self._is_over())
        self._check()
        if failure := self.crew.find_failure([calibration.name]) if self._exit_code(calibration.name) != 0 else None:
            raise ProcessError(failure)

    def _exit_code(self, name: str) -> int | None:
        return self.crew.reports[name].exit_code

    async def _sweep(self, store: LevelStore) -> None:
        experiment, levels = self._plan.experiment, self._plan.levels
        sweep = Sweep([level.point for level in levels], experiment.search, experiment.stop, experiment.slo)
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        for level in levels:
            point = sweep.next_point(level.expected_s, clock() - begun_s)
            if point is None:
                break
            sweep.add(await self._run_level(level, point, store))
            if sweep.result is not None:
                write_atomically(self._run.search, msgspec.json.format(msgspec.json.encode(sweep.result), indent=2))
        self._conclusion = sweep.describe_end()

    async def _run_level(self, level: PlannedLevel, point: LoadPoint, store: LevelStore) -> dict[str, Any]:
        processes = self._plan.clients(level.level)
        self._enter("running", f"level {level.level + 1} of {len(self._plan.levels)}: {point.describe()}")
        clients = LevelClients(self.crew, processes, self._plan.experiment.workload, point, self._show_progress)
        self._clients = clients
        await clients.run(self._is_over)
        row = await store.store(level, point, self._reasons())
        if row is not None:
            self._file.status.levels.append(msgspec.convert(row, LevelResult, strict=False))
        self._file.status.progress = None
        self._file.publish()
        self._check()
        failure = clients.find_failure()
        if failure or row is None:
            raise ProcessError(
                failure or f"{processes[0].name} left no records (log: {self._run.log(processes[0].name)})"
            )
        return row

    def _is_over(self) -> bool:
        """Whether the run was interrupted or lost a server; what came first stays the reason."""
        if self._end is None:
            failure = self.crew.find_failure(process.name for process in self._servers)
            if self.crew.interrupted:
                self._end = Interruption()
            elif failure is not None:
                self._end = ProcessError(failure)
        return self._end is not None

    def _check(self) -> None:
        """Raise why the run is over, if it is."""
        if self._is_over() and self._end is not None:
            raise self._end

    def _reasons(self) -> list[str]:
        if self._end is None:
            return []
        return ["interrupted"] if isinstance(self._end, Interruption) else [f"broken off: {self._end}"]

    async def _unless_interrupted(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, but give up as soon as the run is interrupted."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self.crew.wait_for(self._is_over))
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._check()
        await task

    async def _stop_all(self) -> None:
        self.crew.tell(Stop())
        # Clients are stopped before servers, one patience after the other.
        timeout_s = 2 * max(process.stop_timeout_s for process in self._plan.processes) + STOP_MARGIN_S
        gone = await self.crew.wait_for(
            lambda: set(self.crew.hellos) <= set(self.crew.done) | set(self.crew.lost), timeout_s
        )
        leftovers = [line for lines in self.crew.done.values() for line in lines]
        if not gone or leftovers:
            self._fail("; ".join(leftovers) or f"not every agent stopped within {timeout_s:.0f} s")
        self._file.publish()

    def _enter(self, state: RunState, detail: str = "") -> None:
        self._file.status.state = state
        self._file.status.detail = detail
        self._file.publish()

    def _fail(self, error: str) -> None:
        self._file.status.error = self._file.status.error or error
        self._enter("failed")

    def _show_replicas(self) -> None:
        for process in self._servers:
            report = self.crew.reports.get(process.name)
            if report is None or not process.ready:
                continue
            for replica in process.replicas:
                shown = self._file.status.replicas[replica]
                shown.node = self.crew.hellos[report.rank].node
                shown.state = {"started": "loading"}.get(report.phase, report.phase)
                shown.load_s = report.seconds if report.phase == "ready" else None
        self._file.publish()

    def _hear(self, output: Output) -> None:
        if self._clients is not None:
            self._clients.hear(output)

    def _show_progress(self, progress: Progress) -> None:
        self._file.status.progress = msgspec.to_builtins(progress)
        self._file.publish()
