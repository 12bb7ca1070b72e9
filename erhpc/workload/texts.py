"""Writes synthetic texts of a given number of tokens, from words and a random stream.

It encodes nothing: texts are joined from words whose tokens are known beforehand (`words`), or a token is taken as
four characters. Longer texts are joined from phrases made beforehand, which costs a tenth of joining words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.random import Generator, default_rng

from erhpc.plan.protocol import CHARS_PER_TOKEN
from erhpc.workload.words import Words

VOCABULARY = (
    "answer between cause detail energy figure global happen island journey kernel letter matter number object people "
    "quality river signal travel union value water yellow account before change develop every follow ground history "
    "image join know large measure north order present question record system thread under vector weight example year "
    "zero about build color define effect first group high index just keep list model node open plan queue rate"
)
WORDS = tuple(f" {word}" for word in VOCABULARY.split())
PHRASE_WORDS = 16
NUM_PHRASES = 1024


class TextWriter(Protocol):
    """Writes texts; the same state of the generator gives the same text."""

    def write(self, tokens: int, random: Generator) -> str:
        """A text of `tokens` tokens; ValueError if there are none."""


class RoughWriter:
    """Writes without a tokenizer: CHARS_PER_TOKEN characters are a token, which holds within a third for English."""

    def __init__(self) -> None:
        self._phrases = _make_phrases(WORDS)
        self._shortest = min(map(len, self._phrases))

    def write(self, tokens: int, random: Generator) -> str:
        """A text of `tokens` * CHARS_PER_TOKEN characters."""
        chars = _require_some(tokens) * CHARS_PER_TOKEN
        # One more character, because the blank before the first word is dropped.
        num_phrases = chars // self._shortest + 1
        return "".join(_pick(self._phrases, num_phrases, random))[1 : chars + 1]


class ExactWriter:
    """Writes texts that a tokenizer encodes to exactly the tokens asked for, special tokens not counted.

    What an engine puts around a text adds to them: a token that begins every prompt (BOS), a chat template, the
    blank lines between the turns of a completions prompt. A text neither begins nor ends with a blank, and is one
    token longer only where a template joins its first word to what stands before it.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._phrases = _make_phrases(words.pieces)

    def write(self, tokens: int, random: Generator) -> str:
        """A text of exactly `tokens` tokens."""
        num_phrases, num_pieces = divmod(_require_some(tokens) - 1, PHRASE_WORDS)
        starts = self._words.starts
        return "".join(
            [
                starts[int(random.integers(len(starts)))],
                *_pick(self._words.pieces, num_pieces, random),
                *_pick(self._phrases, num_phrases, random),
            ]
        )


def _make_phrases(pieces: Sequence[str]) -> list[str]:
    """The same pieces give the same phrases."""
    random = default_rng(0)
    return ["".join(_pick(pieces, PHRASE_WORDS, random)) for _ in range(NUM_PHRASES)]


def _pick(pieces: Sequence[str], count: int, random: Generator) -> list[str]:
    # A quarter of the time that random.integers takes.
    picks = (random.random(count) * len(pieces)).astype(np.intp)
    return [pieces[pick] for pick in picks.tolist()]


def _require_some(tokens: int) -> int:
    if tokens < 1:
        raise ValueError(f"A text of {tokens} tokens cannot be written. Ask for at least 1.")
    return tokens
