"""How long a look for new pieces may wait after the last one: under load, so that one look finds many. Pure.

Each look costs as much as some reads, and the kernel stamps a piece while nobody looks. It only tells pieces of one
connection apart if they are read one by one, so a rest is kept well below the gaps between them.
"""

from __future__ import annotations

REST_SHARE = 1 / 8
"""Of the gap between two pieces of an answer. Few pieces come nearer to each other than that; those get one stamp,
that of the later, and are off by no more than the rest."""
LONGEST_REST_MS = 4
LOOK_SHARE, MIN_LOOK_NS, MAX_LOOK_NS = 1 / 8, 1_000_000, 8_000_000
"""Of that gap, how long what was read is taken apart before the next look, and the bounds of that."""
BUSY_NS = 8_000_000
"""Looks nearer to each other than this are load."""
FALL, RISE = 1 / 4, 1 / 64
"""How far the gap that is reckoned with follows a shorter and a longer one: it keeps to the short ones."""


class Pace:
    """Knows the gaps and the looks of late."""

    def __init__(self) -> None:
        self._gap_ns = 0.0
        self._looked_ns = 0

    def note_gap(self, gap_ns: int) -> None:
        """Reckon with a gap between two pieces of one answer."""
        change_ns = gap_ns - self._gap_ns
        self._gap_ns += change_ns * (FALL if change_ns < 0 else RISE)

    def rest_ms(self, now_ns: int, *, is_full: bool, is_empty: bool) -> int:
        """Milliseconds (whole: event loops know no others) until the next look, after one that ended at `now_ns`.

        0: look as soon as something comes. `is_full`: more had come than one look takes; `is_empty`: nothing had.
        """
        since_ns, self._looked_ns = now_ns - self._looked_ns, now_ns
        if is_full or is_empty or since_ns > BUSY_NS:
            return 0
        return min(LONGEST_REST_MS, int(self._gap_ns * REST_SHARE / 1e6))

    @property
    def look_ns(self) -> int:
        """How long what was read may be taken apart before more must be read.

        Pieces that come to a connection while nobody reads it get one stamp: looks must come well within a gap.
        """
        return round(min(max(self._gap_ns * LOOK_SHARE, MIN_LOOK_NS), MAX_LOOK_NS))
