"""Splits a stream of bytes into server-sent events, wherever the network cut it.

Source: the event stream format of the HTML standard (section 9.2, Server-sent events). It keeps only what the
OpenAI protocol uses, the data of each event; it does not know what the data means.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Longest event; a server that never ends one would fill the memory."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """An event grew over MAX_EVENT_BYTES without an end."""


class EventSplitter:
    """Takes the bytes of one answer piece by piece and gives back the data of each event that became complete."""

    __slots__ = ("_ended_in_cr", "_is_at_start", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        """The event that has begun: it grows in place, a long one comes in thousands of pieces."""
        self._ended_in_cr = False
        self._is_at_start = True

    @property
    def expects_event(self) -> bool:
        """Whether an event begins with the next byte."""
        return not self._rest and not self._ended_in_cr

    def feed(self, data: bytes) -> list[bytes]:
        """Data of the events that `data` completes, several lines joined by newlines. Raises EventTooLong."""
        if self._ended_in_cr or b"\r" in data:
            data = self._with_newlines(data)
        if self._rest:
            is_in_line = not (self._rest[-1] == 0x0A and data[:1] == b"\n")
            self._rest += data
            if is_in_line and b"\n\n" not in data:
                return self._wait()
            data = bytes(self._rest)
        *blocks, rest = data.split(b"\n\n")
        if rest or self._rest:
            self._rest = bytearray(rest)
        if blocks and self._is_at_start:
            self._is_at_start = False
            blocks[0] = blocks[0].removeprefix(_BYTE_ORDER_MARK)
        found = [event for block in blocks if (event := _data_of(block)) is not None]
        return found or self._wait()

    def finish(self) -> bytes | None:
        """Data of the event that the end of the stream left without its blank line, None if there is none."""
        rest = bytes(self._rest)
        return _data_of(rest.removeprefix(_BYTE_ORDER_MARK) if self._is_at_start else rest)

    def _wait(self) -> list[bytes]:
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return []

    def _with_newlines(self, data: bytes) -> bytes:
        """`data` with each CR LF and each CR as LF; a pair that the network cut in two counts once."""
        if self._ended_in_cr and data:
            data = data.removeprefix(b"\n")
            self._ended_in_cr = False
        self._ended_in_cr = self._ended_in_cr or data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data_of(block: bytes) -> bytes | None:
    """The data lines of one event, None if it has none (comments, other fields)."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = block.split(b"\n")
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]
    return b"\n".join(data) if data else None
