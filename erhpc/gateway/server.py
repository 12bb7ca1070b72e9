"""Puts a gateway together and serves it on its port.

The only place that knows all parts of the gateway; it knows no route and no file.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from erhpc.errors import ProcessError
from erhpc.gateway.admission import Admission
from erhpc.gateway.app import LOGGER, Gateway, refuse_expectations
from erhpc.gateway.desk import Desk
from erhpc.gateway.front import KEEP_ALIVE_S, Front
from erhpc.gateway.prober import Prober
from erhpc.gateway.relay import PlainRelay
from erhpc.gateway.replicas import Replica
from erhpc.plan.specs import GatewaySpec
from erhpc.results.telemetry import LoopLag
from erhpc.routing.policy import TextClassifier
from erhpc.routing.router import make_router

STOP_TIMEOUT_S = 2.0
"""How long answers may take to end once the gateway is told to stop; then they are cut."""
EXPIRE_S = 0.1
"""How often the queue is looked through for who has waited too long."""
BACKLOG = 4096
"""Connections that may wait to be accepted: all users arrive at once."""


@asynccontextmanager
async def serve(
    spec: GatewaySpec, *, classifier: TextClassifier | None = None, key: str | None = None
) -> AsyncIterator[str]:
    """Serve the gateway of `spec` while the context is open; yields its URL (port 0 takes a free one).

    Raises:
        ConfigError: the policy does not fit the experts or the classifier.
        ProcessError: the port cannot be had.
    """
    replicas = [Replica(endpoint) for endpoint in spec.endpoints]
    router = make_router(spec.router, replicas, classifier=classifier, seed=spec.seed)
    async with AsyncExitStack() as closing:
        prober, relay, lag = Prober(), PlainRelay(spec.limits, key), LoopLag()
        closing.push_async_callback(prober.close)
        closing.push_async_callback(relay.close)
        lag.start()
        closing.push_async_callback(lag.stop)
        desk = Desk(spec, replicas, router, prober, key=key)
        expiring = asyncio.create_task(_expire(desk.admission), name="queue")
        closing.callback(expiring.cancel)
        runner = web.AppRunner(
            Gateway(desk, relay=relay, lag=lag).build_app(),
            access_log=None,
            logger=LOGGER,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        await runner.setup()
        closing.push_async_callback(runner.cleanup)
        assert runner.server is not None  # setup made it
        runner.server.request_handler = refuse_expectations(runner.server.request_handler, desk)
        make_protocol: Callable[[], asyncio.BaseProtocol] = runner.server
        front = None
        if spec.limits.relay == "fast":
            front = await closing.enter_async_context(Front(desk, runner.server, key=key))
            make_protocol = front.make_caller
        server = await _listen(make_protocol, spec.host, int(spec.port))
        for listener in server.sockets:
            # Connections inherit it. The kernel cuts one whose client reads nothing of what waits for it: see tcp(7).
            stall_ms = int(spec.limits.stall_timeout_s * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)
        try:
            yield f"http://{spec.host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            if front is not None:
                await front.drain(STOP_TIMEOUT_S)


async def _expire(admission: Admission) -> None:
    """Turn away who has waited too long, for ever."""
    while True:
        await asyncio.sleep(EXPIRE_S)
        admission.expire(time.monotonic())


async def _listen(make_protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(make_protocol, host, port, backlog=BACKLOG)
    except OSError as error:
        raise ProcessError(
            f"The gateway cannot listen on {host}:{port}: {error.strerror}. "
            "End the process that holds the port, or change cluster.ports."
        ) from error
