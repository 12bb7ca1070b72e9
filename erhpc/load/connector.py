"""Opens connections: names looked up once, addresses tried in turn, TLS, Unix sockets, and the kernel's stamps."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from erhpc.load.exchange import Clock
from erhpc.load.stamps import KernelClock, request_stamps
from erhpc.load.target import Target
from erhpc.load.wire import SocketWire, StreamWire, Wire


class Connector:
    """Opens wires; with `kernel_clock` those over plain TCP bear the kernel's stamps where it gives any."""

    def __init__(self, clock: Clock, kernel_clock: KernelClock | None) -> None:
        self._clock = clock
        self._kernel_clock = kernel_clock
        self._addresses: dict[tuple[str, int], list[Any]] = {}
        self.num_reads = 0
        """Reads of the wires that asyncio reads."""
        self._tls: ssl.SSLContext | None = None

    async def connect(self, target: Target) -> Wire:
        """Open a connection, however long it takes; raises OSError (ssl.SSLError among them) if that fails."""
        loop = asyncio.get_running_loop()
        if target.scheme == "unix":
            return (await loop.create_unix_connection(self._make_stream, target.host))[1]
        connection = await self._connect_socket(target)
        try:
            if target.scheme == "https":
                self._tls = self._tls or ssl.create_default_context()
                made = await loop.create_connection(
                    self._make_stream, sock=connection, ssl=self._tls, server_hostname=target.host
                )
                return made[1]
            if self._kernel_clock is not None and request_stamps(connection):
                return SocketWire(connection, self._kernel_clock)
            return (await loop.create_connection(self._make_stream, sock=connection))[1]
        except BaseException:
            connection.close()
            raise

    def _make_stream(self) -> StreamWire:
        return StreamWire(self._clock, self._count_read)

    def _count_read(self) -> None:
        self.num_reads += 1

    async def _connect_socket(self, target: Target) -> socket.socket:
        """A connected socket; of several addresses the first that answers, and that one first the next time."""
        loop = asyncio.get_running_loop()
        place = (target.host, target.port)
        if place not in self._addresses:
            self._addresses[place] = await loop.getaddrinfo(*place, type=socket.SOCK_STREAM)
        last_error: OSError | None = None
        for found in list(self._addresses[place]):
            family, kind, protocol, _, address = found
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(connection, address)
            except BaseException as error:
                connection.close()
                if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                    raise
                last_error = error
            else:
                addresses = self._addresses[place]
                addresses.remove(found)
                addresses.insert(0, found)
                return connection
        raise last_error or OSError(f"no address is known for {target.host}")
