"""The least that a relay on uvloop can cost: bytes piped from socket to socket, and nothing understood.

    python -m tests.bench.gateway.floor 127.0.0.1:9000 8080

Each client's connection has one of its own to the upstream, and a callback that writes what came to the other side:
no head is read, no end is found, nothing is counted, no limit is kept. It is no gateway. What is left of a gateway's
cost beside it is what the gateway does; what is left beside a compiled one is what Python and uvloop cost.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import uvloop


class Pipe(asyncio.Protocol):
    """One end; what it receives goes to `write`, that of the other end."""

    __slots__ = ("other", "transport", "write")

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.write = lambda data: None
        self.other.transport.close()


class ClientEnd(Pipe):
    """Opens the other end when a client comes."""

    __slots__ = ("_early", "_opening")

    def __init__(self, host: str, port: int) -> None:
        self._early: list[bytes] = []
        self.write = self._early.append
        self._opening = asyncio.get_running_loop().create_task(self._open(host, port))

    async def _open(self, host: str, port: int) -> None:
        _, upstream = await asyncio.get_running_loop().create_connection(Pipe, host, port)
        upstream.other, self.other = self, upstream
        self.write, upstream.write = upstream.transport.write, self.transport.write
        upstream.transport.write(b"".join(self._early))


async def serve(upstream: str, port: int) -> None:
    """Until killed."""
    host, _, upstream_port = upstream.rpartition(":")
    make = lambda: ClientEnd(host, int(upstream_port))  # noqa: E731
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", port, backlog=4096)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
