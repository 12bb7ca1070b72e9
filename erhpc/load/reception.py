"""One response as it comes in: keeps every piece with its stamp, and reads them when the answer may have ended.

While tokens stream, a piece costs two appends and a look at its end. Taking framing and JSON apart is put off until
a piece looks like the last one, so that reading one answer delays no other answer's stamps for long.
"""

from __future__ import annotations

from array import array

from erhpc.load.answer import AnswerReader
from erhpc.load.body import Body, BodyError, ChunkedBody, make_body
from erhpc.load.exchange import Exchange
from erhpc.load.head import HeadError, ResponseHead, find_head_end, parse_head
from erhpc.load.template import FrameTemplate
from erhpc.results.record import ErrorKind

LAST_CHUNK = b"0\r\n\r\n"
DONE = b"[DONE]"
LOOK_BYTES = 64 * 1024
"""Unread bytes at which an answer is read in between: 1 ms of work, and a bound on memory."""
MAX_REFUSAL_BYTES = 4096
"""How much of an error body is kept for the record."""
REDIRECTS = (301, 302, 307, 308)


class Reception:
    """Takes the pieces of one response and writes what they say into `exchange`.

    The answer ends before the response does: `[DONE]` comes in one chunk, the last chunk after it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.head: ResponseHead | None = None
        self.has_ended = False
        """The answer has ended, well or not; the tail of the response may follow."""
        self.is_broken = False
        """What came is no HTTP, so that nothing more can be made of the connection."""
        self.last_piece_ns: int | None = None
        """When the last piece that was read came."""
        self._exchange = exchange
        self._reader = AnswerReader(exchange)
        self._body: Body | None = None
        self._start = b""
        """The head as far as it came; afterwards the beginning of a refusal."""
        self._pieces: list[bytes] = []
        self._stamps_ns = array("q")
        self._unread_bytes = 0
        self._is_streaming = False

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
    def newest_ns(self) -> int | None:
        """When the last piece came, None before any."""
        return self._stamps_ns[-1] if self._stamps_ns else self.last_piece_ns

    @property
    def has_begun(self) -> bool:
        """Whether any byte has come."""
        return self.last_piece_ns is not None or bool(self._pieces)

    @property
    def redirect(self) -> str | None:
        """Where the server sends the client instead of answering, if it does."""
        return self.head.fields.get("location") if self.head is not None and self.head.status in REDIRECTS else None

    def take(self, piece: bytes, stamp_ns: int) -> bool:
        """Keep what came at `stamp_ns`; True if the answer may have ended, so that `read` is worth its time."""
        self._pieces.append(piece)
        self._stamps_ns.append(stamp_ns)
        self._unread_bytes += len(piece)
        return piece[-5:] == LAST_CHUNK or DONE in piece or not self._is_streaming or self._unread_bytes > LOOK_BYTES

    def read(self) -> None:
        """Read what was kept since the last time."""
        pieces, stamps_ns = self._pieces, self._stamps_ns
        self._pieces, self._stamps_ns, self._unread_bytes = [], array("q"), 0
        if self._exchange.raw is not None:
            self._exchange.raw.extend(pieces)
        try:
            self._read_pieces(pieces, stamps_ns)
        except (HeadError, BodyError) as error:
            self.is_broken = True
            self._end("malformed", str(error))
        self.last_piece_ns = stamps_ns[-1] if stamps_ns else self.last_piece_ns
        self._is_streaming = not self.has_ended and self._is_stream()

    def close(self, reason: str) -> None:
        """The connection has ended: read the rest and decide what that makes of the answer."""
        self.read()
        if self.has_ended:
            return
        if self.head is None:
            self._end("connect", f"{reason} before the head of the response")
        elif self.head.framing == "close" and not self.head.is_interim:
            self._end_body()
        else:
            self._end("truncated", f"{reason} in the middle of the answer")

    def _read_pieces(self, pieces: list[bytes], stamps_ns: array[int]) -> None:
        template, num_known, note_arrival = self._find_template(), 0, self._exchange.arrivals_ns.append
        for piece, stamp_ns in zip(pieces, stamps_ns, strict=True):
            if template is not None and template.matches(piece):
                note_arrival(stamp_ns)
                num_known += 1
            else:
                self._read_piece(piece, stamp_ns)
                template = self._find_template()
        self._exchange.num_frames += num_known

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
        self._start += piece
        while end := find_head_end(self._start):
            head, self._start = parse_head(self._start[:end]), self._start[end:]
            if head.status == 101:
                raise HeadError("the server switched protocols, which nobody asked for")
            if not head.is_interim:
                self.head, self._body = head, make_body(head)
                self._note_head(head)
                rest, self._start = self._start, b""
                return rest
        return b""

    def _note_head(self, head: ResponseHead) -> None:
        self._exchange.http_status = head.status
        self._exchange.expert = head.fields.get("x-erhpc-expert")
        self._exchange.replica = head.fields.get("x-erhpc-replica")
        if head.status == 200 and not self._is_stream():
            self._end("malformed", f"the answer is {head.content_type or 'of no type'}, no event stream")

    def _is_stream(self) -> bool:
        return self.head is not None and self.head.status == 200 and self.head.content_type == "text/event-stream"

    def _read_payload(self, payload: bytes, stamp_ns: int) -> None:
        if not self._is_stream():
            self._start = (self._start + payload)[:MAX_REFUSAL_BYTES]
        elif self._reader.read(payload, stamp_ns):
            self.has_ended = True

    def _end_body(self) -> None:
        self.has_ended = True
        if self._is_stream():
            self._reader.end()
        elif self.redirect is None:
            text = self._start.decode(errors="replace")
            self._exchange.fail("status", f"HTTP {self._exchange.http_status}: {text}")

    def _end(self, kind: ErrorKind, text: str) -> None:
        self.has_ended = True
        self._exchange.fail(kind, text)
