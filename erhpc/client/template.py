"""Recognises frames that differ from one already read in nothing but their text: most frames of a stream. Pure.

Such a frame says what the first one said (tokens, once), so it need not be decoded again: its bytes before and after
the text are compared, and the text must be a JSON string that ends where the first one did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import compress, repeat
from operator import and_

from erhpc.http1.body import HEX_DIGITS

_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content)": ?"')
# RFC 8259, section 7. Escapes of surrogates are left to the decoder: they are right in pairs only.
_STRING = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4})++')
MAX_SIZES = 4096
MAX_KNOWN = 16_384
MAX_KNOWN_BYTES = 64
"""Longest text that is remembered; tokens are shorter."""

Matches = tuple[int, int, int]
"""Pieces that match, frames in them, and how many of the pieces hold more than one frame."""


class FrameTemplate:
    """The bytes around the text of one frame, sent as one chunk that holds exactly one event."""

    __slots__ = ("_after", "_before", "_openings", "_sizes")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._sizes: dict[bytes, int] = {}
        """Chunk headers seen, by their bytes: looking one up is cheaper than checking its digits."""
        self._openings = _Openings(before)

    @classmethod
    def from_event(cls, event: bytes) -> FrameTemplate | None:
        """The template of an event's data; None if it has no text, or one that must be decoded.

        `event` must have been decoded to a frame that carries tokens once: whatever stands in one of its texts,
        as long as it is not empty, the frame carries them once.
        """
        place = _TEXT.search(event)
        text = _STRING.match(event, place.end()) if place else None
        if place is None or text is None or event[text.end() : text.end() + 1] != b'"':
            return None
        return cls(b"data: " + event[: place.end()], event[text.end() :] + b"\n\n\r\n")

    def count_matches(self, pieces: Sequence[bytes], start: int) -> Matches:
        """How many of `pieces`, from `start` on without a break, differ from the first frame in their text only.

        Each of these is whole chunks, each of which holds exactly one event.
        """
        # Most pieces are one frame each, which loops in C find out; the others are read in between, in their order.
        # The last one is seldom like the others.
        rest = pieces[start:]
        num_frames = num_coalesced = num_odd = 0
        for at in (*self._find_odd(rest[:-1]), len(rest) - 1) if rest else ():
            num_here = self._count_frames(rest[at])
            if not num_here:
                return at, num_frames + at - num_odd, num_coalesced
            num_odd += 1
            num_frames += num_here
            num_coalesced += num_here > 1
        return len(rest), num_frames + len(rest) - num_odd, num_coalesced

    def _find_odd(self, pieces: Sequence[bytes]) -> Sequence[int]:
        """Which of `pieces` are anything else than one chunk with one matching frame, as far as loops in C can tell."""
        openings = list(map(self._openings.__getitem__, map(len, pieces)))
        fits = list(
            map(and_, map(bytes.startswith, pieces, openings), map(bytes.endswith, pieces, repeat(self._after)))
        )
        num_after = len(self._after)
        odd = [] if all(fits) else [at for at, is_fit in enumerate(fits) if not is_fit]
        pairs = zip(pieces, openings, strict=True)
        texts = [piece[len(opening) : -num_after] for piece, opening in (compress(pairs, fits) if odd else pairs)]
        if _known_strings.issuperset(texts) or all(map(_is_known_string, texts)):
            return odd
        return range(len(pieces))

    def _count_frames(self, piece: bytes) -> int:
        """How many matching frames `piece` is, each a whole chunk; 0 if there is anything else in it."""
        before, after, size_of = self._before, self._after, self._sizes.get
        num_before, num_after = len(before), len(after)
        num_bytes, num_frames, chunk_end = len(piece), 0, 0
        while chunk_end < num_bytes:
            header_end = piece.find(b"\r\n", chunk_end, chunk_end + 18)
            if header_end <= chunk_end:
                return 0
            header = piece[chunk_end:header_end]
            event_start = header_end + 2
            chunk_end = event_start + (size_of(header) or self._note_size(header)) + 2
            text_start, text_end = event_start + num_before, chunk_end - num_after
            if text_start >= text_end or not piece.startswith(before, event_start):
                return 0
            if not piece.startswith(after, text_end):  # nor where the chunk ends behind the piece
                return 0
            if not _is_known_string(piece[text_start:text_end]):
                return 0
            num_frames += 1
        return num_frames

    def _note_size(self, header: bytes) -> int:
        """The size in a chunk header; -1 if it is more than digits, which `ChunkedBody` must judge."""
        if header.strip(HEX_DIGITS):
            return -1
        size = int(header, 16)
        if len(self._sizes) < MAX_SIZES:
            self._sizes[header] = size
        return size


def _is_string(text: bytes) -> bool:
    """Whether `text`, which is not empty, may stand between the quotes of a JSON string."""
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
    return _STRING.fullmatch(text) is not None


# The tokens of a vocabulary come again and again, whoever sends them.
_known_strings: set[bytes] = set()


def _is_known_string(text: bytes) -> bool:
    """As `_is_string`; short ones are remembered."""
    if text in _known_strings:
        return True
    is_string = _is_string(text)
    if is_string and len(text) <= MAX_KNOWN_BYTES and len(_known_strings) < MAX_KNOWN:
        _known_strings.add(text)
    return is_string


class _Openings(dict[int, bytes]):
    """What precedes the text in a piece of one frame, by the length of the piece: chunk header and `before`."""

    def __init__(self, before: bytes) -> None:
        self._before = before

    def __missing__(self, num_bytes: int) -> bytes:
        """Written as servers write it, in lower case without leading zeros; longer than the piece if none fits."""
        opening = bytes(num_bytes + 1)
        for num_digits in range(1, len(b"%x" % num_bytes) + 1):
            header = b"%x" % max(num_bytes - num_digits - 4, 0)  # two line ends have 4 bytes
            if len(header) == num_digits:
                opening = header + b"\r\n" + self._before
        self[num_bytes] = opening
        return opening
