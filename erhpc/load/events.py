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

    def __init__(self) -> None:
        self._rest = b""
        self._ended_in_cr = False

    @property
    def expects_event(self) -> bool:
        """Whether an event begins with the next byte."""
        return not self._rest and not self._ended_in_cr

    def feed(self, data: bytes) -> list[bytes]:
        """Data of the events that `data` completes, several lines joined by newlines. Raises EventTooLong."""
        if self._ended_in_cr or b"\r" in data:
            data = self._with_newlines(data)
        if self._rest:
            data = self._rest + data
        *blocks, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return [found for block in blocks if (found := _data_of(block)) is not None]

    def finish(self) -> bytes | None:
        """Data of the event that the end of the stream left without its blank line, None if there is none."""
        return _data_of(self._rest)

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
    lines = block.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]
    return b"\n".join(data) if data else None
