"""From a text to the tokens that a classifier counts, by the rule of its reading. Nothing here is fitted.

This module knows no vocabulary and no weights, and imports nothing heavy: the gateway uses it for every prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from erhpc.errors import InputError

NUMBER = "#NUMBER"
"""The one token of all numbers; no word is written so, for words are lower-case and begin with a letter."""

_find_words = re.compile(r"\w\w+").findall
"""Finds the same words as scikit-learn's default `(?u)\\b\\w\\w+\\b`: a greedy run of letters ends at a boundary."""
# Halves of surrogate pairs are no characters: they could not be written to the vocabulary's file.
_find_tokens = re.compile(r"\w+|[^\w\s\ud800-\udfff]+").findall


def words(text: str) -> list[str]:
    """Split a text into its lower-case words of two characters or more, in order, with repetitions."""
    return _find_words(text.lower())


_TO_WORDS = bytes(ord(chr(code).lower() if chr(code).isalnum() or chr(code) == "_" else " ") for code in range(128))
_TO_WORDS += bytes(range(128, 256))
"""What becomes of each ASCII character where words are told apart by blanks."""


def words_to_look_up(text: str) -> list[str]:
    """The same as `words`, but single characters may be among them, which no vocabulary of words has.

    ASCII texts, most of them, take a third of the time.
    """
    # Bytes are translated faster than characters.
    return text.encode("ascii").translate(_TO_WORDS).decode("ascii").split() if text.isascii() else words(text)


def words_and_marks(text: str) -> list[str]:
    """Split a text into its lower-case words, numbers (all one token) and runs of punctuation, in order."""
    return [NUMBER if token[0].isdigit() else token for token in _find_tokens(text.lower())]


def is_number(word: str) -> bool:
    """Whether c-BTM replaces `word` by its token for numbers: it begins with a digit of any script."""
    return word[0].isdigit()


def content_words(text: str, stop_words: Collection[str]) -> list[str]:
    """The words c-BTM is fitted on (Gururangan et al., 2023, arXiv:2303.14177): neither stop words nor numbers."""
    return [word for word in words(text) if word not in stop_words and not is_number(word)]


TOKENS: dict[str, Callable[[str], list[str]]] = {"content": words_to_look_up, "all": words_and_marks}
"""How a served text is split, by the name an artefact gives it. `content` needs no filter: what c-BTM leaves out is in
no vocabulary."""
SUBWORDS = "subwords"
"""Not words but the subwords of a tokenizer, which the artefact holds (`erhpc.routing.subwords`)."""
READINGS = (*TOKENS, SUBWORDS)
COUNTS = ("plain", "log")
"""How much a token weighs that occurs n times: n, or 1 + ln(n), the sub-linear term frequency of Manning, Raghavan and
Schütze (Introduction to Information Retrieval, 2008, section 6.4.1)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text is read: which tokens are counted, and how a repeated one counts. By default as in c-BTM.

    Raises:
        InputError: either is unknown.
    """

    tokens: str = "content"
    """One of READINGS."""
    counts: str = "plain"
    """One of COUNTS."""

    def __post_init__(self) -> None:
        for name, known in (("tokens", READINGS), ("counts", COUNTS)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"classifier: it reads {name} as {getattr(self, name)!r}, this erhpc knows {', '.join(known)}. "
                    "Fit it again with this erhpc."
                )
