"""How many requests are answered at once: the others wait in turn for a bounded time, and too many are refused. Pure.

Without a bound every request is late once there are more than the replicas can take; with one, those that are
admitted are answered as fast as ever, and the others learn at once that they must come back later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum


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


class Admission:
    """Places for `max_in_flight` requests, and a queue of `max_queued` that wait `queue_timeout_s` at most."""

    def __init__(self, max_in_flight: int, max_queued: int, queue_timeout_s: float) -> None:
        self.num_in_flight = 0
        self.num_queued = 0
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._queue_timeout_s = queue_timeout_s
        self._queue: deque[Ticket] = deque()
        """In the order of asking; those that have left are still in it."""

    def ask(self, on_change: Callable[[], None], now_s: float) -> Ticket:
        """A ticket, admitted at once or waiting; then `on_change` tells when it is admitted, or has expired.

        Raises:
            Overloaded: the queue is full.
        """
        ticket = Ticket(self, on_change, now_s)
        if self.num_in_flight < self._max_in_flight and not self.num_queued:
            self.num_in_flight += 1
            ticket.turn = Turn.ADMITTED
        elif self.num_queued < self._max_queued:
            self.num_queued += 1
            self._queue.append(ticket)
        else:
            raise Overloaded
        return ticket

    def expire(self, now_s: float) -> None:
        """Turn those away who have waited too long; due every now and then."""
        while self._queue and self._queue[0].asked_s + self._queue_timeout_s <= now_s:
            ticket = self._queue.popleft()
            if ticket.turn is Turn.WAITING:
                self.num_queued -= 1
                ticket.change(Turn.EXPIRED)

    def note_leave(self, turn: Turn) -> None:
        """A ticket that stood at `turn` is over: its place is another's."""
        if turn is Turn.WAITING:
            self.num_queued -= 1
        elif turn is Turn.ADMITTED:
            self.num_in_flight -= 1
            self._admit()

    def _admit(self) -> None:
        while self._queue and self.num_in_flight < self._max_in_flight:
            ticket = self._queue.popleft()
            if ticket.turn is Turn.WAITING:
                self.num_queued -= 1
                self.num_in_flight += 1
                ticket.change(Turn.ADMITTED)
