"""Opens connections: names looked up once, addresses tried in turn, TLS, Unix sockets, and the kernel's stamps."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from erhpc.client.exchange import Clock
from erhpc.client.inbox import Inbox
from erhpc.client.stamps import KernelClock, request_stamps
from erhpc.client.target import Target
from erhpc.client.wire import SocketWire, StreamWire, Wire


class Connector:
    """Opens wires; with `kernel_clock` those over plain TCP bear the kernel's stamps where it gives any."""

    def __init__(self, clock: Clock, kernel_clock: KernelClock | None) -> None:
        self._clock = clock
        self._kernel_clock = kernel_clock
        self._addresses: dict[tuple[str, int], asyncio.Task[list[Any]]] = {}
        """Where names lead, looked up once and for all who wait; the address that answered last comes first."""
        self.num_reads = 0
        """Reads of the wires that asyncio reads."""
        self._tls: ssl.SSLContext | None = None
        self._inbox: Inbox | None = None

    def close(self) -> None:
        """Read nothing more; all wires must have been closed."""
        if self._inbox is not None:
            self._inbox.close()

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
                self._inbox = self._inbox or Inbox(self._kernel_clock)
                return SocketWire(connection, self._inbox, self._clock)
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
        addresses = await self._look_up(target.host, target.port)
        last_error = OSError(f"no address is known for {target.host}")
        for found in list(addresses):
            try:
                connection = await _connect_to(found)
            except OSError as error:
                last_error = error
            else:
                addresses.remove(found)
                addresses.insert(0, found)
                return connection
        self._addresses.pop((target.host, target.port), None)  # the name may lead elsewhere by now
        raise last_error

    async def _look_up(self, host: str, port: int) -> list[Any]:
        task = self._addresses.get((host, port))
        if task is None:
            task = asyncio.create_task(_find_addresses(host, port), name=f"look up {host}")
            task.add_done_callback(_note_failure)
            self._addresses[host, port] = task
        try:
            return await asyncio.shield(task)  # others wait for it too
        except OSError:
            self._addresses.pop((host, port), None)
            raise


async def _find_addresses(host: str, port: int) -> list[Any]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _note_failure(task: asyncio.Task[list[Any]]) -> None:
    """Whoever waits raises it; if nobody does any more, asyncio would report it as forgotten."""
    if not task.cancelled():
        task.exception()


async def _connect_to(found: Any) -> socket.socket:
    """A connected non-blocking socket to one entry of getaddrinfo."""
    family, kind, protocol, _, address = found
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection
