"""The body of an HTTP/1.1 response, piece by piece: takes the framing away and says when the body has ended. Pure.

Source: RFC 9112, sections 6 and 7. One class per framing, all with `feed` and `is_over`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal, Protocol

from erhpc.http1.head import ResponseHead

MAX_LINE_BYTES = 16 * 1024
"""Longest chunk header or trailer line."""
MAX_INFLATED_BYTES = 16 * 1024 * 1024
"""Most that one piece may inflate to: 64 kB of zeros would otherwise fill the memory."""
HEX_DIGITS = b"0123456789abcdefABCDEF"


class BodyError(Exception):
    """Bytes that break the framing of the body, or its compression."""


class Body(Protocol):
    """Turns the bytes of the connection into the bytes of the body."""

    @property
    def is_over(self) -> bool:
        """Whether the body has ended by its framing; nothing more belongs to it."""

    @property
    def has_excess(self) -> bool:
        """Whether bytes came after the end: the connection is of no further use."""

    def feed(self, data: bytes) -> bytes:
        """What of the body `data` brings. Raises BodyError."""


class ChunkedBody:
    """Transfer-Encoding: chunked."""

    __slots__ = ("_line", "_missing_bytes", "_rest", "has_excess", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self.has_excess = False
        self._rest = b""
        """The beginning of a line that is not complete."""
        self._missing_bytes = 0
        """Of the data of the chunk that has begun."""
        self._line: Literal["size", "closing", "trailer"] = "size"
        """What the next line is."""

    @property
    def expects_chunk(self) -> bool:
        """Whether a chunk begins with the next byte."""
        return self._line == "size" and not self._missing_bytes and not self._rest and not self.is_over

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        payloads, at = _whole_chunks(data) if self.expects_chunk else ([], 0)
        if at < len(data):
            payloads += self._pieces_of(self._rest + data[at:])
        return b"".join(payloads)

    def _pieces_of(self, data: bytes) -> Iterator[bytes]:
        self._rest = b""
        at = 0
        while at < len(data) and not self.is_over:
            if self._missing_bytes:
                piece = data[at : at + self._missing_bytes]
                self._missing_bytes -= len(piece)
                at += len(piece)
                yield piece
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > MAX_LINE_BYTES:
                    raise BodyError(f"a line of the chunked framing is longer than {MAX_LINE_BYTES} bytes")
                return
            self._take_line(data[at:end].removesuffix(b"\r"))
            at = end + 1
        self.has_excess = self.has_excess or at < len(data)

    def _take_line(self, line: bytes) -> None:
        if self._line == "trailer":
            self.is_over = not line
        elif self._line == "size":
            self._missing_bytes = parse_size(line)
            self._line = "closing" if self._missing_bytes else "trailer"
        elif line:
            raise BodyError(f"a chunk is longer than it says: {line[:40]!r} follows it")
        else:
            self._line = "size"


class LengthBody:
    """Content-Length."""

    def __init__(self, length_bytes: int) -> None:
        self._missing_bytes = length_bytes
        self.is_over = not length_bytes
        self.has_excess = False

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        taken = data[: self._missing_bytes]
        self.has_excess = self.has_excess or len(data) > len(taken)
        self._missing_bytes -= len(taken)
        self.is_over = not self._missing_bytes
        return taken


class OpenBody:
    """No framing: the body lasts until the connection ends."""

    is_over = False
    has_excess = False

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        return data


class InflatedBody:
    """A body that was compressed although nobody asked for it."""

    def __init__(self, inner: Body) -> None:
        self._inner = inner
        # 32 + MAX_WBITS: zlib tells gzip and zlib apart by their headers.
        self._inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)

    @property
    def is_over(self) -> bool:
        """See `Body.is_over`."""
        return self._inner.is_over

    @property
    def has_excess(self) -> bool:
        """See `Body.has_excess`."""
        return self._inner.has_excess

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        try:
            inflated = self._inflater.decompress(self._inner.feed(data), MAX_INFLATED_BYTES)
        except zlib.error as error:
            raise BodyError(f"the answer is compressed and cannot be inflated: {error}") from error
        if self._inflater.unconsumed_tail:
            raise BodyError(f"a piece of the answer inflates to more than {MAX_INFLATED_BYTES} bytes")
        return inflated


def make_body(head: ResponseHead) -> Body:
    """The reader of the body that follows `head`. Raises BodyError for a compression that is not known."""
    body: Body
    if head.framing == "chunked":
        body = ChunkedBody()
    else:
        body = LengthBody(head.length_bytes) if head.framing == "length" else OpenBody()
    coding = head.fields.get("content-encoding", "identity").strip().lower()
    if coding == "identity":
        return body
    if coding in ("gzip", "deflate", "x-gzip"):
        return InflatedBody(body)
    raise BodyError(f"content-encoding {coding!r} was not asked for; allowed: identity, gzip, deflate")


def parse_size(line: bytes) -> int:
    """The size in a chunk header, without its line end. Raises BodyError."""
    digits = line.partition(b";")[0].strip(b" \t")
    if not 0 < len(digits) <= 16 or digits.strip(HEX_DIGITS):
        raise BodyError(f"no chunk size: {line[:40]!r}")
    return int(digits, 16)


def _whole_chunks(data: bytes) -> tuple[list[bytes], int]:
    """Payloads of the whole chunks that `data` begins with, as servers that stream send them, and where they end."""
    payloads: list[bytes] = []
    at = 0
    while (header_end := data.find(b"\r\n", at, at + 18)) > at:
        header = data[at:header_end]
        size = 0 if header.strip(HEX_DIGITS) else int(header, 16)
        end = header_end + 2 + size
        if not size or data[end : end + 2] != b"\r\n":
            break
        payloads.append(data[header_end + 2 : end])
        at = end + 2
    return payloads, at
