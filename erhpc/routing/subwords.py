"""Splits texts into the subwords of a language model's tokenizer: the tokens that an embedding has vectors of.

A home of `tokenizers`, which is imported only where a tokenizer is made: other classifiers serve without it. This
module knows no vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import copy
from itertools import pairwise
from typing import Any
from unicodedata import is_normalized

from erhpc.errors import InputError

MAX_REMEMBERED = 1 << 16
"""Most words whose subwords are kept; then all are forgotten. A word takes some 200 bytes."""
MAX_REMEMBERED_CHARS = 32
"""Longest word that is kept: text from outside must not decide how much memory that takes."""

# As in `features`, halves of surrogate pairs are no characters. Case is the tokenizer's business.
_find_parts = re.compile(r"\w+|[^\w\s\ud800-\udfff]+").findall
_MARKS = ("\u2581", "\u0120")
"""A space in the names of subwords: of SentencePiece, and of tokenizers of bytes."""
_is_byte = re.compile(r"<0x[0-9A-F]{2}>").fullmatch
"""How tokenizers with byte fallback name the bytes of a character that they do not know."""


class Subwords:
    """Numbers of the subwords of a text. Made from the content of a tokenizer.json.

    Each word and each run of punctuation is split as it would be after a space: the tokenizer, which takes 2.5 ms for
    1,000 words, then only sees those that have not come lately. Special tokens, and single bytes of
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
        mark = (self._tokenizer.encode(self._lead + "a", add_special_tokens=False).tokens or [""])[0][:1]
        self._begins = {number for name, number in names.items() if mark in _MARKS and name.startswith(mark)}
        """Subwords that stand at the begin of a word, where that can be told."""
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
        parts, remembered = _find_parts(text), self._remembered
        new = self._split_all(dict.fromkeys([part for part in parts if part not in remembered]))
        found: list[int] = []
        for part in parts:
            found += remembered[part] if part in remembered else new[part]
        if new:
            self._remember(new)
        return found

    def _remember(self, new: dict[str, list[int]]) -> None:
        kept = [item for item in new.items() if len(item[0]) <= MAX_REMEMBERED_CHARS][: self._max_remembered]
        if len(self._remembered) + len(kept) > self._max_remembered:
            self._remembered.clear()
        self._remembered.update(kept)

    def _split_all(self, parts: Iterable[str]) -> dict[str, list[int]]:
        """The subwords of each of `parts`, which differ: of words together, for a call takes longer than a word."""
        words = (
            [part for part in parts if part.isalnum() and (part.isascii() or is_normalized("NFKC", part))]
            if self._begins
            else []
        )
        split = self._split_together(words) if len(words) > 1 else {}
        for part in parts:
            if part not in split:
                split[part] = self._leave_out(self._encode(self._lead + part))
        return split

    def _split_together(self, words: list[str]) -> dict[str, list[int]]:
        """The subwords of each word, split as one text; none if the words cannot be told apart in it.

        Letters and digits make no space, so no word has more than one subword that begins with one. If each has one,
        no subword lies across two words, and only then is one word split otherwise than it is by itself.
        """
        numbers = self._encode(self._lead + " ".join(words))
        begins = self._begins
        cuts = [place for place, number in enumerate(numbers) if number in begins]
        if len(cuts) != len(words) or cuts[0]:
            return {}
        pieces = [numbers[begin:end] for begin, end in pairwise([*cuts, len(numbers)])]
        if not self._left_out.isdisjoint(numbers):
            pieces = [self._leave_out(piece) for piece in pieces]
        return dict(zip(words, pieces, strict=True))

    def _leave_out(self, numbers: list[int]) -> list[int]:
        return [number for number in numbers if number not in self._left_out]

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
