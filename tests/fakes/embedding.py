"""Embeddings small enough to check by hand, in the files of real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

UNKNOWN = "[UNK]"
FRUIT = ("apple", "pear", "plum", "cherry", "quince", "grape")
ENGINES = ("engine", "piston", "valve", "gear", "crank", "clutch")
VECTORS = {
    **{word: (1.0, 0.1 * number, 0.02) for number, word in enumerate(FRUIT)},
    **{word: (0.1 * number, 1.0, -0.02) for number, word in enumerate(ENGINES)},
}
"""Fruit lies along the first axis, engines along the second."""


def make_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Lower-case WordPiece as of BERT: a word, or the pieces it has; any other is unknown."""
    vocabulary = {word: number for number, word in enumerate((UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([UNKNOWN])
    return tokenizer


def tokenizer_json(words: Sequence[str] = tuple(VECTORS)) -> bytes:
    return make_tokenizer(words).to_str().encode()


def write_embedding(folder: Path, vectors: Mapping[str, Sequence[float]] = VECTORS, table: str = "embeddings") -> Path:
    """Write a tokenizer of these words and their vectors as `folder`, which is returned."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(tokenizer_json(tuple(vectors)))
    rows = [[9.0] * len(next(iter(vectors.values()))), *vectors.values()]  # what no text is may have any vector
    save_file({table: np.array(rows, dtype=np.float32)}, folder / "model.safetensors")
    return folder
