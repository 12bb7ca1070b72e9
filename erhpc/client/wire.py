"""One connection to a server, over which one request at a time goes out and its response comes back.

Two kinds: `SocketWire` reads a plain socket itself, so that the kernel's stamps are at hand; `StreamWire` is an
asyncio protocol, for TLS and where the kernel stamps nothing. It knows HTTP only through `Reception`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from erhpc.client.exchange import Clock, Exchange
from erhpc.client.reception import Reception
from erhpc.client.stamps import ANCILLARY_BYTES, KernelClock
from erhpc.results.record import ErrorKind, Stamper

READ_BYTES = 4096
"""Enough for some tokens; a read that fills it is followed by larger ones."""
LARGE_READ_BYTES = 256 * 1024


class Wire:
    """What both kinds share: whose response is coming in, and when it is over."""

    stamped_by: Stamper = "loop"

    def __init__(self) -> None:
        self.is_open = True
        self.loss = ""
        """Why the connection ended, empty while it stands."""
        self.ended_ns: int | None = None
        """When the answer had ended although its response had not."""
        self.exchange: Exchange | None = None
        self.reception: Reception | None = None
        self._over: asyncio.Future[None] | None = None

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow: a response can be complete before the server took the whole request."""
        return self.is_open and not self.loss and not self._has_unsent

    def begin(self, exchange: Exchange, request: bytes, clock: Clock) -> asyncio.Future[None]:
        """Send a request; the future is done when its response is over or the connection is lost."""
        self.exchange, self.reception, self.ended_ns = exchange, Reception(exchange), None
        self._over = asyncio.get_running_loop().create_future()
        exchange.stamped_by = self.stamped_by
        if exchange.http_status is None:  # else a server has redirected us: the time that took counts
            exchange.sent_ns = clock()
        self._send(request)
        return self._over

    def release(self) -> Reception | None:
        """Forget the response, so that another request can follow."""
        reception, self.reception, self.exchange, self._over = self.reception, None, None, None
        return reception

    def look(self, now_ns: int) -> None:
        """Read what came, and see whether that was all."""
        reception = self.reception
        if reception is None:
            return
        reception.read()
        if reception.has_ended:
            if reception.awaits_tail:
                self.ended_ns = self.ended_ns or now_ns
            else:
                self.finish()

    def give_up(self, kind: ErrorKind, text: str, now_ns: int) -> None:
        """Wait no longer for the answer, unless it has ended."""
        self.look(now_ns)
        if self.reception is not None and not self.reception.has_ended:
            self.reception.fail(kind, text)
            self.finish()

    def finish(self) -> None:
        """Say that the response is over."""
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def lose(self, reason: str) -> None:
        """The connection has ended."""
        self.loss = self.loss or reason
        self.close()
        self.finish()

    def close(self) -> None:
        """Give the connection up, at once and whatever is in flight."""
        raise NotImplementedError

    @property
    def _has_unsent(self) -> bool:
        raise NotImplementedError

    def _send(self, request: bytes) -> None:
        raise NotImplementedError


class SocketWire(Wire):
    """A connected non-blocking socket whose arrivals the kernel stamps."""

    stamped_by: Stamper = "kernel"

    def __init__(self, connection: socket.socket, clock: KernelClock) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._recvmsg = connection.recvmsg
        self._stamp = clock.stamp
        self._read_bytes = READ_BYTES
        self._unsent: memoryview | None = None
        self._loop.add_reader(connection.fileno(), self._on_readable)

    def close(self) -> None:
        """See `Wire.close`."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._connection.fileno())
            self._loop.remove_writer(self._connection.fileno())
            self._connection.close()

    def _on_readable(self) -> None:
        try:
            piece, ancillary, _, _ = self._recvmsg(self._read_bytes, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(f"the connection was lost ({error.strerror})")
            return
        reception = self.reception
        if not piece or reception is None:
            self.lose("the server closed the connection")
            return
        stamp_ns = self._stamp(ancillary)
        if len(piece) == self._read_bytes:
            self._read_bytes = LARGE_READ_BYTES
        if reception.take(piece, stamp_ns):
            self.look(stamp_ns)

    @property
    def _has_unsent(self) -> bool:
        return self._unsent is not None

    def _send(self, request: bytes) -> None:
        self._read_bytes = READ_BYTES
        self._send_part(memoryview(request))
        if self._unsent is not None:
            self._loop.add_writer(self._connection.fileno(), self._on_writable)

    def _send_part(self, part: memoryview) -> None:
        """Send what the kernel takes and keep the rest."""
        try:
            part = part[self._connection.send(part) :]
        except BlockingIOError:
            pass
        except OSError as error:
            # The response may be here already, e.g. a refusal of the body: reading tells, and ends in the loss.
            self.loss = f"the request could not be sent ({error.strerror})"
            part = part[:0]
        self._unsent = part if len(part) else None

    def _on_writable(self) -> None:
        if self._unsent is not None:
            self._send_part(self._unsent)
        if self._unsent is None:
            self._loop.remove_writer(self._connection.fileno())


class StreamWire(Wire, asyncio.Protocol):
    """A connection that asyncio reads, TLS included."""

    def __init__(self, clock: Clock, count_read: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._count_read = count_read

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        stamp_ns = self._clock()
        self._count_read()
        if self.reception is None:
            self.lose("the server sent what nobody asked for")
        elif self.reception.take(data, stamp_ns):
            self.look(stamp_ns)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.lose(f"the connection was lost ({error})" if error else "the server closed the connection")

    def close(self) -> None:
        """See `Wire.close`."""
        if self.is_open:
            self.is_open = False
            self._transport.abort()

    @property
    def _has_unsent(self) -> bool:
        return self._transport.get_write_buffer_size() > 0

    def _send(self, request: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(request)
