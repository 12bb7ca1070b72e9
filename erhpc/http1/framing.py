"""Where the body of a response ends, told from its bytes as they pass, without taking it apart. Pure.

Source: RFC 9112, sections 6 and 7. It is stricter than `body`: whoever passes bytes on must not pass on what others
could read in another way.
"""

from __future__ import annotations

import functools
from typing import Protocol

from erhpc.http1.body import MAX_LINE_BYTES, BodyError, parse_size
from erhpc.http1.head import ResponseHead

MAX_FILL_BYTES = 64 * 1024
"""Longest chunk that is filled up to its end."""

# Tokens are of few lengths, and looking one up is cheaper than checking its digits.
_size_of = functools.lru_cache(maxsize=4096)(parse_size)


class Framing(Protocol):
    """Follows the bytes of one body."""

    @property
    def is_over(self) -> bool:
        """Whether the body has ended by its framing."""

    def feed(self, data: bytes) -> int:
        """Take the bytes that came next; returns how many of them belong to the body. Raises BodyError."""


class ChunkedFraming:
    """Transfer-Encoding: chunked."""

    __slots__ = ("_is_in_trailer", "_line", "is_over", "missing_bytes")

    def __init__(self) -> None:
        self.is_over = False
        self.missing_bytes = 0
        """Of the chunk that has begun, the end of its line included."""
        self._line = b""
        """The beginning of a line that is not complete."""
        self._is_in_trailer = False

    @property
    def is_between_chunks(self) -> bool:
        """Whether a chunk may begin with the next byte."""
        return not (self.missing_bytes or self._line or self._is_in_trailer)

    def feed(self, data: bytes) -> int:
        """See `Framing.feed`."""
        text, self._line = self._line + data if self._line else data, b""
        at, num_bytes = self.missing_bytes, len(text)
        if 2 <= at <= num_bytes:
            _check_line_end(text, at)
        while at < num_bytes:
            line_end = text.find(b"\r\n", at)
            if line_end < 0:
                return self._keep_line(text[at:], len(data))
            if self._is_in_trailer:
                self.is_over = line_end == at
                at = line_end + 2
                if self.is_over:
                    self.missing_bytes = 0
                    return len(data) - (num_bytes - at)
            elif size := _size_of(text[at:line_end]):
                at = line_end + 2 + size + 2
                if at <= num_bytes:
                    _check_line_end(text, at)
            else:
                self._is_in_trailer = True
                at = line_end + 2
        self.missing_bytes = at - num_bytes
        return len(data)

    def complete(self) -> bytes | None:
        """What ends the chunk that has begun, filled up with line feeds, so that one more can follow; None if nothing.

        For a body whose bytes have been passed on as they came, and that has broken off.
        """
        line, missing_bytes, ending = self._line, self.missing_bytes, b""
        if line:
            try:
                missing_bytes = _size_of(line.removesuffix(b"\r")) + 2
            except BodyError:
                return None
            ending = b"\n" if line.endswith(b"\r") else b"\r\n"
        if self._is_in_trailer or missing_bytes > MAX_FILL_BYTES or (line and missing_bytes == 2):
            return None
        return ending + b"\n" * (missing_bytes - 2) + b"\r\n"[max(2 - missing_bytes, 0) :]

    def _keep_line(self, line: bytes, num_bytes: int) -> int:
        if len(line) > MAX_LINE_BYTES:
            raise BodyError(f"a line of the chunked framing is longer than {MAX_LINE_BYTES} bytes")
        self._line, self.missing_bytes = line, 0
        return num_bytes


class LengthFraming:
    """Content-Length."""

    __slots__ = ("is_over", "missing_bytes")

    def __init__(self, length_bytes: int) -> None:
        self.missing_bytes = length_bytes
        self.is_over = not length_bytes

    def feed(self, data: bytes) -> int:
        """See `Framing.feed`."""
        taken = min(len(data), self.missing_bytes)
        self.missing_bytes -= taken
        self.is_over = not self.missing_bytes
        return taken


class OpenFraming:
    """No framing: the body lasts until the connection ends."""

    __slots__ = ()

    is_over = False

    def feed(self, data: bytes) -> int:
        """See `Framing.feed`."""
        return len(data)


def make_framing(head: ResponseHead) -> ChunkedFraming | LengthFraming | OpenFraming:
    """What follows the body after `head`."""
    if head.framing == "chunked":
        return ChunkedFraming()
    return LengthFraming(head.length_bytes) if head.framing == "length" else OpenFraming()


def _check_line_end(text: bytes, at: int) -> None:
    if text[at - 2 : at] != b"\r\n":
        raise BodyError(f"a chunk is longer than it says: {text[at - 2 : at + 38]!r} follows it")
