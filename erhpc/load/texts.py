"""Writes synthetic prompts of about a given number of tokens, from words and a random stream.

It knows no tokenizer: a token is taken as four characters, which holds within a third for English.
"""

from __future__ import annotations

from numpy.random import Generator

from erhpc.plan.protocol import CHARS_PER_TOKEN

VOCABULARY = (
    "answer between cause detail energy figure global happen island journey kernel letter matter number object people "
    "quality river signal travel union value water yellow account before change develop every follow ground history "
    "image join know large measure north order present question record system thread under vector weight example year "
    "zero about build color define effect first group high index just keep list model node open plan queue rate"
)
WORDS = VOCABULARY.split()


def write_text(tokens: int, random: Generator) -> str:
    """A text of `tokens` * CHARS_PER_TOKEN characters, at least one; the same generator state gives the same text."""
    chars = max(tokens, 1) * CHARS_PER_TOKEN
    # The shortest word and its blank take five characters, so this many words always suffice.
    picks = random.integers(len(WORDS), size=chars // 5 + 1).tolist()
    return " ".join([WORDS[pick] for pick in picks])[:chars]
