"""Puts a gateway together and serves it on its port.

The only place that knows all parts of the process that passes requests on; it knows no route.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from erhpc.errors import InputError
from erhpc.gateway.app import Gateway, refuse_expectations
from erhpc.gateway.caller import KEEP_ALIVE_S
from erhpc.gateway.connections import listen, run_app
from erhpc.gateway.desk import Desk
from erhpc.gateway.front import Front
from erhpc.gateway.keys import KeyRing, follow
from erhpc.gateway.metrics import KEY_SLOTS, Metrics
from erhpc.gateway.prober import Prober
from erhpc.gateway.relay import PlainRelay
from erhpc.gateway.replicas import Replica
from erhpc.gateway.shared import LoopLagRing, Shared
from erhpc.gateway.surface import Surface
from erhpc.plan.specs import GatewaySpec
from erhpc.results.telemetry import LoopLag
from erhpc.routing.policy import TextClassifier
from erhpc.routing.router import make_router

STOP_TIMEOUT_S = 2.0
"""How long answers may take to end once the gateway is told to stop; then they are cut."""
TICK_S = 0.1
"""How often the queue is looked through for who has waited too long."""
QUICK_TICK_S = 0.005
"""The same while someone waits and another process may give a place up."""


@asynccontextmanager
async def serve(
    spec: GatewaySpec,
    *,
    classifier: TextClassifier | None = None,
    key: str | None = None,
    expert_key: str | None = None,
    shared: Shared | None = None,
    row: int = 0,
) -> AsyncIterator[str]:
    """Serve the gateway of `spec` while the context is open; yields its URL (port 0 takes a free one).

    `shared` is the memory of a gateway of several processes, of which this is number `row`; without it, this process
    is all of it, and looks after the replicas itself. Users need `key`, replicas are given `expert_key`.

    Raises:
        ConfigError: the policy does not fit the experts or the classifier.
        InputError: the file of keys or the certificate cannot be used.
        ProcessError: the port cannot be had.
    """
    own = shared or Shared(spec.endpoints, num_workers=1, is_alone=True)
    ledger = own.ledger(row)
    replicas = [Replica(endpoint, ledger) for endpoint in spec.endpoints]
    metrics = Metrics(ledger, replicas)
    router = make_router(spec.router, replicas, classifier=classifier, seed=spec.seed + row)
    keys = KeyRing(key, spec.limits.keys, num_slots=KEY_SLOTS)
    context = load_certificate(spec)
    async with AsyncExitStack() as closing:
        relay = PlainRelay(spec.limits, expert_key, metrics.first_write)
        closing.push_async_callback(relay.close)
        lag = LoopLag(values=LoopLagRing(own.lag_memory(row), metrics.loop_lag))
        lag.start()
        closing.push_async_callback(lag.stop)
        if shared is None:
            await closing.enter_async_context(Prober(replicas, is_blind=spec.limits.data_path == "redirect"))
        desk = Desk(spec, replicas, router, metrics, keys)
        for task in (_tick(desk, is_alone=shared is None), follow(keys, tells=shared is None)):
            closing.callback(asyncio.create_task(task).cancel)
        surface = Surface(metrics, replicas, own.lags(), keys, is_emulated=spec.is_emulated)
        gateway = Gateway(desk, relay=relay, surface=surface, expert_key=expert_key)
        running = run_app(
            gateway.build_app(), stop_timeout_s=STOP_TIMEOUT_S, keep_alive_s=KEEP_ALIVE_S, note=desk.note_refusal
        )
        web_server, make_fallback = await closing.enter_async_context(running)
        web_server.request_handler = refuse_expectations(web_server.request_handler, desk)
        make_protocol: Callable[[], asyncio.Protocol] = make_fallback
        front = None
        if spec.limits.relay == "fast":
            front = await closing.enter_async_context(Front(desk, make_fallback, key=expert_key))
            make_protocol = front.make_caller
        server = await listen(make_protocol, spec.host, int(spec.port), context, is_shared=shared is not None)
        set_patience(server, spec.limits.stall_timeout_s)
        metrics.count("erhpc_processes").value = 1
        try:
            scheme = "https" if context else "http"
            yield f"{scheme}://{spec.host}:{server.sockets[0].getsockname()[1]}"
        finally:
            await _stop(server, desk, front)


async def _stop(server: asyncio.Server, desk: Desk, front: Front | None) -> None:
    """Take no more requests, turn those away that wait, and let the answers end that have begun."""
    server.close()
    desk.turn_away()
    await asyncio.sleep(0)  # whoever waited for an expert is answered in the next turn of the loop
    if front is not None:
        await front.drain(STOP_TIMEOUT_S)


def set_patience(server: asyncio.Server, stall_timeout_s: float) -> None:
    """Let the kernel cut clients that read nothing of what waits for them for so long: see tcp(7)."""
    for listener in server.sockets:  # connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout_s * 1000))


async def _tick(desk: Desk, *, is_alone: bool) -> None:
    """Look after those who wait, for ever."""
    while True:
        await asyncio.sleep(TICK_S if is_alone or not desk.has_waiting else QUICK_TICK_S)
        desk.tick(time.monotonic())


def load_certificate(spec: GatewaySpec) -> ssl.SSLContext | None:
    """What TLS needs, None without it. Raises InputError if the files cannot be used."""
    certificate, key = spec.limits.tls_certificate, spec.limits.tls_key
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"gateway.tls_certificate={certificate}, gateway.tls_key={key}: {error}. Give a certificate chain and its "
            "key as PEM files that this process may read."
        ) from error
    return context
