"""Goodput beyond capacity, in a world without clocks: arrivals that nothing slows down, and a fixed number of slots."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass

import pytest

from erhpc.gateway.admission import Admission, Overloaded, Ticket, Turn

NUM_SLOTS = 8
SERVICE_S = 1.0
SLO_S = 4.0
END_S = 200.0


@dataclass
class Asked:
    """A request that has come, and goes to the replica once it is admitted."""

    asked_s: float
    waiting: deque[Asked]
    """Those that wait at the replica for a slot."""
    ticket: Ticket | None = None

    def ask(self, admission: Admission) -> None:
        self.ticket = admission.ask(self.go_on, self.asked_s)
        self.go_on()

    def go_on(self) -> None:
        if self.ticket is not None and self.ticket.turn is Turn.ADMITTED:
            self.waiting.append(self)


def count_good(admission: Admission, share: float, draw: random.Random) -> int:
    """Requests answered within the SLO of those that arrive at `share` of the capacity of the slots."""
    now_s, num_good, num_free = 0.0, 0, NUM_SLOTS
    order = itertools.count()
    events: list[tuple[float, int, Asked | None]] = [(0.0, next(order), None)]
    waiting: deque[Asked] = deque()
    while now_s < END_S:
        now_s, _, ended = heapq.heappop(events)
        if ended is None:
            heapq.heappush(events, (now_s + draw.expovariate(share * NUM_SLOTS / SERVICE_S), next(order), None))
            with contextlib.suppress(Overloaded):
                Asked(now_s, waiting).ask(admission)
        else:
            assert ended.ticket is not None
            num_free += 1
            num_good += now_s - ended.asked_s <= SLO_S
            ended.ticket.leave()
        admission.expire(now_s)
        while waiting and num_free:
            num_free -= 1
            heapq.heappush(events, (now_s + SERVICE_S, next(order), waiting.popleft()))
    return num_good


@pytest.mark.parametrize("share", [1.5, 2.0, 3.0])
def test_admission_keeps_nearly_all_of_the_goodput_however_many_ask(share: float):
    full = NUM_SLOTS / SERVICE_S * END_S
    assert count_good(Admission(lambda: NUM_SLOTS, 2 * NUM_SLOTS, 3.0), share, random.Random(0)) >= 0.98 * full


def test_without_a_bound_nearly_everybody_is_answered_too_late():
    full = NUM_SLOTS / SERVICE_S * END_S
    assert count_good(Admission(lambda: 10**9, 0, 3.0), 1.5, random.Random(0)) < 0.1 * full


def test_those_whose_wait_would_be_too_long_are_not_let_wait():
    # A queue without end costs no goodput as long as waits are bounded, and all of it if they are not.
    full = NUM_SLOTS / SERVICE_S * END_S
    assert count_good(Admission(lambda: NUM_SLOTS, 10**9, 2.5), 3.0, random.Random(0)) >= 0.98 * full
    assert count_good(Admission(lambda: NUM_SLOTS, 10**9, 1e9), 3.0, random.Random(0)) < 0.1 * full
