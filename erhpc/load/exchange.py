"""One request as it happens: stamps, counts and failure; and what a streaming client must do to fill them in.

It knows no HTTP library, so that clients can stand beside each other, and no user: `users` makes records of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from erhpc.load.requests import LoadRequest
from erhpc.results.record import ErrorKind, Stamper

Clock = Callable[[], int]
"""Monotonic time in nanoseconds."""
MAX_ERROR_CHARS = 300


def no_arrivals() -> array[int]:
    """An empty column of nanoseconds."""
    return array("q")


@dataclass(slots=True)
class Exchange:
    """What is known of one request so far; a client writes it, others may read it at any time."""

    sent_ns: int
    """When the bytes of the request left; until then, when the client was asked to send it."""
    first_piece_ns: int | None = None
    """When the first piece of the answer's body came, for a live view; it need not carry a token."""
    arrivals_ns: array[int] = field(default_factory=no_arrivals)
    """When each piece of the answer came that carried tokens; complete once the answer has ended."""
    num_frames: int = 0
    """Frames that carried tokens: the number of tokens where the engine sends one per frame."""
    num_coalesced: int = 0
    """Arrivals that carried more than one such frame."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    """By the engine's usage; None if it reported none."""
    http_status: int | None = None
    expert: str | None = None
    replica: str | None = None
    stamped_by: Stamper = "loop"
    new_connection: bool = False
    raw: list[bytes] | None = None
    """The pieces of the response as they came, kept if a list is given."""
    error_kind: ErrorKind | None = None
    error_text: str | None = None

    def fail(self, kind: ErrorKind, text: str) -> None:
        """Note what went wrong; the first failure is kept."""
        if self.error_kind is None:
            self.error_kind = kind
            self.error_text = text[:MAX_ERROR_CHARS]

    def gaps_us(self) -> array[int]:
        """Microseconds between successive arrivals; rounded so that they add up to the time they span."""
        gaps_us = array("i")
        if self.arrivals_ns:
            first_ns, last_us = self.arrivals_ns[0], 0
            for arrival_ns in self.arrivals_ns[1:]:
                since_us = (arrival_ns - first_ns + 500) // 1000
                gaps_us.append(since_us - last_us)
                last_us = since_us
        return gaps_us


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long each part of a request may take, seconds; None: as long as the whole."""

    total_s: float
    connect_s: float
    first_token_s: float | None = None
    idle_s: float | None = None


class StreamingClient(Protocol):
    """Sends requests and streams their answers; shared by all users of a process."""

    @property
    def num_pieces(self) -> int:
        """Pieces of answers that have come in so far, for a live view; about one per token."""

    def take_delays_ns(self) -> array[int]:
        """How long pieces lay in the kernel before they were read: samples since the last call, none if not known."""

    async def send(self, request: LoadRequest, exchange: Exchange) -> None:
        """Send `request`, stamp `exchange.sent_ns`, and fill in `exchange` until the answer ends or fails.

        Every failure of the network or the server ends in `exchange.fail`, never in an exception. Cancelling
        breaks the answer off; what came before stays in `exchange`.
        """
