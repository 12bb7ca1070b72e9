"""Watches over the processes of a gateway that pass requests on: starts them, and each anew if it dies.

It also asks replicas for their health and tells of the whole gateway on a port of its own, so that neither waits for
requests. It passes none on, and knows neither policy nor body.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from erhpc.errors import ProcessError
from erhpc.gateway.caller import KEEP_ALIVE_S
from erhpc.gateway.connections import listen, run_app
from erhpc.gateway.errors import ApiError, Outcome, answer_error, unauthorized, unknown_route
from erhpc.gateway.keys import KeyRing, follow
from erhpc.gateway.ledger import Ledger
from erhpc.gateway.metrics import KEY_IN_FLIGHT, KEY_SLOTS, PLACED, REQUESTS, WAITING, Metrics
from erhpc.gateway.prober import Prober
from erhpc.gateway.replicas import Replica
from erhpc.gateway.shared import Shared
from erhpc.gateway.surface import Surface, needs_key
from erhpc.plan.specs import Endpoint, GatewaySpec

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A prompt's products are done before other cores hear of them; and the threads would be as many as the node has."""
START_TIMEOUT_S = 60.0
"""Within this a process must listen."""
STOP_TIMEOUT_S = 5.0
"""Longer than answers in flight may take to end (server.STOP_TIMEOUT_S)."""
STARE_S = 30.0
"""A process whose event loop has stood still for so long is killed."""
LOOK_S = 1.0
MAX_EARLY_DEATHS = 3
"""In a row, and the gateway gives up: it would go on for ever."""
EARLY_S = 10.0
CHECK_S = 0.05
PROCESSES = ("erhpc_processes",)


@dataclass(frozen=True)
class Places:
    """Where a gateway listens."""

    url: str
    status_url: str


@asynccontextmanager
async def supervise(spec: GatewaySpec, path: Path, *, key: str | None) -> AsyncIterator[Places]:
    """Run the processes of a gateway while the context is open; yields once all of them listen.

    `path` is the file that holds `spec`, for them to read; `key` is the one that users need.

    Raises:
        InputError: the file of keys cannot be used.
        ProcessError: a port cannot be had, or a process does not start; also out of the context, when processes keep
            dying.
    """
    shared = Shared(spec.endpoints, num_workers=spec.limits.processes)
    ledger = shared.ledger(shared.overseer_row)
    replicas = [Replica(endpoint, ledger) for endpoint in spec.endpoints]
    metrics = Metrics(ledger, replicas)
    keys = KeyRing(key, spec.limits.keys, num_slots=KEY_SLOTS)
    surface = Surface(metrics, replicas, shared.lags(), keys, is_emulated=spec.is_emulated)
    async with AsyncExitStack() as closing:
        port = closing.enter_context(hold_port(spec.host, int(spec.port)))
        status_url = await closing.enter_async_context(_serve_status(spec, surface, keys))
        await closing.enter_async_context(Prober(replicas, is_blind=spec.limits.data_path == "redirect"))
        closing.callback(asyncio.create_task(follow(keys, tells=True), name="keys").cancel)
        assert shared.descriptor is not None  # it is shared
        workers = [
            Worker(number, command_worker(path, number, port, shared.descriptor), shared, spec.endpoints, metrics)
            for number in range(spec.limits.processes)
        ]
        try:
            async with asyncio.TaskGroup() as starting:
                for worker in workers:
                    starting.create_task(worker.start())
        except* ProcessError as problems:
            await asyncio.gather(*(worker.stop() for worker in workers))
            raise problems.exceptions[0] from None
        except* asyncio.CancelledError:
            await asyncio.gather(*(worker.stop() for worker in workers))
            raise
        watches = [asyncio.create_task(worker.watch(), name=f"process {worker.number}") for worker in workers]
        scheme = "https" if spec.limits.tls_certificate else "http"
        try:
            async with _fail_with(watches):
                yield Places(f"{scheme}://{spec.host}:{port}", status_url)
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await asyncio.gather(*(worker.stop() for worker in workers))


