"""Finds words whose tokens stay their own when they are joined, so that texts of exact length need no encoding.

It knows a tokenizer only by what it needs of one, and writes no text of a request (`texts` does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from erhpc.errors import InputError

MAX_WORDS = 2048
"""Enough that two texts hardly ever begin with the same 16 tokens, the block of a prefix cache."""
MIN_WORDS = 32
"""With fewer words that follow a blank, other kinds of pieces are tried too."""
CHUNK_WORDS = 32
VERIFIED_TOKENS = 4096


class Tokenizer(Protocol):
    """What finding words needs of a tokenizer."""

    source: str
    num_ids: int

    def count(self, text: str) -> int:
        """Tokens of a text, special ones around it not counted."""

    def decode(self, token_id: int) -> str:
        """Text of one token."""


@dataclass(frozen=True, slots=True)
class Words:
    """One of `starts` and any number of `pieces` behind it, in any order, have one token each."""

    starts: tuple[str, ...]
    """They begin with no blank, which a chat template might strip."""
    pieces: tuple[str, ...]
    """They bring the blank before them."""


def find_words(tokenizer: Tokenizer) -> Words:
    """The words of a tokenizer, at most MAX_WORDS, most frequent first; checked by encoding joined ones.

    English words are preferred; a small or foreign vocabulary gives what it has, down to single characters.

    Raises:
        InputError: no pieces of the tokenizer keep their tokens when joined.
    """
    best: Words | None = None
    for candidates in (_list_words(tokenizer), _list_letters(tokenizer)):
        for blank in (" ", ""):
            words = _choose(tokenizer, candidates, blank)
            if words and len(words.pieces) >= MIN_WORDS:
                return words
            if words and (best is None or len(words.pieces) > len(best.pieces)):
                best = words
    if best is None:
        raise InputError(
            f"workload.tokenizer={tokenizer.source}: none of its tokens stay apart when joined, so texts of an exact "
            "length cannot be made of them. Set workload.tokenizer=null to take four characters as a token."
        )
    return best


def _list_words(tokenizer: Tokenizer) -> list[str]:
    """Lower-case English words of three letters or more, or what looks like them."""
    texts = _decode_all(tokenizer)
    return _take(text for text in texts if len(text) >= 3 and text.isascii() and text.islower())


def _list_letters(tokenizer: Tokenizer) -> list[str]:
    """Everything made of letters, in any script."""
    return _take(_decode_all(tokenizer))


def _decode_all(tokenizer: Tokenizer) -> Iterator[str]:
    texts = (tokenizer.decode(token_id).strip() for token_id in range(tokenizer.num_ids))
    return (text for text in texts if text.isalpha())


def _take(texts: Iterator[str]) -> list[str]:
    """The first different texts; twice as many as words are wanted, for not all will do."""
    found: dict[str, None] = {}
    for text in texts:
        found[text] = None
        if len(found) == 2 * MAX_WORDS:
            break
    return list(found)


def _choose(tokenizer: Tokenizer, candidates: Sequence[str], blank: str) -> Words | None:
    """The candidates that are one token at the beginning, and those that are one behind `blank`; None if too few."""
    starts = [text for text in candidates if tokenizer.count(text) == 1][:MAX_WORDS]
    # A text often stands behind a line break: of a chat template, or of a turn before it.
    line_break = tokenizer.count("\n")
    starts = [text for text in starts if tokenizer.count(f"\n{text}") == line_break + 1] or starts
    if not starts:
        return None
    pieces = [blank + text for text in candidates if tokenizer.count(starts[0] + blank + text) == 2][:MAX_WORDS]
    pieces = _keep_apart(tokenizer, starts[0], pieces)
    if not pieces:
        return None
    return Words(tuple(text for text in starts if tokenizer.count(text + pieces[0]) == 2), tuple(pieces))


def _keep_apart(tokenizer: Tokenizer, start: str, pieces: list[str]) -> list[str]:
    """The pieces that keep their tokens among each other; the same tokenizer gives the same ones."""
    random = np.random.default_rng(0)
    while pieces and not _are_apart(tokenizer, start, _shuffle(pieces, VERIFIED_TOKENS, random)):
        order = _shuffle(pieces, len(pieces), random)
        chunks = [order[first : first + CHUNK_WORDS] for first in range(0, len(order), CHUNK_WORDS)]
        kept = {piece for chunk in chunks if _are_apart(tokenizer, start, chunk) for piece in chunk}
        # Where only a few pairs merge, half the pieces have a quarter of them.
        kept = kept if len(kept) < len(pieces) else set(pieces[: len(pieces) // 2])
        pieces = [piece for piece in pieces if piece in kept]
    return pieces


def _shuffle(pieces: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    """`count` pieces in random order, each as often as the others."""
    repeated = np.resize(np.arange(len(pieces)), count)
    return [pieces[pick] for pick in random.permutation(repeated).tolist()]


def _are_apart(tokenizer: Tokenizer, start: str, pieces: Sequence[str]) -> bool:
    return tokenizer.count(start + "".join(pieces)) == 1 + len(pieces)
