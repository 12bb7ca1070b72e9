"""One request as it happens: stamps, counts and failure; and what a streaming client must do to fill them in.

It knows no HTTP library, so that clients can stand beside each other, and no user: `users` makes records of it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from erhpc.plan.protocol import EXPERT_HEADER, QUEUE_HEADER, REPLICA_HEADER
from erhpc.results.record import ErrorKind, Stamper
from erhpc.workload.requests import LoadRequest

Clock = Callable[[], int]
"""Monotonic time in nanoseconds."""
STALE_S = 1.0
"""A kept connection that ends without an answer within this time had been closed before the request came."""
TAIL_TIMEOUT_S = 1.0
"""How long the end of the response may follow [DONE], before the connection is given up; the answer counts anyway."""
MAX_ERROR_CHARS = 300
MAX_GAP_US = 2**31 - 1
"""Largest gap that the records hold: 35 minutes."""


def no_arrivals() -> array[int]:
    """An empty column of nanoseconds."""
    return array("q")


@dataclass(slots=True)
class Exchange:
    """What is known of one request so far; a client writes it, others may read it at any time."""

    sent_ns: int
    """When the bytes of the request left, to the first server asked if there were redirects; until then, when the
    client was asked to send it."""
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
    gateway_queue_s: float | None = None
    """How long the request waited in the gateway for its turn; None if no gateway said so."""
    stamped_by: Stamper = "loop"
    new_connection: bool = False
    raw: list[bytes] | None = None
    """The pieces of the response as they came, kept if a list is given."""
    error_kind: ErrorKind | None = None
    error_text: str | None = None

    def note_head(self, status: int, fields: Mapping[str, str]) -> None:
        """Take in the head of an answer, `fields` by names in lower case.

        What a gateway said that redirects stands, because the replica it redirects to says nothing of the kind.
        """
        self.http_status = status
        is_routed = EXPERT_HEADER in fields
        if is_routed:
            self.expert, self.replica = fields[EXPERT_HEADER], fields.get(REPLICA_HEADER)
        # A request that got as far as an expert and had to wait would say so.
        queued = fields.get(QUEUE_HEADER, "0" if is_routed else None)
        if queued is not None:
            self.gateway_queue_s = _read_microseconds(queued)

    def fail(self, kind: ErrorKind, text: str) -> None:
        """Note what went wrong; the first failure is kept."""
        if self.error_kind is None:
            self.error_kind = kind
            self.error_text = text[:MAX_ERROR_CHARS]

    def gaps_us(self) -> array[int]:
        """Microseconds between successive arrivals; rounded so that they add up to the time they span.

        A wall clock that is set while the kernel stamps can bring arrivals out of order or hours apart: such gaps
        are 0 or MAX_GAP_US.
        """
        gaps_us = array("i")
        if self.arrivals_ns:
            first_ns, last_us = self.arrivals_ns[0], 0
            for arrival_ns in self.arrivals_ns[1:]:
                since_us = (arrival_ns - first_ns + 500) // 1000
                gap_us = since_us - last_us
                if 0 <= gap_us <= MAX_GAP_US:
                    last_us = since_us
                else:
                    gap_us, last_us = (MAX_GAP_US, since_us) if gap_us > 0 else (0, last_us)
                gaps_us.append(gap_us)
        return gaps_us


def _read_microseconds(text: str) -> float | None:
    """Seconds, None if `text` is no length of time in microseconds."""
    try:
        seconds = float(text) / 1e6
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long each part of a request may take, seconds; None: as long as the whole."""

    total_s: float
    """From sending to the end of the answer."""
    connect_s: float
    """Until there is a connection, looking up the name and TLS included; it comes before sending."""
    first_token_s: float | None = None
    """From sending to the first token."""
    idle_s: float | None = None
    """Silence once a token has come: whatever the server sends, be it a comment, breaks it."""


class StreamingClient(Protocol):
    """Sends requests and streams their answers; shared by all users of a process."""

    @property
    def num_pieces(self) -> int:
        """Pieces of answers that have come in so far, for a live view; about one per token."""

    @property
    def num_clock_jumps(self) -> int:
        """How often the wall clock was set since the client exists: each spoils the kernel's stamps about it."""

    def take_delays_ns(self) -> array[int]:
        """How long pieces lay in the kernel before they were read: samples since the last call, none if not known."""

    async def send(self, request: LoadRequest, exchange: Exchange) -> None:
        """Send `request`, stamp `exchange.sent_ns`, and fill in `exchange` until the answer ends or fails.

        Every failure of the network or the server ends in `exchange.fail`, never in an exception. Cancelling
        breaks the answer off; what came before stays in `exchange`.
        """
