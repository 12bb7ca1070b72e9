"""Reads all sockets that have something, one after the other in one go, with the kernel's stamps. Linux only.

One epoll of its own holds them, and the event loop watches that one. A callback of the loop per socket would cost as
much again as the read; and pieces that may end an answer are looked at after all sockets have been read, so that
taking one answer apart makes no other one wait.
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

MAX_READY = 256
"""Sockets read before the loop gets its turn again: about 2 ms of work."""
MAX_UNREAD = 128
"""Pieces that are kept before an answer is read in between: a bound on memory, and on how long reading them takes."""


class Inbox:
    """The plain sockets of a client. Wires whose piece may have ended something are told so by `look`."""

    def __init__(self, clock: KernelClock) -> None:
        self.clock = clock
        self._wires: dict[int, SocketWire] = {}
        self._ready = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        """Runs out when the next look is due; None while the loop watches."""
        self._pace = Pace()
        self._loop.add_reader(self._ready.fileno(), self._look)

    def add(self, wire: SocketWire, connection: socket.socket) -> None:
        """Read `connection` for `wire` from now on."""
        self._wires[connection.fileno()] = wire
        self._ready.register(connection.fileno(), select.EPOLLIN)

    def remove(self, connection: socket.socket) -> None:
        """Read it no more; it must still be open."""
        del self._wires[connection.fileno()]
        self._ready.unregister(connection.fileno())

    def close(self) -> None:
        """Read nothing more."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._ready.fileno())
        self._ready.close()

    def _look(self) -> None:
        """Read what has come; under load, come back after a pause rather than at once."""
        num_ready = self._read_ready()
        rest_ms = self._pace.rest_ms(time.monotonic_ns(), is_full=num_ready == MAX_READY, is_empty=not num_ready)
        if rest_ms:
            if self._rest is None:
                self._loop.remove_reader(self._ready.fileno())
            self._rest = self._loop.call_later(rest_ms / 1000, self._look)
        elif self._rest is not None:
            self._rest = None
            self._loop.add_reader(self._ready.fileno(), self._look)

    def _read_ready(self) -> int:
        """Read each socket that has something once; returns how many had."""
        wires, clock, ancillary_bytes = self._wires, self.clock, ANCILLARY_BYTES
        changed: list[SocketWire] = []
        ready = self._ready.poll(0, MAX_READY)
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
                changed.append(wire)
        clock.num_reads += len(ready)
        if stamp is not None and wire.stamps[-1:] == [stamp]:
            # One of each look, the one that was read last, stands for all: looking at each would cost 1 %.
            clock.sample(stamp)
            self._note_gap(wire.stamps)
        for wire in changed:
            wire.look()
        return len(ready)

    def _note_gap(self, stamps: list[bytes]) -> None:
        """Reckon with the gap between the last two pieces of an answer."""
        if len(stamps) > 1:
            before_ns, last_ns = self.clock.to_monotonic_ns(stamps[-2:])
            self._pace.note_gap(last_ns - before_ns)
