"""Asks replicas for their /health: those that are down until they are well again, and those that have fallen silent.

One process of a gateway does it for all. A replica that answers requests is not probed: under load its /health may be
late, and must not take it out of service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import aiohttp

from erhpc.gateway.replicas import Replica

PROBE_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 5.0
SILENCE_S = 10.0
"""A replica that has requests and from which nothing came for so long is probed."""
GOOD_PROBES = 2
"""In a row, and a replica that was down gets requests again."""
BAD_PROBES = 3
"""In a row with nothing heard meanwhile, and a silent replica is down."""


class Watch:
    """What the probes of one replica have said, by turns good and bad.

    `is_blind`: nothing else tells how it is, because clients ask it themselves.
    """

    def __init__(self, replica: Replica, *, is_blind: bool = False) -> None:
        self.replica = replica
        self._is_blind = is_blind
        self._streak = 0
        """Good probes in a row if above 0, bad ones if below."""

    def is_due(self, now_ns: int) -> bool:
        """Whether the replica must be probed."""
        replica = self.replica
        if replica.is_down or self._is_blind:
            return True
        is_silent = replica.in_flight > 0 and now_ns - replica.heard_ns > SILENCE_S * 1e9
        if not is_silent:
            self._streak = 0
        return is_silent

    def note(self, *, is_well: bool) -> None:
        """A probe has ended."""
        self._streak = max(self._streak, 0) + 1 if is_well else min(self._streak, 0) - 1
        if self.replica.is_down and self._streak >= GOOD_PROBES:
            self.replica.let_in()
            self._streak = 0
        elif not self.replica.is_down and self._streak <= -BAD_PROBES:
            self.replica.close_off()
            self._streak = 0


class Prober:
    """Probes replicas for as long as the context is open; `is_blind`: all of them all the time (see `Watch`)."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        is_blind: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._watches = [Watch(replica, is_blind=is_blind) for replica in replicas]
        self._interval_s = PROBE_INTERVAL_S
        self._clock_ns = clock_ns
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Prober:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._tasks = [
            asyncio.create_task(self._probe(watch), name=f"probe {watch.replica.name}") for watch in self._watches
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _probe(self, watch: Watch) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if watch.is_due(self._clock_ns()):
                watch.note(is_well=await self._is_well(watch.replica))

    async def _is_well(self, replica: Replica) -> bool:
        with suppress(aiohttp.ClientError, OSError):  # TimeoutError is an OSError
            async with self._session.get(f"{replica.endpoint.url}/health") as response:
                return response.status == 200
        return False
