"""Who stamps arrivals: the kernel's receive time of a socket, brought to the monotonic clock, or the event loop.

The kernel stamps a segment when it reaches the socket, however long the process takes to come for it. Of several
segments in one read it tells the time of the last (Linux: tcp_recv_timestamp).
"""

from __future__ import annotations

import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence

SO_TIMESTAMPNS = 35
"""asm-generic/socket.h; Python's socket module does not name it. x86, arm64, riscv and powerpc agree on it."""
ANCILLARY_BYTES = socket.CMSG_SPACE(struct.calcsize("qq"))
NUM_BRACKETS = 20
KEEP_DELAYS = 200_000
MAX_JUMP_NS = 2_000_000
"""A larger step of the wall clock between two looks spoils stamps by more than a millisecond."""

Clock = Callable[[], int]


def measure_offset_ns(monotonic: Clock = time.monotonic_ns, wall: Clock = time.time_ns) -> int:
    """Monotonic minus wall clock: of 20 tries the one in which least time passed between two monotonic readings."""
    brackets = []
    for _ in range(NUM_BRACKETS):
        before_ns, wall_ns, after_ns = monotonic(), wall(), monotonic()
        brackets.append((after_ns - before_ns, (before_ns + after_ns) // 2 - wall_ns))
    return min(brackets)[1]


class KernelClock:
    """Turns the kernel's stamps (wall clock) into monotonic nanoseconds, and samples how long reads lay waiting."""

    def __init__(self, monotonic: Clock = time.monotonic_ns, wall: Clock = time.time_ns) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self.offset_ns = measure_offset_ns(monotonic, wall)
        self.num_jumps = 0
        """Times that the wall clock was set while we looked on."""
        self._delays_ns = array("q")
        self.num_reads = 0
        """Reads that were stamped, as whoever reads counts them."""

    def adjust(self) -> None:
        """Follow the drift between the clocks; due every second or so."""
        offset_ns = measure_offset_ns(self._monotonic, self._wall)
        self.num_jumps += abs(offset_ns - self.offset_ns) > MAX_JUMP_NS
        self.offset_ns = offset_ns

    def now(self) -> bytes:
        """A stamp of now, for what the kernel did not stamp."""
        return _pack(*divmod(self._monotonic() - self.offset_ns, 1_000_000_000))

    def to_monotonic_ns(self, stamps: Sequence[bytes]) -> list[int]:
        """Monotonic nanoseconds of what came with these stamps."""
        offset_ns = self.offset_ns
        return [
            seconds * 1_000_000_000 + nanoseconds + offset_ns
            for seconds, nanoseconds in _unpack_all(b"".join(stamps))
        ]  # fmt: skip

    def sample(self, stamp: bytes) -> None:
        """Note how long a read lay waiting; a stamp from the future shows that the wall clock was set forward."""
        delay_ns = self._monotonic() - self.to_monotonic_ns([stamp])[0]
        if delay_ns < -MAX_JUMP_NS:
            self.adjust()
        if len(self._delays_ns) < KEEP_DELAYS:
            self._delays_ns.append(max(0, delay_ns))

    def take_delays_ns(self) -> array[int]:
        """The sampled delays from kernel to read since the last call."""
        delays_ns, self._delays_ns = self._delays_ns, array("q")
        return delays_ns


_TIMESPEC = struct.Struct("qq")
_pack, _unpack_all = _TIMESPEC.pack, _TIMESPEC.iter_unpack


def request_stamps(connection: socket.socket) -> bool:
    """Ask the kernel to stamp what arrives on a socket; False where it cannot."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True
