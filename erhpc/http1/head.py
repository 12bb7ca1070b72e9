"""The head of an HTTP/1.1 response, and what it says about the body that follows. Pure.

Source: RFC 9112 (HTTP/1.1), sections 2 to 6; it reads as a client must and refuses what could be read in two ways.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

Framing = Literal["chunked", "length", "close"]
MAX_HEAD_BYTES = 64 * 1024
_PROTOCOL = b"HTTP/1."
_HEAD_END = re.compile(rb"\n\r?\n")  # a lone LF ends a line too (RFC 9112, section 2.2)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n]*)?")
# Values are stripped afterwards: a pattern that strips takes quadratic time for a value of many blanks.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\x00]*)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_BODILESS = (204, 304)


class HeadError(Exception):
    """Bytes that are no head of an HTTP/1.1 response."""


@dataclass(frozen=True, slots=True, eq=False)  # told apart by identity: what is made of one can be kept for it
class ResponseHead:
    """Status and fields (names in lower case; fields given twice joined by commas)."""

    status: int
    fields: dict[str, str]
    framing: Framing
    length_bytes: int
    """Of the body, where framing is `length`."""
    keeps_alive: bool

    @property
    def is_interim(self) -> bool:
        """1xx: the real response follows."""
        return 100 <= self.status < 200

    @property
    def content_type(self) -> str:
        """Media type without parameters, in lower case; empty if none is given."""
        return self.fields.get("content-type", "").partition(";")[0].strip().lower()


def find_head_end(data: bytes, searched_bytes: int = 0) -> int:
    """Where the body begins in `data`, 0 if the head is not complete; it is known not to end in `searched_bytes`.

    Raises:
        HeadError: it is too long, or something else than HTTP/1 begins there.
    """
    if not data.startswith(_PROTOCOL[: len(data)]):
        raise HeadError(f"no HTTP/1.1 status line: {data[:80]!r}")
    found = _HEAD_END.search(data, max(0, searched_bytes - 2))
    if (found.end() if found else len(data)) > MAX_HEAD_BYTES:
        raise HeadError(f"the head of the response is longer than {MAX_HEAD_BYTES} bytes")
    return found.end() if found else 0


@functools.lru_cache(maxsize=64)  # a server says the same every time, but for a date or an id
def parse_head(data: bytes) -> ResponseHead:
    """Read a complete head, its empty line included.

    Raises:
        HeadError: it is malformed, or its framing is ambiguous.
    """
    first, *lines = data.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise HeadError(f"no HTTP/1.1 status line: {first[:80]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise HeadError(f"no header field: {line[:80]!r}")
        name, value = field[1].decode().lower(), field[2].strip(b" \t").decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return _describe(int(status_line[2]), status_line[1] == b"1", fields)


def _describe(status: int, is_http_1_1: bool, fields: dict[str, str]) -> ResponseHead:
    options = {option.strip() for option in fields.get("connection", "").lower().split(",")}
    keeps_alive = "close" not in options and (is_http_1_1 or "keep-alive" in options)
    if 100 <= status < 200 or status in _BODILESS:
        return ResponseHead(status, fields, "length", 0, keeps_alive)
    if "transfer-encoding" in fields:
        coding = fields["transfer-encoding"]
        if coding.lower() != "chunked":
            raise HeadError(f"transfer-encoding {coding!r} is not known; allowed: chunked")
        # A length beside it would be a second opinion on where the body ends, and HTTP/1.0 knows no chunks: chunked
        # wins, the connection ends (RFC 9112, sections 6.1 and 6.3).
        keeps_alive = keeps_alive and is_http_1_1 and "content-length" not in fields
        return ResponseHead(status, fields, "chunked", 0, keeps_alive)
    if "content-length" in fields:
        lengths = {length.strip() for length in fields["content-length"].split(",")}
        length = lengths.pop()
        if lengths or not _LENGTH.fullmatch(length):
            raise HeadError(f"content-length {fields['content-length'][:80]!r} is no single number")
        return ResponseHead(status, fields, "length", int(length), keeps_alive)
    return ResponseHead(status, fields, "close", 0, keeps_alive=False)
