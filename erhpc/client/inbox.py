"""Reads all sockets that have something, one after the other in one go, with the kernel's stamps. Linux only.

Two epolls of its own hold them, and the event loop watches these. A callback of the loop per socket would cost as
much again as the read; and pieces that may end an answer are looked at after all sockets have been read, so that
taking one answer apart makes no other one wait; if many end together, the sockets are read in between. Sockets whose
answer has not begun come first: what the kernel stamps right as long as it is read before the next piece comes is then
right for first tokens however great the load.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from typing import TYPE_CHECKING

from erhpc.client.pace import Pace
from erhpc.client.stamps import ANCILLARY_BYTES, KernelClock

if TYPE_CHECKING:
    from erhpc.client.wire import SocketWire

MAX_READY = 1024
"""Sockets read before anything else is done, about 10 ms of work: as many as bring something in one round of this all
on a core that is nearly full. With fewer the rest would wait for the next round, where there are more."""
MAX_UNREAD = 128
"""Pieces that are kept before an answer is read in between: a bound on memory, and on how long reading them takes."""


class Inbox:
    """The plain sockets of a client. Wires whose piece may have ended something are told so by `look`."""

    def __init__(self, clock: KernelClock) -> None:
        self.clock = clock
        self._wires: dict[int, SocketWire] = {}
        self._beginning = select.epoll()
        self._streaming = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        """Runs out when the next look is due; None while the loop watches."""
        self._pace = Pace()
        self._changed: dict[SocketWire, None] = {}
        """Wires to look at, in the order in which their pieces came."""
        self._again: asyncio.Handle | None = None
        """The next look, where some of these are left."""
        self._watch()

    def add(self, wire: SocketWire, connection: socket.socket) -> None:
        """Read `connection` for `wire` from now on."""
        self._wires[connection.fileno()] = wire
        self._streaming.register(connection.fileno(), select.EPOLLIN)

    def prefer(self, wire: SocketWire, connection: socket.socket) -> None:
        """Read `connection` before others until an answer has begun."""
        if not wire.is_preferred and wire.is_open:
            wire.is_preferred = True
            self._streaming.unregister(connection.fileno())
            self._beginning.register(connection.fileno(), select.EPOLLIN)

    def remove(self, connection: socket.socket) -> None:
        """Read it no more. It must be closed at once, which takes it out of either epoll."""
        del self._wires[connection.fileno()]

    def close(self) -> None:
        """Read nothing more."""
        for handle in (self._rest, self._again):
            if handle is not None:
                handle.cancel()
        self._watch_no_longer()
        self._beginning.close()
        self._streaming.close()

    def _watch(self) -> None:
        self._rest = None
        for ready in (self._beginning, self._streaming):
            self._loop.add_reader(ready.fileno(), self._look)

    def _watch_no_longer(self) -> None:
        for ready in (self._beginning, self._streaming):
            self._loop.remove_reader(ready.fileno())

    def _look(self) -> None:
        """Read what has come; under load, come back after a pause rather than at once."""
        num_ready = MAX_READY
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            num_ready = self._read_ready()
            self._take_apart()
        finally:  # an error must not be the end of all reading
            self._schedule(num_ready)

    def _schedule(self, num_ready: int) -> None:
        """See to the next look, after one that found `num_ready` sockets."""
        rest_ms = self._pace.rest_ms(time.monotonic_ns(), is_full=num_ready >= MAX_READY, is_empty=not num_ready)
        if self._changed:
            self._again = self._loop.call_soon(self._look)
        elif rest_ms:
            if self._rest is None:
                self._watch_no_longer()
            self._rest = self._loop.call_later(rest_ms / 1000, self._look)
        elif self._rest is not None:
            self._watch()

    def _read_ready(self) -> int:
        """Read each socket that has something once; returns how many had."""
        wires, clock, ancillary_bytes = self._wires, self.clock, ANCILLARY_BYTES
        changed = self._changed
        beginning = self._beginning.poll(0, MAX_READY)
        ready = beginning + self._streaming.poll(0, MAX_READY)
        stamp = None
        for descriptor, _ in ready:
            wire = wires[descriptor]
            try:
                piece, ancillary, _, _ = wire.receive(wire.read_bytes, ancillary_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                wire.lose(f"the connection was lost ({error.strerror})")
                continue
            if not piece:
                wire.lose("the server closed the connection")
                continue
            pieces, stamp = wire.pieces, ancillary[0][2] if ancillary else clock.now()
            pieces.append(piece)
            wire.stamps.append(stamp)
            if piece[-5:] != wire.frame_end or len(pieces) == MAX_UNREAD:
                changed[wire] = None
        clock.num_reads += len(ready)
        if stamp is not None and wire.stamps[-1:] == [stamp]:
            # One of each look, the one that was read last, stands for all: looking at each would cost 1 %.
            clock.sample(stamp)
            self._note_gap(wire.stamps)
        for descriptor, _ in beginning:
            self._end_preference(descriptor)
        return len(ready)

    def _take_apart(self) -> None:
        """Look at the wires that may have ended something, for a while."""
        changed, until_ns = self._changed, time.monotonic_ns() + self._pace.look_ns
        while changed:
            wire = next(iter(changed))
            del changed[wire]
            if wire.pieces:  # else they have been read meanwhile
                wire.look()
            if time.monotonic_ns() > until_ns:
                return

    def _end_preference(self, descriptor: int) -> None:
        """Read a socket with the others once tokens stream; before, only the head of the response has come."""
        wire = self._wires.get(descriptor)
        if wire is not None and wire.frame_end:
            wire.is_preferred = False
            self._beginning.unregister(descriptor)
            self._streaming.register(descriptor, select.EPOLLIN)

    def _note_gap(self, stamps: list[bytes]) -> None:
        """Reckon with the gap between the last two pieces of an answer."""
        if len(stamps) > 1:
            before_ns, last_ns = self.clock.to_monotonic_ns(stamps[-2:])
            self._pace.note_gap(last_ns - before_ns)
