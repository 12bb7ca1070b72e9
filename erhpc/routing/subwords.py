"""Splits texts into the subwords of a language model's tokenizer: the tokens that an embedding has vectors of.

A home of `tokenizers`, which is imported only where a tokenizer is made: other classifiers serve without it. This
module knows no vectors.
"""

from __future__ import annotations

import re
from copy import copy
from typing import Any

from erhpc.errors import InputError

MAX_REMEMBERED = 1 << 16
"""Most words whose subwords are kept; then all are forgotten. A word takes some 200 bytes."""
MAX_REMEMBERED_CHARS = 32
"""Longest word that is kept: text from outside must not decide how much memory that takes."""

# As in `features`, halves of surrogate pairs are no characters. Case is the tokenizer's business.
_find_parts = re.compile(r"\w+|[^\w\s\ud800-\udfff]+").findall
_is_byte = re.compile(r"<0x[0-9A-F]{2}>").fullmatch
"""How tokenizers with byte fallback name the bytes of a character that they do not know."""


class Subwords:
    """Numbers of the subwords of a text. Made from the content of a tokenizer.json.

    Each word and each run of punctuation is split by itself, as it would be after a space: the tokenizer, which takes
    2.5 ms for 1,000 words, then only sees words that have not come lately. Special tokens, and single bytes of
    characters that the tokenizer does not know, mean nothing and are left out.
    """

    def __init__(self, content: bytes, *, max_remembered: int = MAX_REMEMBERED) -> None:
        """Parse `content`; of so many words at most the subwords are kept.

        Raises:
            InputError: it is no tokenizer.
        """
        self.content = content
        self._tokenizer = _parse(content)
        names: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.num_base: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        """Subwords of the model itself, without those that were added to it."""
        self._size = 1 + max(names.values(), default=-1)
        added = self._tokenizer.get_added_tokens_decoder()
        self._left_out = {number for number, token in added.items() if token.special}
        self._left_out |= {number for name, number in names.items() if _is_byte(name)}
        self._lead = self._find_lead()
        self._max_remembered = max_remembered
        self._remembered: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Subwords are numbered from 0 to one below this."""
        return self._size

    @property
    def num_remembered(self) -> int:
        """Words whose subwords are kept now."""
        return len(self._remembered)

    def copy(self) -> Subwords:
        """The same, which from now on remembers words by itself."""
        other = copy(self)
        other._remembered = self._remembered.copy()
        return other

    def find(self, text: str) -> list[int]:
        """Numbers of the subwords of `text`, in order, with repetitions."""
        remembered = self._remembered
        found: list[int] = []
        for part in _find_parts(text):
            numbers = remembered.get(part)
            if numbers is None:
                numbers = self._split(part)
            found += numbers
        return found

    def _split(self, part: str) -> list[int]:
        numbers = [number for number in self._encode(self._lead + part) if number not in self._left_out]
        if len(part) <= MAX_REMEMBERED_CHARS:
            if len(self._remembered) >= self._max_remembered:
                self._remembered.clear()
            self._remembered[part] = numbers
        return numbers

    def _find_lead(self) -> str:
        """What makes the tokenizer see a word as it does after a space: nothing, or the space itself."""
        alone = self._encode("a")
        return "" if self._encode("a a") == [*alone, *alone] else " "

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _parse(content: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    # The library raises plain exceptions.
    except Exception as error:
        raise InputError(
            f"classifier: its tokenizer is none of the library `tokenizers`: {error}. Give a tokenizer.json as a "
            "model's repository holds it."
        ) from error
    # Files saved by a training script may cut and fill what they encode.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
