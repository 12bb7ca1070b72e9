"""From a text to its words, by the rules of c-BTM (Gururangan et al., 2023, arXiv:2303.14177).

This module knows no vocabulary and no weights, and imports nothing heavy: the gateway uses it for every prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_find_words = re.compile(r"\w\w+").findall
"""Finds the same words as scikit-learn's default `(?u)\\b\\w\\w+\\b`: a greedy run of letters ends at a boundary."""


def words(text: str) -> list[str]:
    """Split a text into its lower-case words of two characters or more, in order, with repetitions."""
    return _find_words(text.lower())


def is_number(word: str) -> bool:
    """Whether c-BTM replaces `word` by its token for numbers: it begins with a digit of any script."""
    return word[0].isdigit()


def content_words(text: str, stop_words: Collection[str]) -> list[str]:
    """The words a classifier is fitted on: neither stop words nor numbers."""
    return [word for word in words(text) if word not in stop_words and not is_number(word)]
