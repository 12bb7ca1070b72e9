"""Reads the tokenizer of a model from tokenizer.json: how many tokens a text has, and which texts tokens stand for.

It asks no network. `tokenizers` is imported only once a file is read, and nothing here runs while a level does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erhpc.errors import InputError

TOKENIZER_FILE = "tokenizer.json"


class FileTokenizer:
    """A tokenizer as a model's engine applies it to a text, without the special tokens around it."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self.source = source
        """Where it came from, for messages."""
        self.num_ids: int = tokenizer.get_vocab_size()

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_id: int) -> str:
        """Text of one token; may be empty, or no whole character."""
        return str(self._tokenizer.decode([token_id]))


def read_tokenizer(source: str) -> FileTokenizer:
    """Read the tokenizer.json that `source` is, or that lies in the folder `source`.

    Raises:
        InputError: there is no such file, or it is no tokenizer.
    """
    path = Path(source)
    if path.is_dir():
        path /= TOKENIZER_FILE
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"workload.tokenizer={source}: {path.absolute()} cannot be read: {error}. Give a tokenizer.json, or a "
            "folder that holds one, or null to take four characters as a token."
        ) from error
    return FileTokenizer(_parse(content, path), source)


def _parse(content: str, path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    # The library raises plain exceptions.
    except Exception as error:
        raise InputError(
            f"workload.tokenizer: {path} is no tokenizer of the library `tokenizers`: {error}. "
            "Give a tokenizer.json as a model's repository holds it."
        ) from error
    # Files saved by a training script may cut and fill what they encode; an engine does not.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
