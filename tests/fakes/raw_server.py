"""A server that sends given bytes in given pieces, whatever HTTP says about them, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Visit:
    """One connection of a client."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: RawServer

    async def head(self) -> bytes:
        """The head of the next request. Raises EOFError if the client has left."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.server.heads.append(head)
        return head

    async def request(self) -> bytes:
        """The body of the next request. Raises EOFError if the client has left."""
        head = await self.head()
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        self.server.bodies.append(body)
        self.server.asked.put_nowait(self.number)
        return body

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself, so that the client may read it by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def until_left(self) -> None:
        """Wait until the client closes the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.server.left.put_nowait(self.number)


Talk = Callable[[Visit], Awaitable[None]]


@dataclass
class RawServer:
    """Lets `talk` have each connection, and closes it when that returns."""

    talk: Talk
    url: str = ""
    port: int = 0
    num_connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    asked: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Numbers of the connections over which requests came, to wait for."""
    left: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Numbers of the connections that clients closed, to wait for."""

    @asynccontextmanager
    async def serving(
        self, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, path: Path | None = None
    ) -> AsyncIterator[RawServer]:
        """Listen on a free port of `host`, or on a Unix socket at `path`, until the context ends."""
        visits: set[asyncio.Task[None]] = set()

        async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            visits.add(task)
            try:
                await self._host(reader, writer)
            finally:
                visits.discard(task)

        if path is not None:
            server = await asyncio.start_unix_server(visit, path)
        else:
            server = await asyncio.start_server(visit, host, 0, ssl=tls)
            self.port = server.sockets[0].getsockname()[1]
            name = f"[{host}]" if ":" in host else host
            self.url = f"{'https' if tls else 'http'}://{name}:{self.port}/v1"
        try:
            yield self
        finally:
            server.close()
            for task in list(visits):
                task.cancel()
            await asyncio.gather(*visits, return_exceptions=True)
            await server.wait_closed()

    async def _host(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.num_connections += 1
        try:
            with suppress(EOFError, ConnectionError, ssl.SSLError):
                await self.talk(Visit(self.num_connections, reader, writer, self))
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        except asyncio.CancelledError:  # the server ends; asyncio's streams would report it as an error
            writer.transport.abort()


def canned(*pieces: bytes, closes: bool = False) -> Talk:
    """Answer every request with the same pieces; afterwards close the connection, or wait for another request."""

    async def talk(visit: Visit) -> None:
        while True:
            await visit.request()
            await visit.send(*pieces)
            if closes:
                return

    return talk
