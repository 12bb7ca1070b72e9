"""The client processes of one level, wherever they run: started together, led by one conductor, stopped if need be.

It carries lines between the conductor and the agents' children; what the lines mean is the load's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from erhpc.cluster.crew import Crew
from erhpc.cluster.messages import Input, Output, Start, Stop
from erhpc.config import WorkloadConfig
from erhpc.load.conductor import Conductor
from erhpc.load.messages import Command, encode_line, parse_report
from erhpc.load.progress import Progress
from erhpc.plan.levels import LoadPoint
from erhpc.plan.plan import PlannedProcess

GONE = ("stopped", "exited", "failed")
STOP_MARGIN_S = 30.0
"""On top of the patience that the plan gives its processes: KILL, and a slow file system."""


class LevelClients:
    """Runs `processes` through one level."""

    def __init__(
        self,
        crew: Crew,
        processes: tuple[PlannedProcess, ...],
        workload: WorkloadConfig,
        point: LoadPoint,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._crew = crew
        self._processes = processes
        self._workers = {process.name: worker for worker, process in enumerate(processes)}
        level = processes[0].level or 0
        self._conductor = Conductor(workload, level, point, len(processes), tell=self._tell, on_progress=on_progress)

    def hear(self, output: Output) -> None:
        """Take a line that one of the clients printed."""
        worker = self._workers.get(output.name)
        report = parse_report(output.line.encode())
        if worker is not None and report is not None:
            self._conductor.hear(worker, report)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Run the level until every client has ended; stop them as soon as `is_over`, or when one of them breaks."""
        for process in self._processes:
            self._crew.tell(Start(names=[process.name]), [process.node])
        conducting = asyncio.create_task(self._conductor.conduct())
        try:
            await self._follow(lambda: is_over() or self._broken() is not None)
        finally:
            conducting.cancel()
            await asyncio.gather(conducting, return_exceptions=True)
        await self._stop_rest()

    def find_failure(self) -> str | None:
        """Why the first client that did not end well did not; None if all did."""
        broken = self._broken()
        if broken is None:
            return None
        report = self._crew.reports[broken]
        return report.detail or f"{broken} ended with exit code {report.exit_code}"

    async def _follow(self, is_cut: Callable[[], bool]) -> None:
        """Wait until all have ended by themselves, or `is_cut`; tell the conductor of each that ends."""
        remaining = set(self._workers)
        while remaining and not is_cut():
            await self._crew.wait_for(lambda: is_cut() or not remaining.isdisjoint(self._ended()))
            for name in remaining & self._ended():
                self._conductor.lose(self._workers[name])
                remaining.discard(name)

    async def _stop_rest(self) -> None:
        rest = [process for process in self._processes if self._crew.phase(process.name) not in GONE]
        for process in rest:
            self._crew.tell(Stop(names=[process.name]), [process.node])
        await self._crew.wait_for(
            lambda: all(self._crew.phase(p.name) in GONE or p.node in self._crew.lost for p in rest),
            max((process.stop_timeout_s for process in rest), default=0.0) + STOP_MARGIN_S,
        )

    def _ended(self) -> set[str]:
        return {name for name in self._workers if self._crew.phase(name) in GONE}

    def _broken(self) -> str | None:
        """The first client that failed, or ended with another exit code than 0."""
        for name in self._workers:
            report = self._crew.reports.get(name)
            if report is not None and (report.phase == "failed" or report.exit_code not in (None, 0)):
                return name
        return None

    def _tell(self, worker: int, command: Command) -> None:
        process = self._processes[worker]
        if process.node not in self._crew.lost:
            self._crew.tell(Input(name=process.name, line=encode_line(command).decode()), [process.node])
