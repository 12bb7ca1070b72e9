"""Recognises frames that differ from one already read in nothing but their text: most frames of a stream. Pure.

Such a frame says what the first one said (one choice that carries tokens), so it need not be decoded again: its
bytes before and after the text are compared, and the text must be a JSON string that ends where the first one did.
"""

from __future__ import annotations

import re

from erhpc.load.body import parse_size

_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content)": ?"')
_ESCAPED = b'"\\' + bytes(range(0x20))
"""What needs an escape in a JSON string: with a quote or a backslash the text might end elsewhere (RFC 8259)."""
_PLAIN = re.compile(b"[^" + re.escape(_ESCAPED) + b"]+")
MAX_SIZES = 4096


class FrameTemplate:
    """The bytes around the text of one frame, sent as one chunk that holds exactly one event."""

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._num_before = len(before)
        self._num_after = len(after)
        self._sizes: dict[bytes, int] = {}
        """Chunk headers seen, by their bytes: looking one up is cheaper than checking its digits."""

    @classmethod
    def from_event(cls, event: bytes) -> FrameTemplate | None:
        """The template of an event's data; None if its text is not to be found without doubt.

        `event` must have been decoded to a frame of one choice that carries tokens in one text, and no usage.
        """
        places = list(_TEXT.finditer(event))
        if len(places) != 1:
            return None
        start = places[0].end()
        text = _PLAIN.match(event, start)
        if text is None or event[text.end() : text.end() + 1] != b'"':
            return None
        return cls(b"data: " + event[:start], event[text.end() :] + b"\n\n\r\n")

    def matches(self, chunk: bytes) -> bool:
        """Whether `chunk` is exactly one chunk, with one event, that differs from the first in its text only."""
        start = chunk.find(b"\r\n", 0, 18) + 2
        text_start, text_end = start + self._num_before, len(chunk) - self._num_after
        if start < 3 or text_end <= text_start or not chunk.startswith(self._before, start):
            return False
        text = chunk[text_start:text_end]
        if not chunk.endswith(self._after) or text.translate(None, _ESCAPED) != text:
            return False
        if self._size_of(chunk[: start - 2]) != len(chunk) - start - 2:
            return False
        return text.isascii() or _is_utf8(text)

    def _size_of(self, header: bytes) -> int:
        size = self._sizes.get(header)
        if size is None:
            size = parse_size(header)
            if len(self._sizes) < MAX_SIZES:
                self._sizes[header] = size
        return size


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
