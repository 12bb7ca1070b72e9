"""The coordinator's view of all agents: who is there, what their processes do, and waiting for either.

It turns the stream of messages into state and a condition to wait on; it takes no decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from erhpc.cluster.messages import (
    AgentMessage,
    CoordinatorMessage,
    Done,
    FreeBands,
    Hello,
    Interrupted,
    Output,
    ProcessReport,
    Stop,
)
from erhpc.cluster.rendezvous import Link

_SILENT_END = "is gone without a word: node failure or KILL?"


@dataclass
class Crew:
    """Everything the agents have said so far."""

    num_nodes: int
    on_output: Callable[[Output], None]
    hellos: dict[int, Hello] = field(default_factory=dict)
    free_bands: dict[int, list[int]] = field(default_factory=dict)
    reports: dict[str, ProcessReport] = field(default_factory=dict)
    done: dict[int, list[str]] = field(default_factory=dict)
    interrupted: bool = False
    lost: dict[int, str] = field(default_factory=dict)
    """Agents whose connection ended before they were done."""

    def __post_init__(self) -> None:
        self._links: dict[int, Link[AgentMessage]] = {}
        self._dismissed = False
        self._changed = asyncio.Condition()

    async def admit(self, link: Link[AgentMessage]) -> None:
        """Follow one agent's connection to its end."""
        hello = await link.receive()
        if isinstance(hello, Done):
            await self.lose(hello.rank, hello.error or f"the agent of rank {hello.rank} left before it began")
        if not isinstance(hello, Hello) or hello.rank in self._links:
            await link.close()
            return
        self._links[hello.rank] = link
        if self._dismissed:
            link.send(Stop())
        who = f"the agent of node {hello.node} (rank {hello.rank})"
        try:
            await self._note(hello.rank, hello)
            while (message := await link.receive()) is not None:
                await self._note(hello.rank, message)
        except Exception as error:
            await self.lose(hello.rank, f"{who} cannot be understood: {type(error).__name__}: {error}")
            raise
        if hello.rank not in self.done:
            await self.lose(hello.rank, f"{who} {_SILENT_END}")

    async def interrupt(self) -> None:
        """Note that the run was told to stop; when a node is lost, that comes of it (Slurm ends the other ranks)."""
        self.interrupted = self.interrupted or not self.lost
        await self._notify()

    async def lose(self, rank: int, reason: str) -> None:
        """Note that an agent serves no more."""
        self.lost.setdefault(rank, reason)
        await self._notify()

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `condition` holds; False when `timeout_s` passed first."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
            except TimeoutError:
                return False
        return True

    def tell(self, message: CoordinatorMessage, ranks: Iterable[int] | None = None) -> None:
        """Send a message to some agents, or to all; agents that come after the last Stop hear it too."""
        self._dismissed = self._dismissed or message == Stop()
        for rank in self._links if ranks is None else ranks:
            self._links[rank].send(message)

    def phase(self, name: str) -> str:
        """The last reported phase of a process, "" before any."""
        report = self.reports.get(name)
        return report.phase if report else ""

    def find_failure(self, names: Iterable[str]) -> str | None:
        """Why the first of these processes is not serving any more, or which agent is gone; None if all is well."""
        if self.lost:
            return "; ".join(self.lost.values())
        for name in names:
            report = self.reports.get(name)
            if report is not None and report.phase in ("failed", "exited"):
                return report.detail or f"{name} ended by itself (exit code {report.exit_code})"
        return None

    async def _note(self, rank: int, message: AgentMessage) -> None:
        match message:
            case Hello():
                self.hellos[rank] = message
            case FreeBands():
                self.free_bands[rank] = message.bands
            case ProcessReport():
                self.reports[message.name] = message
            case Output():
                self.on_output(message)
            case Interrupted():
                self.interrupted = self.interrupted or not self.lost
            case Done():
                self.done[rank] = message.leftovers
                if message.error:
                    self.lost.setdefault(rank, message.error)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
