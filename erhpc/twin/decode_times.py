"""How long pure decode steps take, as straight lines: what a jump over many of them is computed from.

Steps in which the same sequences decode differ only in how many tokens they attend to, and of those the time of a
step is made of straight pieces: the KV cache is read at a constant rate, and where a host hides behind the GPU, the
longer of the two counts. The pieces are found by asking the model of step times, so that any model can be jumped
over; one whose times bend everywhere is found out, and stepped singly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from erhpc.twin.step_time import Batch, StepTime

TOLERANCE = 1e-12
"""Relative deviation up to which a time lies on a line: some rounding errors of a sum of ten terms."""
_MOST_PIECES = 8


class Piece(NamedTuple):
    """step_s = intercept_s + slope_s * context, for contexts up to and including `end_tokens`."""

    end_tokens: int
    intercept_s: float
    slope_s: float


class DecodeTimes:
    """The pieces for any number of decoding sequences of one model of step times, each found once.

    It is a model of step times itself, the one it was made of: simulations that are given it in its place find no piece
    twice.
    """

    def __init__(self, step_time: StepTime, max_context_tokens: int) -> None:
        """`max_context_tokens`: what all sequences together attend to at most; beyond it steps are taken singly."""
        self._step_time = step_time
        self._max_context_tokens = max_context_tokens
        self._pieces: dict[int, tuple[Piece, ...]] = {}

    def step_s(self, batch: Batch) -> float:
        """See `StepTime.step_s`."""
        return self._step_time.step_s(batch)

    def find_piece(self, num_seqs: int, context_tokens: int) -> Piece:
        """The piece that such a step lies on; on one that bends it is this step alone."""
        pieces = self._pieces.get(num_seqs)
        if pieces is None:
            pieces = self._pieces[num_seqs] = self._trace(num_seqs)
        for piece in pieces:
            if context_tokens <= piece.end_tokens:
                return piece
        return Piece(context_tokens, self._ask(num_seqs, context_tokens), 0.0)

    def _ask(self, num_seqs: int, context_tokens: int) -> float:
        return self._step_time.step_s(
            Batch(num_decode_seqs=num_seqs, decode_context_tokens=context_tokens, num_logit_rows=num_seqs)
        )

    def _trace(self, num_seqs: int) -> tuple[Piece, ...]:
        low, high = 0, max(self._max_context_tokens, 4)
        ends = (self._ask(num_seqs, low), self._ask(num_seqs, high))
        pieces: list[Piece] = []
        for piece in self._split(num_seqs, low, ends[0], high, ends[1]):
            if pieces and _is_close(_at(pieces[-1], piece.end_tokens), _at(piece, piece.end_tokens)):
                pieces[-1] = pieces[-1]._replace(end_tokens=piece.end_tokens)
            else:
                pieces.append(piece)
            if len(pieces) > _MOST_PIECES:
                return ()
        return tuple(pieces)

    def _split(self, num_seqs: int, low: int, low_s: float, high: int, high_s: float) -> Iterator[Piece]:
        """Pieces from `low` to `high`, where the time is a convex function of the context."""
        slope = (high_s - low_s) / (high - low)
        chord = Piece(high, low_s - slope * low, slope)
        if high - low == 1:
            yield chord
            return
        middle = (low + high) // 2
        middle_s = self._ask(num_seqs, middle)
        if _is_close(middle_s, _at(chord, middle)):
            yield chord
            return
        kink = self._guess_kink(num_seqs, low, low_s, high, high_s)
        if kink is not None:
            middle, middle_s = kink, self._ask(num_seqs, kink)
        yield from self._split(num_seqs, low, low_s, middle, middle_s)
        if kink is not None and middle + 1 < high:
            # The lines meet between two whole numbers of tokens: a piece of its own.
            next_s = self._ask(num_seqs, middle + 1)
            yield from self._split(num_seqs, middle, middle_s, middle + 1, next_s)
            middle, middle_s = middle + 1, next_s
        yield from self._split(num_seqs, middle, middle_s, high, high_s)

    def _guess_kink(self, num_seqs: int, low: int, low_s: float, high: int, high_s: float) -> int | None:
        """The last context before the lines at both ends meet; None if they are the same or do not meet."""
        near = max((high - low) // 1024, 1)
        rise = (self._ask(num_seqs, low + near) - low_s) / near
        fall = (high_s - self._ask(num_seqs, high - near)) / near
        if _is_close(rise, fall):
            return None
        meeting = int((low_s - rise * low - high_s + fall * high) / (fall - rise))
        return meeting if low < meeting < high else None


def _at(piece: Piece, context_tokens: int) -> float:
    return piece.intercept_s + piece.slope_s * context_tokens


def _is_close(one_s: float, other_s: float) -> bool:
    return abs(one_s - other_s) <= TOLERANCE * max(abs(one_s), abs(other_s))
