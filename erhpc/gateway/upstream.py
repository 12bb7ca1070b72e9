"""Connections to the replicas: one response at a time on each, its bytes passed on as they come, kept for the next.

It knows no client and no policy: who asks is a `Listener`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from os import write
from typing import Any, Protocol
from urllib.parse import urlsplit

from erhpc.http1.body import BodyError
from erhpc.http1.framing import ChunkedFraming, LengthFraming, OpenFraming, make_framing
from erhpc.http1.head import HeadError, ResponseHead, find_head_end, parse_head
from erhpc.plan.protocol import KEEP_ALIVE_S

MAX_INTERIM = 16
"""Interim heads (1xx) before the real one."""
MIN_WHOLE_BYTES = 64
"""Pieces shorter than this are looked at: the last chunk, and those that tell nothing of what was used."""
MAX_WHOLE_BYTES = 4096
TAIL_BYTES = 4096
"""Kept of the end of a body."""

Clock = Callable[[], float]


class Listener(Protocol):
    """Whoever waits for a response."""

    @property
    def sink(self) -> int | None:
        """The socket that takes the chunks that follow, framed as they are, in place of `take`; None: they are told.

        Its descriptor: what the transport does before it writes takes longer than all that is done here. Nothing else
        may be waiting to be sent on it, and it must stay open until the listener has given this connection up.
        """

    def begin(self, head: ResponseHead) -> None:
        """The head of the response has come."""

    def take(self, data: bytes, *, is_over: bool) -> None:
        """Bytes of the body have come, as they are framed; `is_over`: they were the last."""

    def break_off(self, reason: str) -> None:
        """The connection is lost, or what came is no HTTP; nothing more will come."""


def _list_beginnings() -> list[list[int]]:
    """The first four bytes of a piece of each length if it is one whole chunk: four lists, -1 where none is that long.

    A chunk that begins so and is that long has the length that its first line says: that line has three digits at most.
    """
    beginnings = [[-1] * MAX_WHOLE_BYTES for _ in range(4)]
    for size in range(1, MAX_WHOLE_BYTES):
        start = b"%x\r\n" % size
        num_bytes = len(start) + size + 2
        if MIN_WHOLE_BYTES <= num_bytes < MAX_WHOLE_BYTES:
            for byte, numbers in zip(start, beginnings, strict=False):
                numbers[num_bytes] = byte
    return beginnings


_FIRST, _SECOND, _THIRD, _FOURTH = _list_beginnings()


class Upstream(asyncio.Protocol):
    """One connection to a replica."""

    __slots__ = (
        "_head_bytes",
        "_known",
        "_num_interim",
        "_num_pieces",
        "_pool",
        "_sink",
        "_tail",
        "_transport",
        "framing",
        "has_begun",
        "head",
        "idle_since_s",
        "is_open",
        "listener",
    )

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool
        self.is_open = True
        self.listener: Listener | None = None
        self._sink: int | None = None
        self.idle_since_s = 0.0

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport: asyncio.Transport = transport

    def ask(self, listener: Listener, request: bytes) -> None:
        """Send a request; `listener` is told what comes."""
        self.listener = listener
        self.head: ResponseHead | None = None
        self.framing: ChunkedFraming | LengthFraming | OpenFraming | None = None
        self.has_begun = False
        """Whether any byte of the response has come."""
        self._tail = b""
        self._sink = None
        """Where whole chunks are written as they are; None: what comes next must be looked at."""
        self._num_pieces = 0
        self._known: tuple[int, bytes] = (0, b"")
        self._head_bytes = b""
        self._num_interim = 0
        self._transport.write(request)

    @property
    def tail(self) -> bytes:
        """The end of what came of the body: an answer tells there what it used."""
        return self._tail

    def hears(self) -> bool:
        """Whether anything has come since this was last asked."""
        before, self._known = self._known, (self._num_pieces, self._tail)
        return before[0] != self._known[0] or before[1] is not self._known[1]

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        sink = self._sink
        if sink is not None:
            # A thousand streams are too many for the caches of a core: what is done per token must touch little, code
            # too. Looks at single bytes run through less of it than `startswith` and `endswith`.
            num_bytes = len(data)
            if (
                num_bytes < MAX_WHOLE_BYTES
                and data[0] == _FIRST[num_bytes]
                and data[1] == _SECOND[num_bytes]
                and data[2] == _THIRD[num_bytes]
                and data[3] == _FOURTH[num_bytes]
                and data[-2] == 13
                and data[-1] == 10
            ):
                self._tail = data
                try:
                    num_sent = write(sink, data)
                except OSError:  # it is full, or the client has gone: its transport finds out which
                    num_sent = 0
                if num_sent != num_bytes:
                    self._pass_rest(data[num_sent:])
                return
        self._look(data)

    def _pass_rest(self, data: bytes) -> None:
        """Tell the listener what its socket did not take, and what comes until it has."""
        listener, self._sink = self.listener, None
        assert listener is not None  # who else would have a sink
        listener.take(data, is_over=False)

    def _look(self, data: bytes) -> None:
        """Take what may be anything."""
        listener = self.listener
        if listener is None:
            self.abort()  # nobody asked
            return
        self.has_begun = True
        self._num_pieces += 1
        try:
            framing = self.framing
            if framing is None:
                data = self._read_head(data)
                framing = self.framing
                if framing is None or self.listener is not listener:  # given up on reading its head
                    return
            num_bytes = framing.feed(data)
        except (HeadError, BodyError) as error:
            self._break(f"sent what is no HTTP: {error}")
            return
        self._tail = (self._tail + data[:num_bytes])[-TAIL_BYTES:]
        if framing.is_over:
            self._end(listener, data, num_bytes)
        elif data:
            listener.take(data, is_over=False)
            if self.listener is listener:
                is_aligned = isinstance(framing, ChunkedFraming) and framing.is_between_chunks
                self._sink = listener.sink if is_aligned else None

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_open = False
        self._pool.drop(self)
        listener = self.listener
        if listener is not None and isinstance(self.framing, OpenFraming) and error is None:
            self.listener = None
            listener.take(b"", is_over=True)
        else:
            self._break("closed the connection")

    def pause(self) -> None:
        """Read nothing for a while."""
        if self.is_open:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.is_open:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Give the connection up, and whatever the replica does for it."""
        self.listener = self._sink = None
        if self.is_open:
            self.is_open = False
            self._transport.abort()

    def _read_head(self, data: bytes) -> bytes:
        """Take the head, interim ones too; returns what of the body followed it."""
        num_searched = len(self._head_bytes)
        self._head_bytes += data
        while end := find_head_end(self._head_bytes, num_searched):
            head, self._head_bytes, num_searched = parse_head(self._head_bytes[:end]), self._head_bytes[end:], 0
            if not head.is_interim:
                rest, self._head_bytes = self._head_bytes, b""
                self.head, self.framing = head, make_framing(head)
                assert self.listener is not None  # who else would have asked
                self.listener.begin(head)
                return rest
            self._num_interim += 1
            if head.status == 101 or self._num_interim > MAX_INTERIM:
                raise HeadError("it answered with interim heads only")
        return b""

    def _end(self, listener: Listener, data: bytes, num_bytes: int) -> None:
        self.listener = self._sink = None
        is_clean = num_bytes == len(data) and self.head is not None and self.head.keeps_alive
        if is_clean and self._transport.get_write_buffer_size() == 0:
            self._pool.keep(self)
        else:
            self.abort()
        listener.take(data[:num_bytes], is_over=True)

    def _break(self, reason: str) -> None:
        listener = self.listener
        self.abort()
        if listener is not None:
            listener.break_off(reason)


