"""Brings replicas back: one that is down is asked for its /health until it answers 200.

It does not decide that a replica is down; who finds it unreachable hands it over.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

from erhpc.gateway.replicas import Replica

PROBE_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 5.0


class Prober:
    """Watches the replicas that are down; needs a running event loop."""

    def __init__(self, *, interval_s: float = PROBE_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._watches: dict[str, asyncio.Task[None]] = {}

    def watch(self, replica: Replica) -> None:
        """Take `replica` out of service until it answers again."""
        replica.live = False
        if replica.name not in self._watches:
            self._watches[replica.name] = asyncio.create_task(self._probe(replica), name=f"probe {replica.name}")

    async def close(self) -> None:
        """End all probing."""
        for watch in self._watches.values():
            watch.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)
        await self._session.close()

    async def _probe(self, replica: Replica) -> None:
        while True:
            if await self._is_well(replica):
                break
            await asyncio.sleep(self._interval_s)
        replica.live = True
        del self._watches[replica.name]

    async def _is_well(self, replica: Replica) -> bool:
        with suppress(aiohttp.ClientError, OSError):  # TimeoutError is an OSError
            async with self._session.get(f"{replica.endpoint.url}/health") as response:
                return response.status == 200
        return False