@asynccontextmanager
async def _fail_with(watches: Sequence[asyncio.Task[None]]) -> AsyncIterator[None]:
    """Interrupt the body when a watch fails, with what it raised."""
    body = asyncio.current_task()
    assert body is not None
    failure: BaseException | None = None

    def interrupt(watch: asyncio.Task[None]) -> None:
        nonlocal failure
        if not watch.cancelled() and failure is None and (failure := watch.exception()) is not None:
            body.cancel()

    for watch in watches:
        watch.add_done_callback(interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if failure is None:
            raise
        body.uncancel()
        raise failure from None


class Worker:
    """One process that passes requests on; `start`, then `watch` for as long as it is to run, then `stop`."""

    def __init__(
        self, number: int, argv: Sequence[str], shared: Shared, endpoints: Sequence[Endpoint], metrics: Metrics
    ) -> None:
        self.number = number
        self._argv = argv
        self._endpoints = endpoints
        self._metrics = metrics
        self._descriptor = shared.descriptor
        self._row = shared.ledger(number)
        self._lags = shared.lags()[number]
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._last_error = ""

    async def start(self) -> None:
        """Start it and wait until it listens. Raises ProcessError, with what it said, if it does not."""
        self._last_error = ""
        assert self._descriptor is not None
        process = self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            # It ends when this one does, however that is: its input then ends.
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[self._descriptor],
            env=os.environ | ONE_THREAD,
        )
        self._errors = asyncio.create_task(self._pass_errors_on(process), name="errors")
        exiting = asyncio.create_task(process.wait())
        due_s = time.monotonic() + START_TIMEOUT_S
        try:
            while not self._row.count(PROCESSES).value:
                await asyncio.wait([exiting], timeout=CHECK_S)
                if exiting.done():
                    await self._errors
                    reason = self._last_error or f"it ended with code {process.returncode}."
                    raise ProcessError(reason.removeprefix("gateway: error: "))
                if time.monotonic() > due_s:
                    raise ProcessError(
                        f"Process {self.number} of the gateway does not listen after {START_TIMEOUT_S:.0f} s."
                    )
        finally:
            exiting.cancel()

    async def watch(self) -> None:
        """Start it again whenever it dies, for ever. Raises ProcessError if that does not help."""
        num_early = 0
        while True:
            began_s = time.monotonic()
            reason = f"ended with code {await self._wait_for_death()}"
            num_early = num_early + 1 if time.monotonic() - began_s < EARLY_S else 0
            while reason:
                settle(self._row, self._endpoints)
                if num_early >= MAX_EARLY_DEATHS:
                    raise ProcessError(
                        f"Process {self.number} of the gateway died {num_early} times within {EARLY_S:.0f} s of its "
                        f"start, the last time: {reason}. What it said is above."
                    )
                print(f"gateway: process {self.number} {reason}; starting it again", file=sys.stderr, flush=True)
                self._metrics.count("erhpc_process_restarts_total").add()
                reason = await self._start_again()
                num_early += bool(reason)

    async def _start_again(self) -> str:
        """Why it did not start; empty: it did."""
        try:
            await self.start()
        except ProcessError as error:
            return f"did not start: {str(error).rstrip('.')}"
        return ""

    async def _wait_for_death(self) -> int:
        assert self._process is not None
        exiting = asyncio.create_task(self._process.wait())
        last_s, still_s = self._lags.last_s, 0.0
        try:
            while not exiting.done():
                await asyncio.wait([exiting], timeout=LOOK_S)
                # By own looks, not by the clock: when a job is suspended and goes on, all have stood still.
                still_s = still_s + LOOK_S if self._lags.last_s == last_s else 0.0
                last_s = self._lags.last_s
                if not exiting.done() and still_s > STARE_S:
                    print(f"gateway: process {self.number} stands still; killing it", file=sys.stderr, flush=True)
                    self._process.kill()
                    await exiting
            return exiting.result()
        finally:
            exiting.cancel()

    async def stop(self) -> None:
        """End it: what it is answering may end within STOP_TIMEOUT_S."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            if process.returncode is None:
                process.kill()
                await process.wait()
        if self._errors is not None:
            await self._errors

    async def _pass_errors_on(self, process: asyncio.subprocess.Process) -> None:
        """What it says on stderr is said here too, but for the reason why it did not start, which is raised."""
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            if text.startswith("gateway: error: "):
                self._last_error = text
            else:
                print(text, file=sys.stderr, flush=True)


def command_worker(path: Path, number: int, port: int, memory: int) -> list[str]:
    """The command of process `number`: the spec in `path`, the port that all share, the descriptor of their memory."""
    own = ["--worker", str(number), "--port", str(port), "--memory", str(memory)]
    return [sys.executable, "-m", "jobs.gateway_worker", "--spec", str(path), *own]


def settle(row: Ledger, endpoints: Sequence[Endpoint]) -> None:
    """Close the books of a process that has died: what it had in hand is lost, and nothing is in its hands."""
    num_placed = 0
    for endpoint in endpoints:
        in_flight = row.count(("in flight", endpoint.replica))
        row.count((REQUESTS, endpoint.expert, endpoint.replica, Outcome.LOST)).add(in_flight.value)
        num_placed += in_flight.value
        in_flight.value = 0
    admitted, queued = row.count(("erhpc_admitted",)), row.count(("erhpc_queued",))
    row.count((REQUESTS, "", "", Outcome.LOST)).add(max(admitted.value - num_placed, 0) + queued.value)
    for name in ("erhpc_admitted", "erhpc_queued", "erhpc_processes", PLACED, WAITING, KEY_IN_FLIGHT):
        for cell in row.keys(name):
            row.count(cell).value = 0


@contextlib.contextmanager
def hold_port(host: str, port: int) -> Iterator[int]:
    """Take a port for several processes to share, and yield its number; nothing is accepted on it here.

    Raises ProcessError if someone listens there, be it another gateway that would share.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe, socket.socket(family, socket.SOCK_STREAM) as held:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, port))
            port = probe.getsockname()[1]
            probe.close()
            held.bind((host, port))
        except OSError as error:
            raise ProcessError(
                f"The gateway cannot listen on {host}:{port}: {error.strerror}. "
                "End the process that holds the port, or change cluster.ports."
            ) from error
        yield port


@asynccontextmanager
async def _serve_status(spec: GatewaySpec, surface: Surface, keys: KeyRing) -> AsyncIterator[str]:
    """Tell of the gateway on a port of its own; yields its URL."""

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            if needs_key(request.path) and not keys.is_open and keys.find(given) is None:
                raise unauthorized()
            return await handler(request)
        except web.HTTPException as error:
            return answer_error(unknown_route(error, request), {})
        except ApiError as error:
            return answer_error(error, {})

    app = web.Application(middlewares=[guard])
    surface.add_routes(app)
    running = run_app(app, stop_timeout_s=STOP_TIMEOUT_S, keep_alive_s=KEEP_ALIVE_S, note=lambda error: None)
    async with running as (_, make_protocol):
        server = await listen(make_protocol, spec.host, int(spec.status_port))
        try:
            yield f"http://{spec.host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
