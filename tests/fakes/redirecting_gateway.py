"""A gateway that sends every client on to one replica, with a pass, and answers nothing itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from erhpc.plan.passes import PASS_LIFETIME_S, PASS_PARAMETER, sign_pass


@dataclass
class RedirectingGateway:
    """Redirects to `replica` at `target` after `delay_s`; `signed_for` another replica, the pass is wrong."""

    target: str
    replica: str
    key: str
    lifetime_s: int = PASS_LIFETIME_S
    signed_for: str | None = None
    queue_us: float | None = None
    delay_s: float = 0.0
    url: str = ""
    models: list[str] = field(default_factory=list)
    """What the bodies asked for."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[RedirectingGateway]:
        """Listen on a free port of the loopback until the context ends."""
        app = web.Application()
        app.router.add_post("/{path:.*}", self._redirect)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _redirect(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        self.models.append((await request.json())["model"])
        await asyncio.sleep(self.delay_s)
        value = sign_pass(self.key, self.signed_for or self.replica, int(time.time()) + self.lifetime_s)
        headers = {
            "Location": f"{self.target}{request.path}?{PASS_PARAMETER}={value}",
            "x-erhpc-expert": self.replica.rpartition("-")[0],
            "x-erhpc-replica": self.replica,
        }
        if self.queue_us is not None:
            headers["x-erhpc-queue-us"] = f"{self.queue_us:.1f}"
        return web.Response(status=307, headers=headers)
