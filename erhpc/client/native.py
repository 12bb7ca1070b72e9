"""erhpc's own streaming client: prepared requests, connections that are kept, stamps that need no event loop.

It knows neither users nor phases. What is not the hot path of a stream (names, TLS, time limits) it leaves to asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from array import array
from functools import partial
from types import TracebackType
from typing import Self

from erhpc.client.connector import Connector
from erhpc.client.exchange import STALE_S, TAIL_TIMEOUT_S, Clock, Exchange, Patience
from erhpc.client.reception import Reception
from erhpc.client.redirects import follow_redirects
from erhpc.client.stamps import KernelClock
from erhpc.client.target import Target, build_head, build_request, parse_target
from erhpc.client.wire import Wire
from erhpc.errors import ConfigError
from erhpc.plan.protocol import KEEP_ALIVE_S
from erhpc.workload.requests import LoadRequest

WATCH_S = 0.1
"""How often answers are looked at for their time limits, so that no read has to set a timer."""
ADJUST_EVERY = 10
"""Watches between two looks at the wall clock."""


class NativeClient:
    """Implements `StreamingClient`; its connections live as long as the context. `key` is sent as a bearer token."""

    def __init__(
        self,
        url: str,
        *,
        patience: Patience,
        key: str | None = None,
        stamps: str = "auto",
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.kernel_clock = KernelClock(clock)
        self._connector = Connector(clock, self.kernel_clock if stamps != "loop" else None)
        self._target = parse_target(url)
        self._patience = patience
        self._key = key
        self._clock = clock
        self._idle: dict[tuple[str, str, int], dict[Wire, int]] = {}
        """Open connections nobody uses, with the time since when; the last one in is the first one out."""
        self._busy: set[Wire] = set()
        if stamps == "kernel" and self._target.scheme != "http":
            raise ConfigError(
                f"load.stamps=kernel needs plain HTTP over TCP, {url} is none. Set load.stamps=auto: the event loop "
                "stamps, and the records say so."
            )
        self._own_head = build_head(self._target, key)  # a key that cannot be sent is refused now

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._watch_busy(), name="time limits")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        for wire in (*self._busy, *(wire for wires in self._idle.values() for wire in wires)):
            wire.lose("the client was closed")
        self._connector.close()

    @property
    def num_pieces(self) -> int:
        """See `StreamingClient.num_pieces`."""
        return self.kernel_clock.num_reads + self._connector.num_reads

    @property
    def num_clock_jumps(self) -> int:
        """See `StreamingClient.num_clock_jumps`."""
        return self.kernel_clock.num_jumps

    def take_delays_ns(self) -> array[int]:
        """See `StreamingClient.take_delays_ns`."""
        return self.kernel_clock.take_delays_ns()

    async def send(self, request: LoadRequest, exchange: Exchange) -> None:
        """See `StreamingClient.send`."""
        await follow_redirects(self._target, exchange, partial(self._ask, request, exchange))

    async def _ask(self, asked: LoadRequest, exchange: Exchange, target: Target) -> str | None:
        """Ask one target; returns where it redirects to, None once the answer has ended or failed."""
        request = build_request(self._head(target), asked.body, asked.session)
        while True:
            wire = self._take_idle(target)
            is_reused = wire is not None
            if wire is None:
                wire = await self._open(target, exchange)
                if wire is None:
                    return None
            reception = await self._stream(wire, request, exchange)
            if not (is_reused and self._was_stale(wire, reception, exchange)):
                break
        if wire.loss:
            reception.close(wire.loss)
        if reception.is_complete and wire.is_reusable:
            self._idle.setdefault(target.origin, {})[wire] = self._clock()
        else:
            wire.close()
        return reception.redirect if exchange.error_kind is None else None

    async def _stream(self, wire: Wire, request: bytes, exchange: Exchange) -> Reception:
        over = wire.begin(exchange, request)
        reception = wire.reception
        assert reception is not None  # begin made it
        self._busy.add(wire)
        try:
            await over
        except BaseException:
            wire.close()
            raise
        finally:
            self._busy.discard(wire)
            wire.read()
            wire.release()
        return reception

    def _was_stale(self, wire: Wire, reception: Reception, exchange: Exchange) -> bool:
        """Whether the server had closed the idle connection before it saw the request: it may be asked once more.

        A later end is the server's failure, e.g. its death, and must not pass for a slow answer.
        """
        if not wire.loss or reception.has_begun or exchange.error_kind is not None:
            return False
        wire.close()
        return self._clock() - wire.sent_ns < STALE_S * 1e9

    def _head(self, target: Target) -> bytes:
        # The key is for the server it was given for. A redirect elsewhere brings a pass, seldom the same one twice.
        if target is self._target:
            return self._own_head
        return build_head(target, self._key if target.origin == self._target.origin else None)

    def _take_idle(self, target: Target) -> Wire | None:
        wires = self._idle.get(target.origin, {})
        while wires:
            wire, since_ns = wires.popitem()
            if wire.is_reusable and self._clock() - since_ns < KEEP_ALIVE_S * 1e9:
                return wire
            wire.close()
        return None

    async def _open(self, target: Target, exchange: Exchange) -> Wire | None:
        exchange.new_connection = True
        who = target.host_header if target.scheme != "unix" else target.host
        try:
            async with asyncio.timeout(self._patience.connect_s):
                return await self._connector.connect(target)
        except TimeoutError:
            exchange.fail("timeout_connect", f"{who}: no connection within {self._patience.connect_s:g} s")
        except ssl.SSLError as error:
            exchange.fail("tls", f"{who}: {error}")
        except OSError as error:
            exchange.fail("connect", f"{who}: {error}")
        return None

    async def _watch_busy(self) -> None:
        num_watches = 0
        while True:
            await asyncio.sleep(WATCH_S)
            now_ns = self._clock()
            for wire in list(self._busy):
                self._check_limits(wire, now_ns)
            num_watches += 1
            if not num_watches % ADJUST_EVERY:
                self.kernel_clock.adjust()

    def _check_limits(self, wire: Wire, now_ns: int) -> None:
        exchange, patience = wire.exchange, self._patience
        if exchange is None:
            return
        if wire.ended_ns is not None:
            if now_ns - wire.ended_ns > TAIL_TIMEOUT_S * 1e9:
                wire.finish()
            return
        since_sent_s = (now_ns - exchange.sent_ns) / 1e9
        if since_sent_s > patience.total_s:
            wire.give_up("timeout_total", f"no complete answer within {patience.total_s:g} s")
        elif patience.first_token_s is not None and since_sent_s > patience.first_token_s and not exchange.arrivals_ns:
            wire.look()  # tokens may have come that were not read
            if not exchange.arrivals_ns:
                wire.give_up("timeout_first_token", f"no token within {patience.first_token_s:g} s")
        elif patience.idle_s is not None and now_ns - (wire.newest_ns or now_ns) > patience.idle_s * 1e9:
            wire.look()
            if exchange.arrivals_ns:
                wire.give_up("timeout_idle", f"silent for {patience.idle_s:g} s in the middle")
