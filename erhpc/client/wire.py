"""One connection to a server, over which one request at a time goes out and its response comes back.

Two kinds: a `SocketWire` is read by an `Inbox`, so that the kernel's stamps are at hand; `StreamWire` is an asyncio
protocol, for TLS and where the kernel stamps nothing. Either keeps every piece with its stamp, and has it read when
the answer may have ended. It knows HTTP only through `Reception`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from erhpc.client.exchange import Clock, Exchange
from erhpc.client.inbox import MAX_UNREAD, Inbox
from erhpc.client.reception import Reception
from erhpc.results.record import ErrorKind, Stamper

READ_BYTES = 4096
"""Enough for some tokens; a read that fills it is followed by larger ones."""
LARGE_READ_BYTES = 256 * 1024
_NOTHING = b""
"""How no piece ends."""


class Wire:
    """What both kinds share: whose response is coming in, and when it is over."""

    __slots__ = (
        "_clock",
        "_over",
        "ended_ns",
        "exchange",
        "frame_end",
        "is_open",
        "loss",
        "pieces",
        "reception",
        "sent_ns",
    )

    stamped_by: Stamper = "loop"

    def __init__(self, clock: Clock) -> None:
        self.is_open = True
        self.loss = ""
        """Why the connection ended, empty while it stands."""
        self.sent_ns = 0
        """When the last request over this connection left."""
        self.ended_ns: int | None = None
        """When the answer had ended although its response had not."""
        self.exchange: Exchange | None = None
        self.reception: Reception | None = None
        self.pieces: list[bytes] = []
        """What came and has not been read."""
        self.frame_end = _NOTHING
        """How a piece ends that need not be read yet; while tokens do not stream, none does."""
        self._clock = clock
        self._over: asyncio.Future[None] | None = None

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow: a response can be complete before the server took the whole request.

        What came and was not looked at yet would pass for the beginning of the next response.
        """
        return self.is_open and not self.loss and not self.pieces and not self._has_unsent

    @property
    def newest_ns(self) -> int | None:
        """When the last piece of the response came, None before any."""
        raise NotImplementedError

    def begin(self, exchange: Exchange, request: bytes) -> asyncio.Future[None]:
        """Send a request; the future is done when its response is over or the connection is lost."""
        self.exchange, self.reception, self.ended_ns = exchange, Reception(exchange), None
        self._over = asyncio.get_running_loop().create_future()
        exchange.stamped_by = self.stamped_by
        self.sent_ns = self._clock()
        if exchange.http_status is None:  # else a server has redirected us: the time that took counts
            exchange.sent_ns = self.sent_ns
        self._send(request)
        return self._over

    def release(self) -> None:
        """Forget the response, so that another request can follow."""
        self.reception, self.exchange, self._over, self.frame_end = None, None, None, _NOTHING

    def read(self) -> None:
        """Have what came read."""
        reception = self.reception
        if self.pieces and reception is not None:
            pieces, stamps_ns = self._take_pieces()
            reception.read(pieces, stamps_ns)
            # Large pieces are read as they come: that bounds what is kept.
            self.frame_end = reception.frame_end if len(pieces[-1]) < READ_BYTES else _NOTHING

    def look(self) -> None:
        """Read what came, and see whether that was all."""
        reception = self.reception
        if reception is None:
            self.lose("the server sent what nobody asked for")
            return
        self.read()
        if reception.has_ended:
            if reception.awaits_tail:
                self.ended_ns = self.ended_ns or self._clock()
            else:
                self.finish()

    def give_up(self, kind: ErrorKind, text: str) -> None:
        """Wait no longer for the answer, unless it has ended."""
        self.look()
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

    def _take_pieces(self) -> tuple[list[bytes], Sequence[int]]:
        """The pieces not yet read and when each came; forgets them."""
        raise NotImplementedError

    def _send(self, request: bytes) -> None:
        raise NotImplementedError


class SocketWire(Wire):
    """A connected non-blocking socket whose arrivals the kernel stamps."""

    __slots__ = ("_connection", "_inbox", "_newest", "_unsent", "is_preferred", "read_bytes", "receive", "stamps")

    stamped_by: Stamper = "kernel"

    def __init__(self, connection: socket.socket, inbox: Inbox, clock: Clock) -> None:
        super().__init__(clock)
        self._connection = connection
        self._inbox = inbox
        self.receive = connection.recvmsg
        self.read_bytes = READ_BYTES
        self.stamps: list[bytes] = []
        """The kernel's stamps of `pieces`, as they came."""
        self._newest: bytes | None = None
        """The stamp of the last piece that was read."""
        self._unsent: memoryview | None = None
        self.is_preferred = False
        """Whether the inbox reads it before others."""
        inbox.add(self, connection)

    @property
    def newest_ns(self) -> int | None:
        """See `Wire.newest_ns`."""
        newest = self.stamps[-1] if self.stamps else self._newest
        return self._inbox.clock.to_monotonic_ns([newest])[0] if newest is not None else None

    def close(self) -> None:
        """See `Wire.close`."""
        if self.is_open:
            self.is_open = False
            self._inbox.remove(self._connection)
            asyncio.get_running_loop().remove_writer(self._connection.fileno())
            self._connection.close()

    def _take_pieces(self) -> tuple[list[bytes], Sequence[int]]:
        pieces, stamps = self.pieces, self.stamps
        self.pieces, self.stamps, self._newest = [], [], stamps[-1]
        self.read_bytes = READ_BYTES if len(pieces[-1]) < READ_BYTES else LARGE_READ_BYTES
        return pieces, self._inbox.clock.to_monotonic_ns(stamps)

    @property
    def _has_unsent(self) -> bool:
        return self._unsent is not None

    def _send(self, request: bytes) -> None:
        self._newest = None
        self._inbox.prefer(self, self._connection)
        self._send_part(memoryview(request))
        if self._unsent is not None:
            asyncio.get_running_loop().add_writer(self._connection.fileno(), self._on_writable)

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
            asyncio.get_running_loop().remove_writer(self._connection.fileno())


class StreamWire(Wire, asyncio.Protocol):
    """A connection that asyncio reads, TLS included."""

    __slots__ = ("_count_read", "_newest_ns", "_stamps_ns", "_transport")

    def __init__(self, clock: Clock, count_read: Callable[[], None]) -> None:
        super().__init__(clock)
        self._count_read = count_read
        self._stamps_ns: list[int] = []
        self._newest_ns: int | None = None

    @property
    def newest_ns(self) -> int | None:
        """See `Wire.newest_ns`."""
        return self._newest_ns

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._newest_ns = self._clock()
        self._count_read()
        self.pieces.append(data)
        self._stamps_ns.append(self._newest_ns)
        if data[-5:] != self.frame_end or len(self.pieces) == MAX_UNREAD:
            self.look()

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

    def _take_pieces(self) -> tuple[list[bytes], Sequence[int]]:
        taken = self.pieces, self._stamps_ns
        self.pieces, self._stamps_ns = [], []
        return taken

    def _send(self, request: bytes) -> None:
        self._newest_ns = None
        if not self._transport.is_closing():
            self._transport.write(request)
