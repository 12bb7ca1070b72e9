"""Lets redirected requests into a vLLM server: a request with a valid pass counts as one with the key.

It runs inside vLLM, as ASGI middleware before vLLM's own check of the key, in a Python that has nothing of erhpc's but
what `vllm.write_guest_package` puts there. So: standard library only. Who has no valid pass is vLLM's to judge.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from erhpc.plan.passes import PASS_PARAMETER, REPLICA_VARIABLE, check_pass

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class PassGuard:
    """ASGI middleware around `app`; key and replica come from the environment, as vLLM's own key does."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._key = os.environ.get("VLLM_API_KEY", "")
        self._replica = os.environ.get(REPLICA_VARIABLE, "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the key if it has a valid pass."""
        if scope["type"] == "http" and self._key and self._is_passed(scope["query_string"]):
            others = [field for field in scope["headers"] if field[0] != b"authorization"]
            scope = {**scope, "headers": [*others, (b"authorization", b"Bearer " + self._key.encode())]}
        await self._app(scope, receive, send)

    def _is_passed(self, query: bytes) -> bool:
        (value,) = parse_qs(query.decode("latin-1")).get(PASS_PARAMETER, [""])[:1]
        return check_pass(self._key, self._replica, value, time.time())
