"""Puts a gateway together and serves it on its port.

The only place that knows all parts of the gateway; it knows no route and no file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from erhpc.errors import ProcessError
from erhpc.gateway.app import Gateway
from erhpc.gateway.prober import Prober
from erhpc.gateway.relay import PlainRelay
from erhpc.gateway.replicas import Replica
from erhpc.plan.specs import GatewaySpec
from erhpc.results.telemetry import LoopLag
from erhpc.routing.policy import TextClassifier
from erhpc.routing.router import make_router

STOP_TIMEOUT_S = 2.0
"""How long answers may take to end once the gateway is told to stop; then they are cut."""
BACKLOG = 4096
"""Connections that may wait to be accepted: all users arrive at once."""
KEEP_ALIVE_S = 75.0
"""Idle time after which a client's connection is closed; longer than clients keep one."""


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
        gateway = Gateway(spec, replicas, router, relay=relay, prober=prober, lag=lag, key=key)
        runner = web.AppRunner(
            gateway.build_app(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        await runner.setup()
        closing.push_async_callback(runner.cleanup)
        yield await _listen(runner, spec.host, int(spec.port))


async def _listen(runner: web.AppRunner, host: str, port: int) -> str:
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError as error:
        raise ProcessError(
            f"The gateway cannot listen on {host}:{port}: {error.strerror}. "
            "End the process that holds the port, or change cluster.ports."
        ) from error
    return f"http://{host}:{runner.addresses[0][1]}"
