"""One response as it is read: takes framing and JSON apart, and says when the answer and the response have ended.

Pieces may be read long after they came: until one looks unlike a token (`frame_end`), a wire only keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

from erhpc.client.answer import AnswerReader
from erhpc.client.exchange import Exchange
from erhpc.client.redirects import REDIRECTS
from erhpc.client.template import FrameTemplate
from erhpc.http1.body import Body, BodyError, ChunkedBody, make_body
from erhpc.http1.head import HeadError, ResponseHead, find_head_end, parse_head
from erhpc.results.record import ErrorKind

FRAME_END = b"}\n\n\r\n"
"""How a chunk with one frame ends: neither the end of an answer ([DONE]) nor of a response (the last chunk)."""
MAX_REFUSAL_BYTES = 4096
"""How much of an error body is kept for the record."""
MAX_INTERIM = 16
"""Interim heads (1xx) before the real one."""


class Reception:
    """Takes the pieces of one response and writes what they say into `exchange`.

    The answer ends before the response does: `[DONE]` comes in one chunk, the last chunk after it. Nothing that a
    server sends makes it raise.
    """

    __slots__ = (
        "_body",
        "_exchange",
        "_is_stream",
        "_num_interim",
        "_reader",
        "_start",
        "frame_end",
        "has_ended",
        "head",
        "is_broken",
        "last_piece_ns",
    )

    def __init__(self, exchange: Exchange) -> None:
        self.head: ResponseHead | None = None
        self.has_ended = False
        """The answer has ended, well or not; the tail of the response may follow."""
        self.is_broken = False
        """What came is no HTTP, so that nothing more can be made of the connection."""
        self.last_piece_ns: int | None = None
        """When the last piece came, None before any."""
        self._exchange = exchange
        self._reader = AnswerReader(exchange)
        self._body: Body | None = None
        self._start = b""
        """The head as far as it came; afterwards the beginning of a refusal."""
        self._num_interim = 0
        self._is_stream = False
        self.frame_end = b""
        """How a piece ends that may be read later, being neither the end of the answer nor of the response; empty
        while none may."""

    @property
    def is_complete(self) -> bool:
        """The response has ended by its framing, and the connection can carry another one."""
        head, body = self.head, self._body
        return head is not None and body is not None and head.keeps_alive and body.is_over and not body.has_excess

    @property
    def awaits_tail(self) -> bool:
        """The answer has ended, and the connection can be used again if the rest of its response comes."""
        head, body = self.head, self._body
        if head is None or body is None or self.is_broken or not head.keeps_alive or head.framing == "close":
            return False
        return self.has_ended and not body.is_over

    @property
    def has_begun(self) -> bool:
        """Whether any byte has come."""
        return self.last_piece_ns is not None

    @property
    def redirect(self) -> str | None:
        """Where the server sends the client instead of answering, if it does."""
        return self.head.fields.get("location") if self.head is not None and self.head.status in REDIRECTS else None

    def read(self, pieces: list[bytes], stamps_ns: Sequence[int]) -> None:
        """Read what came next, one piece or more, and when each came."""
        if self._exchange.raw is not None:
            self._exchange.raw.extend(pieces)
        self.last_piece_ns = stamps_ns[-1]
        if self.is_broken:
            return
        try:
            self._read_pieces(pieces, stamps_ns)
        except (HeadError, BodyError) as error:
            self._break(str(error))
        streams = self._is_stream and not self.has_ended and isinstance(self._body, ChunkedBody)
        self.frame_end = FRAME_END if streams else b""

    def fail(self, kind: ErrorKind, text: str) -> None:
        """Give the answer up, unless what came has already ended it; a refusal stays one, however little came of it."""
        if self.has_ended:
            return
        if self.head is not None and self.head.status != 200:
            self._end_refusal()
        else:
            self._end(kind, text)

    def close(self, reason: str) -> None:
        """The connection has ended, and all that came has been read: decide what that makes of the answer."""
        if not self.has_ended and self.head is not None and self.head.framing == "close":
            self._end_body()
        elif self.has_begun:
            self.fail("truncated", f"{reason} in the middle of the answer")
        else:
            self.fail("connect", f"{reason} before it answered")

    def _read_pieces(self, pieces: list[bytes], stamps_ns: Sequence[int]) -> None:
        exchange, at = self._exchange, 0
        while at < len(pieces):
            template = self._find_template()
            num_known = 0
            if template is not None:
                num_known, num_frames, num_coalesced = template.count_matches(pieces, at)
                exchange.arrivals_ns.extend(stamps_ns[at : at + num_known])
                exchange.num_frames += num_frames
                exchange.num_coalesced += num_coalesced
                at += num_known
            if not num_known:
                self._read_piece(pieces[at], stamps_ns[at])
                at += 1

    def _find_template(self) -> FrameTemplate | None:
        body = self._body
        if self.has_ended or not isinstance(body, ChunkedBody) or not body.expects_chunk:
            return None
        return self._reader.template

    def _read_piece(self, piece: bytes, stamp_ns: int) -> None:
        if self._body is None:
            piece = self._read_head(piece)
        if self._body is None:
            return
        payload = self._body.feed(piece)
        if payload and not self.has_ended:
            if self._exchange.first_piece_ns is None:
                self._exchange.first_piece_ns = stamp_ns
            self._read_payload(payload, stamp_ns)
        if self._body.is_over and not self.has_ended:
            self._end_body()

    def _read_head(self, piece: bytes) -> bytes:
        """Take the head, interim ones too; returns what of the body followed it."""
        num_searched = len(self._start)
        self._start += piece
        while end := find_head_end(self._start, num_searched):
            head, self._start, num_searched = parse_head(self._start[:end]), self._start[end:], 0
            if not head.is_interim:
                rest, self._start = self._start, b""
                self._take_head(head)
                return rest
            self._num_interim += 1
            if head.status == 101:
                raise HeadError("the server switched protocols, which nobody asked for")
            if self._num_interim > MAX_INTERIM:
                raise HeadError(f"more than {MAX_INTERIM} interim heads came before the answer")
        return b""

    def _take_head(self, head: ResponseHead) -> None:
        self.head = head
        self._is_stream = head.status == 200 and head.content_type == "text/event-stream"
        self._exchange.note_head(head.status, head.fields)
        if head.status == 200 and not self._is_stream:
            self._end("malformed", f"the answer is {head.content_type or 'of no type'}, no event stream")
        elif self.redirect is not None:
            self.has_ended = True
        self._body = make_body(head)

    def _read_payload(self, payload: bytes, stamp_ns: int) -> None:
        if self._is_stream:
            self.has_ended = self._reader.read(payload, stamp_ns)
            return
        self._start += payload[: MAX_REFUSAL_BYTES - len(self._start)]
        if len(self._start) == MAX_REFUSAL_BYTES:
            self._end_refusal()

    def _end_body(self) -> None:
        self.has_ended = True
        if self._is_stream:
            self._reader.end()
        else:
            self._end_refusal()

    def _end_refusal(self) -> None:
        self._end("status", f"HTTP {self._exchange.http_status}: {self._start.decode(errors='replace')}")

    def _end(self, kind: ErrorKind, text: str) -> None:
        self.has_ended = True
        self._exchange.fail(kind, text)

    def _break(self, text: str) -> None:
        """Nothing more can be read of the connection; an answer that had ended before stands."""
        self.is_broken = True
        self.fail("malformed", text)
