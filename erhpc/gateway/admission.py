"""How many requests are answered at once: the others wait in turn for a bounded time, and too many are refused. Pure.

The places are those of the whole gateway, the queue is each process's own: a place that another process gives up is
found at the next `admit`. Two processes that look at the same time may each take the last one.

Without a bound every request is late once there are more than the replicas can take; with one, those that are
admitted are answered as fast as ever, and the others learn at once that they must come back later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum

from erhpc.gateway.ledger import Count, Ledger


class Overloaded(Exception):
    """There is neither a place among those in flight nor one in the queue."""


class Turn(Enum):
    """Where a ticket stands."""

    WAITING = "waiting"
    ADMITTED = "admitted"
    EXPIRED = "expired"
    """It waited too long."""
    OVER = "over"


class Ticket:
    """One request's place; whoever holds it must call `leave` once it is done, however it ends."""

    __slots__ = ("_admission", "_on_change", "asked_s", "turn")

    def __init__(self, admission: Admission, on_change: Callable[[], None], asked_s: float) -> None:
        self.turn = Turn.WAITING
        self.asked_s = asked_s
        self._admission = admission
        self._on_change = on_change

    def leave(self) -> None:
        """Give the place up, or stop waiting for one; nothing happens the second time."""
        turn, self.turn = self.turn, Turn.OVER
        self._admission.note_leave(turn)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def change(self, turn: Turn) -> None:
        """Tell whoever waits."""
        self.turn = turn
        self._on_change()


def _allow_none() -> int:
    return 0


class Admission:
    """Places for `find_limit()` requests, and a queue of `max_queued` that wait `queue_timeout_s` at most.

    `placed` counts the requests that have a place, `waiting` those in the queue.
    """

    def __init__(
        self,
        find_limit: Callable[[], int],
        max_queued: int,
        queue_timeout_s: float,
        *,
        placed: Count | None = None,
        waiting: Count | None = None,
    ) -> None:
        ledger = Ledger([("placed",), ("waiting",)])
        self.placed = placed or ledger.count(("placed",))
        self.waiting = waiting or ledger.count(("waiting",))
        self._find_limit = find_limit
        self._max_queued = max_queued
        self._queue_timeout_s = queue_timeout_s
        self._queue: deque[Ticket] = deque()
        """In the order of asking; those that have left are still in it."""

    def ask(self, on_change: Callable[[], None], now_s: float) -> Ticket:
        """A ticket, admitted at once or waiting; then `on_change` tells when it is admitted, or has expired.

        Raises:
            Overloaded: the queue is full, or closed.
        """
        ticket = Ticket(self, on_change, now_s)
        num_waiting = self.waiting.value
        if not num_waiting and self.placed.total < self._find_limit():
            self.placed.add(1)
            ticket.turn = Turn.ADMITTED
        elif num_waiting < self._max_queued:
            self.waiting.add(1)
            self._queue.append(ticket)
        else:
            raise Overloaded
        return ticket

    def expire(self, now_s: float) -> None:
        """Turn those away who have waited too long; due now and then."""
        while self._queue and self._queue[0].asked_s + self._queue_timeout_s <= now_s:
            ticket = self._queue.popleft()
            if ticket.turn is Turn.WAITING:
                self.waiting.add(-1)
                ticket.change(Turn.EXPIRED)

    def close(self) -> None:
        """Turn away everyone who waits, and whoever asks from now on; places that are held stay so."""
        self._find_limit, self._max_queued = _allow_none, 0
        self.expire(math.inf)

    def note_leave(self, turn: Turn) -> None:
        """A ticket that stood at `turn` is over: its place is another's."""
        if turn is Turn.WAITING:
            self.waiting.add(-1)
        elif turn is Turn.ADMITTED:
            self.placed.add(-1)
            if self._queue:
                self.admit()

    def admit(self) -> None:
        """Give free places to those who wait; due now and then, for places that other processes gave up."""
        while self._queue and self.placed.total < self._find_limit():
            ticket = self._queue.popleft()
            if ticket.turn is Turn.WAITING:
                self.waiting.add(-1)
                self.placed.add(1)
                ticket.change(Turn.ADMITTED)
