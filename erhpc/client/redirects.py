"""Follows the redirects of a server, for every streaming client in the same way: the method stays POST."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from erhpc.client.exchange import Exchange
from erhpc.client.target import Target
from erhpc.errors import ConfigError

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 307, 308)
"""301 and 302 let a client change POST to GET (RFC 9110, section 15.4); asking for an answer by GET is no use."""


async def follow_redirects(target: Target, exchange: Exchange, ask: Callable[[Target], Awaitable[str | None]]) -> None:
    """`ask` one target after the other until it returns no location; where that leads nowhere, `exchange` fails."""
    for _ in range(MAX_REDIRECTS + 1):
        location = await ask(target)
        if location is None:
            return
        try:
            target = target.resolve(location)
        except ConfigError as error:
            exchange.fail("status", f"HTTP {exchange.http_status}: redirected nowhere: {error}")
            return
    exchange.fail("status", f"HTTP {exchange.http_status}: redirected more than {MAX_REDIRECTS} times")
