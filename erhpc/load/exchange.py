"""One request as it happens: stamps, counts and failure; and what a streaming client must do to fill them in.

It knows no HTTP library, so that clients can stand beside each other, and no user: `users` makes records of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from erhpc.load.requests import LoadRequest

ErrorKind = Literal["connect", "status", "timeout", "truncated", "stream_error", "malformed", "cancelled"]
Clock = Callable[[], int]
"""Monotonic time in nanoseconds."""
MAX_ERROR_CHARS = 300


@dataclass(slots=True)
class Exchange:
    """What is known of one request so far; a client writes it, others may read it at any time."""

    sent_ns: int
    arrivals_ns: list[int] = field(default_factory=list)
    """When each piece of the answer came that carried tokens; a piece may carry several frames."""
    num_frames: int = 0
    """Frames that carried text: the number of tokens where the engine sends one per frame."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    """By the engine's usage; None if it reported none."""
    http_status: int | None = None
    expert: str | None = None
    replica: str | None = None
    error_kind: ErrorKind | None = None
    error_text: str | None = None

    def fail(self, kind: ErrorKind, text: str) -> None:
        """Note what went wrong; the first failure is kept."""
        if self.error_kind is None:
            self.error_kind = kind
            self.error_text = text[:MAX_ERROR_CHARS]

    def gaps_us(self) -> list[int]:
        """Microseconds between successive arrivals; rounded so that they add up to the time they span."""
        if len(self.arrivals_ns) < 2:
            return []
        first_ns = self.arrivals_ns[0]
        since_us = [(arrival_ns - first_ns + 500) // 1000 for arrival_ns in self.arrivals_ns]
        return [later - earlier for earlier, later in pairwise(since_us)]


class StreamingClient(Protocol):
    """Sends requests and streams their answers; shared by all users of a process."""

    async def send(self, request: LoadRequest, exchange: Exchange) -> None:
        """Send `request`, stamp `exchange.sent_ns`, and fill in `exchange` until the answer ends or fails.

        Every failure of the network or the server ends in `exchange.fail`, never in an exception. Cancelling
        breaks the answer off; what came before stays in `exchange`.
        """
