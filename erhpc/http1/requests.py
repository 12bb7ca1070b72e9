"""The head of a plain HTTP/1.1 request with a body of known length. Pure.

It reads only what can be read in one way (RFC 9112, sections 2 to 6; RFC 9110, section 5): whatever else comes, be it
legal, is left to a complete server.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

MAX_HEAD_BYTES = 8 * 1024
_HEAD_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
# Fields are a token, a colon, and text without control characters. A name with a blank before the colon is no token.
# One pattern for the whole head: one for each field takes twice as long.
_HEAD = re.compile(_REQUEST_LINE.pattern + rb"\r\n((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t !-~\x80-\xff]*\r\n)+)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"content-encoding"})
"""Fields that change how the message is framed, or what the client waits for."""


@dataclass(frozen=True, slots=True, eq=False)
class RequestHead:
    """Method, target and fields (names in lower case) of a request whose body has `length_bytes`."""

    method: bytes
    target: bytes
    fields: dict[bytes, bytes]
    length_bytes: int

    def get(self, name: bytes) -> str | None:
        """The value of a field without blanks around it, None if it is not there; read as aiohttp reads it."""
        value = self.fields.get(name)
        return value.decode(errors="surrogateescape") if value is not None else None


def find_request_head(data: bytes | bytearray) -> int:
    """Where the body begins in `data`, 0 if the head is not complete."""
    end = data.find(_HEAD_END)
    return end + len(_HEAD_END) if end >= 0 else 0


def may_become_plain(data: bytes | bytearray) -> bool:
    """Whether a head that is not complete may still be plain; if not, nobody need wait for its end."""
    line, is_whole, _ = data.partition(b"\r\n")
    if is_whole and _REQUEST_LINE.fullmatch(line) is None:
        return False
    return data[:1].isupper() and data.count(b"\n") == data.count(b"\r\n")


@functools.lru_cache(maxsize=256)  # a client says the same every time, but for the length of its body
def parse_request_head(data: bytes) -> RequestHead | None:
    """Read a complete head, its empty line included; None if it is anything but plain."""
    found = _HEAD.fullmatch(data)
    if found is None:
        return None
    lines = found[3][:-2].split(b"\r\n")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip(b" \t")
    length = fields.get(b"content-length", b"")
    is_plain = len(fields) == len(lines) and fields.keys().isdisjoint(_NOT_PLAIN) and b"host" in fields
    if not is_plain or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    if _LENGTH.fullmatch(length) is None:
        return None
    return RequestHead(found[1], found[2], fields, int(length))
