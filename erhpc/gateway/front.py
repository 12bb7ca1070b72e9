"""All connections of clients to one process of the gateway, those to the replicas, and their limits of time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from erhpc.gateway.caller import Caller
from erhpc.gateway.desk import Desk
from erhpc.gateway.slices import Slices
from erhpc.gateway.upstream import UpstreamPool

WATCH_S = 0.5
"""How often limits of time are looked at, so that no request has to set a timer."""
READ_AT = 8
"""Clients whose requests are read in one turn of the loop: of a thousand that come at once the first are sent on, and
running answers passed on, before the last are read. Requests read one after the other cost less than by themselves,
for code and data are in the caches then: a tenth less with 8 than with 4, no less with 16."""
LOOK_AT = 50
"""Connections looked at in one go: what comes meanwhile on all others waits."""


class Front:
    """All connections of a gateway process. `make_fallback` makes the protocol that serves every request."""

    def __init__(self, desk: Desk, make_fallback: Callable[[], asyncio.Protocol], *, key: str | None) -> None:
        limits = desk.spec.limits
        self.desk = desk
        self.make_fallback = make_fallback
        self.key = key
        self.max_body_bytes = limits.max_body_bytes
        self.pools = {replica.name: UpstreamPool(replica.endpoint.url) for replica in desk.replicas}
        self.callers: set[Caller] = set()
        self.reads = Slices(READ_AT, asyncio.get_running_loop().call_soon)
        self._quiet: asyncio.Event | None = None
        """Set when no request is being answered; only while someone waits for it."""

    async def __aenter__(self) -> Front:
        self._watch = asyncio.create_task(self._watch_times(), name="time limits")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        for caller in list(self.callers):
            caller.close()
        for pool in self.pools.values():
            pool.close()

    def make_caller(self) -> Caller:
        """The protocol of a new connection."""
        return Caller(self)

    async def drain(self, timeout_s: float) -> None:
        """Wait until no request is being answered, at most `timeout_s`."""
        self._quiet = asyncio.Event()
        self.note_end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), timeout_s)

    def note_end(self) -> None:
        """A request has ended: whoever waits for the last one is told."""
        if self._quiet is not None and not any(caller.is_busy for caller in self.callers):
            self._quiet.set()

    async def _watch_times(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now_s = time.monotonic()
            for number, caller in enumerate(list(self.callers), 1):
                if caller in self.callers:  # it may have left meanwhile
                    self._check_times(caller, now_s)
                if number % LOOK_AT == 0:
                    await asyncio.sleep(0)
            for pool in self.pools.values():
                pool.close_idle()

    def _check_times(self, caller: Caller, now_s: float) -> None:
        try:
            caller.check_times(now_s)
        except Exception as error:  # a fault in one connection must not take the limits off all others
            context = {"message": "gateway: limits of a connection", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            caller.close()
