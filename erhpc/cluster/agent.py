"""The node agent: one per node, obeys rank 0's coordinator, and leaves no process behind.

The same code runs on every node. It decides nothing; `erhpc.cluster.children` does what it is told.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from erhpc.cluster import network
from erhpc.cluster.children import Children
from erhpc.cluster.janitor import Janitor
from erhpc.cluster.messages import (
    Assign,
    CoordinatorMessage,
    Done,
    FreeBands,
    Hello,
    Input,
    Interrupted,
    Start,
    Stop,
    Survey,
)
from erhpc.cluster.rendezvous import Link
from erhpc.errors import ErhpcError
from erhpc.plan.placeholders import Bindings
from erhpc.plan.plan import Plan
from erhpc.results.paths import RunPaths
from erhpc.results.provenance import collect_provenance


@dataclass(frozen=True, kw_only=True)
class NodeIdentity:
    """Who this agent is within its job."""

    rank: int
    node: str
    job_id: str
    shares_machine: bool
    """All nodes of the run are this machine: a single node, or emulated ones."""


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
        self._stop_signal = stop_signal
        self._address = ""
        self._tmp = Path(plan.experiment.cluster.tmp) / f"erhpc-{identity.job_id}-{identity.rank}"
        self._janitor = Janitor(self._tmp)
        self._children = Children(
            plan,
            run,
            rank=identity.rank,
            node=identity.node,
            key=key,
            janitor=self._janitor,
            inherited=os.environ,
            send=link.send,
            stop_signal=stop_signal,
        )

    async def serve(self) -> None:
        """Obey the coordinator until it says stop or vanishes; afterwards no process of this node is left.

        Raises:
            ProcessError: this node cannot take part (no address, no temporary folder); rank 0 has been told why.
        """
        rank = self._identity.rank
        watcher = asyncio.create_task(self._relay_signal())
        error = ""
        try:
            self._introduce()
            while (message := await self._link.receive()) is not None:
                if await self._obey(message):
                    break
        except (ErhpcError, OSError) as problem:
            error = f"node {self._identity.node} (rank {rank}): {problem}"
            raise
        finally:
            watcher.cancel()
            leftovers = await self._children.stop_everything()
            self._link.send(Done(rank=rank, leftovers=leftovers, error=error))
            self._janitor.close()
            shutil.rmtree(self._tmp, ignore_errors=True)
            await self._link.close()

    def _introduce(self) -> None:
        self._tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address = network.choose_own_address(
            node=self._identity.node,
            shares_machine=self._identity.shares_machine,
            interface=self._plan.experiment.cluster.interface,
            link_address=self._link.local_address,
            coordinator_address=self._link.peer_address,
        )
        facts = collect_provenance() | {
            "address": self._address,
            "cuda_visible_devices": network.find_visible_devices(os.environ),
        }
        self._link.send(
            Hello(
                rank=self._identity.rank,
                node=self._identity.node,
                address=self._address,
                coordinator_address=self._link.peer_address,
                facts=facts,
            )
        )

    async def _relay_signal(self) -> None:
        await self._stop_signal.wait()
        self._link.send(Interrupted(rank=self._identity.rank))

    async def _obey(self, message: CoordinatorMessage) -> bool:
        match message:
            case Survey():
                free = network.find_free_bands(self._plan.ports, message.bands, self._address)
                self._link.send(FreeBands(rank=self._identity.rank, bands=free))
            case Assign():
                base_port = self._plan.ports.base(message.band)
                bindings = Bindings(str(self._run.root), str(self._tmp), message.addresses, base_port)
                self._children.bind(bindings, self._address)
            case Start():
                for name in message.names:
                    self._children.start(name)
            case Input():
                self._children.write_line(message.name, message.line)
            case Stop(names=[]):
                return True
            case Stop():
                await asyncio.gather(*(self._children.stop(name) for name in message.names))
        return False
