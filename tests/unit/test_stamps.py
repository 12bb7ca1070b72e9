from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.client.stamps import MAX_JUMP_NS, KernelClock, measure_offset_ns

SECOND_NS = 1_000_000_000


class Clocks:
    """A monotonic clock and a wall clock that someone may set."""

    def __init__(self, monotonic_ns: int = 50 * SECOND_NS, wall_ns: int = 1_764_000_000 * SECOND_NS) -> None:
        self.now_ns = monotonic_ns
        self.ahead_ns = wall_ns - monotonic_ns

    def monotonic(self) -> int:
        return self.now_ns

    def wall(self) -> int:
        return self.now_ns + self.ahead_ns

    def stamp(self, received_ns: int) -> bytes:
        """What the kernel gives with a read of what came at `received_ns` of the monotonic clock."""
        return struct.pack("qq", *divmod(received_ns + self.ahead_ns, SECOND_NS))


def clock_of(clocks: Clocks) -> KernelClock:
    return KernelClock(clocks.monotonic, clocks.wall)


@given(st.integers(0, 2**61), st.integers(0, 2**61))
def test_the_offset_is_monotonic_minus_wall(monotonic_ns: int, wall_ns: int):
    clocks = Clocks(monotonic_ns, wall_ns)
    assert measure_offset_ns(clocks.monotonic, clocks.wall) == monotonic_ns - wall_ns


def test_the_offset_is_that_of_the_try_in_which_least_time_passed():
    readings = iter([*[0, 1_000_000] * 10, 5_000_000, 5_000_002, *[9_000_000, 9_900_000] * 9])
    assert measure_offset_ns(lambda: next(readings), lambda: 5_000_001) == 0


def test_a_stamp_is_when_the_kernel_received_not_when_it_was_asked():
    clocks = Clocks()
    clock = clock_of(clocks)
    received_ns = clocks.now_ns + 123_456_789
    clocks.now_ns += 5 * SECOND_NS
    later_ns = received_ns + 1
    assert clock.to_monotonic_ns([clocks.stamp(received_ns), clocks.stamp(later_ns)]) == [received_ns, later_ns]


def test_a_stamp_of_now_is_now():
    clocks = Clocks()
    clock = clock_of(clocks)
    assert clock.to_monotonic_ns([clock.now()]) == [clocks.now_ns]


def test_samples_tell_how_long_reads_lay_waiting():
    clocks = Clocks()
    clock = clock_of(clocks)
    for _ in range(5):
        clock.sample(clocks.stamp(clocks.now_ns - 70_000))
    assert list(clock.take_delays_ns()) == [70_000] * 5
    assert list(clock.take_delays_ns()) == []


@pytest.mark.parametrize("set_by_ns", [3_600 * SECOND_NS, -3_600 * SECOND_NS])
def test_stamps_are_right_again_once_a_set_clock_was_looked_at(set_by_ns: int):
    clocks = Clocks()
    clock = clock_of(clocks)
    clocks.ahead_ns += set_by_ns
    clock.adjust()
    assert clock.to_monotonic_ns([clocks.stamp(clocks.now_ns)]) == [clocks.now_ns]
    assert clock.num_jumps == 1


def test_a_stamp_from_the_future_is_noticed_by_the_next_sample():
    clocks = Clocks()
    clock = clock_of(clocks)
    clocks.ahead_ns += 10 * SECOND_NS
    for _ in range(2):
        clock.sample(clocks.stamp(clocks.now_ns))
    assert clock.to_monotonic_ns([clocks.stamp(clocks.now_ns)]) == [clocks.now_ns]
    assert clock.num_jumps == 1
    assert list(clock.take_delays_ns()) == [0, 0]


def test_drift_is_followed_and_is_no_jump():
    clocks = Clocks()
    clock = clock_of(clocks)
    for _ in range(100):
        clocks.ahead_ns += MAX_JUMP_NS // 4  # 500 ppm of a second, the most that NTP slews
        clock.adjust()
    assert clock.num_jumps == 0
    assert clock.to_monotonic_ns([clocks.stamp(clocks.now_ns)]) == [clocks.now_ns]