class UpstreamPool:
    """The connections to one replica: those in use, and those kept for the next request."""

    def __init__(self, url: str, *, clock: Clock = time.monotonic) -> None:
        place = urlsplit(url)
        self.host_header = place.netloc
        self.path = place.path.rstrip("/")
        """Before the path of every route."""
        self._host = place.hostname or ""
        self._ssl = ssl.create_default_context() if place.scheme == "https" else None
        self._port = place.port or (443 if self._ssl else 80)
        self._clock = clock
        self._idle: list[Upstream] = []
        self._all: set[Upstream] = set()

    def take(self) -> Upstream | None:
        """A kept connection, the one used last; None if there is none that the replica will still have open."""
        while self._idle:
            upstream = self._idle.pop()
            if upstream.is_open and self._clock() - upstream.idle_since_s < KEEP_ALIVE_S:
                return upstream
            upstream.abort()
        return None

    async def connect(self) -> Upstream:
        """A new connection, which may take the kernel minutes to be refused. Raises OSError if there is none."""
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self), self._host, self._port, ssl=self._ssl)
        self._all.add(upstream)
        return upstream

    def keep(self, upstream: Upstream) -> None:
        """Keep a connection whose response is over."""
        upstream.idle_since_s = self._clock()
        self._idle.append(upstream)

    def close_idle(self) -> None:
        """Give up connections that nobody will take any more; due every now and then."""
        oldest_s = self._clock() - KEEP_ALIVE_S
        stale = [upstream for upstream in self._idle if upstream.idle_since_s <= oldest_s]
        del self._idle[: len(stale)]  # the one used last stands last
        for upstream in stale:
            upstream.abort()

    def drop(self, upstream: Upstream) -> None:
        """Forget a connection that is lost."""
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)

    def close(self) -> None:
        """Give up all connections."""
        for upstream in list(self._all):
            upstream.abort()
