"""What the scheduler runs on every node of a run: one node agent, and on rank 0 the coordinator beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from submitit import JobEnvironment

from erhpc.cluster import network
from erhpc.cluster.agent import NodeAgent, NodeIdentity
from erhpc.cluster.coordinator import Coordinator
from erhpc.cluster.rendezvous import connect_rendezvous, serve_rendezvous
from erhpc.errors import ErhpcError, ProcessError
from erhpc.plan.plan import Plan, plan_from_json
from erhpc.plan.ports import RENDEZVOUS_PORT
from erhpc.results.paths import RunPaths

CONNECT_TIMEOUT_S = 600.0
"""Longer than rank 0 gathers: it is the one that can say who is missing."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def run_node(run_folder: str) -> str:
    """Run this node's part of the plan in `run_folder`; returns the final state of the run as this node knows it.

    Raises:
        ProcessError: the run failed (so that the scheduler records the job as failed).
    """
    run = RunPaths(Path(run_folder))
    plan = plan_from_json(run.plan.read_bytes())
    state, error = asyncio.run(_serve(plan, run))
    if error is not None:
        raise ProcessError(error)
    return state


async def _serve(plan: Plan, run: RunPaths) -> tuple[str, str | None]:
    job = JobEnvironment()
    hostnames = list(job.hostnames) if plan.cluster == "slurm" else [network.LOOPBACK] * plan.num_nodes
    node = os.environ.get("SLURMD_NODENAME") or (f"local{job.global_rank}" if plan.cluster == "local" else job.hostname)
    shares_machine = plan.cluster == "local" or plan.num_nodes == 1
    identity = NodeIdentity(rank=job.global_rank, node=node, job_id=job.job_id, shares_machine=shares_machine)
    ports = [plan.ports.base(band) + RENDEZVOUS_PORT for band in plan.ports.bands_for(int(job.job_id))]
    key = run.key.read_text().strip()
    stop_signal = asyncio.Event()
    for number in STOP_SIGNALS:
        # submitit's own handlers would swallow TERM and requeue on USR2; these replace them.
        asyncio.get_running_loop().add_signal_handler(number, stop_signal.set)
    if identity.rank != 0:
        return await _follow(plan, run, identity, hostnames[0], ports, key, stop_signal)
    return await _lead(plan, run, identity, hostnames, ports, key, stop_signal)


async def _follow(
    plan: Plan,
    run: RunPaths,
    identity: NodeIdentity,
    head: str,
    ports: list[int],
    key: str,
    stop_signal: asyncio.Event,
) -> tuple[str, str | None]:
    connecting = asyncio.create_task(connect_rendezvous(network.resolve(head), ports, key, CONNECT_TIMEOUT_S))
    stopping = asyncio.create_task(stop_signal.wait())
    await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not connecting.done():
        connecting.cancel()
        return "interrupted", None
    link = connecting.result()
    await NodeAgent(plan, run, identity, link, key, stop_signal).serve()
    return "done", None


async def _lead(
    plan: Plan,
    run: RunPaths,
    identity: NodeIdentity,
    hostnames: list[str],
    ports: list[int],
    key: str,
    stop_signal: asyncio.Event,
) -> tuple[str, str | None]:
    coordinator = Coordinator(plan, run, key, int(identity.job_id))
    listen = network.choose_listen_address(hostnames if plan.cluster == "slurm" else hostnames[:1])
    server = await serve_rendezvous(listen, ports, key, coordinator.crew.admit)
    own = network.LOOPBACK if listen == network.ANY_ADDRESS else listen
    port = server.sockets[0].getsockname()[1]

    async def serve_agent() -> None:
        try:
            link = await connect_rendezvous(own, [port], key, CONNECT_TIMEOUT_S)
            await NodeAgent(plan, run, identity, link, key, stop_signal).serve()
        except (ErhpcError, OSError) as error:
            await coordinator.crew.lose(0, f"rank 0 on {identity.node}: {error}")

    interruption = asyncio.create_task(_interrupt(stop_signal, coordinator))
    try:
        status, _ = await asyncio.gather(coordinator.conduct(), serve_agent())
    finally:
        interruption.cancel()
        server.close()
    return status.state, status.error if status.state == "failed" else None


async def _interrupt(stop_signal: asyncio.Event, coordinator: Coordinator) -> None:
    await stop_signal.wait()
    await coordinator.crew.interrupt()
