"""A sentence embedding without a neural network: a tokenizer and a vector for each of its subwords, read from a folder.

A text's embedding is the sum of the vectors of its subwords, as in model2vec and wordllama, whose files are read; of a
transformer its input embeddings are taken. This module knows neither clusters nor how subwords are weighed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from erhpc.errors import InputError
from erhpc.routing.subwords import Subwords
from erhpc.routing.tensors import Tensor, find_tensors

TOKENIZER_FILE = "tokenizer.json"
TENSOR_FILES = "*.safetensors"
TABLES = (
    "embeddings",  # model2vec
    "embedding.weight",  # wordllama, StaticEmbedding of sentence-transformers
    "embed_tokens.weight",  # Llama, Mistral, Qwen, Gemma
    "word_embeddings.weight",  # BERT and its kin
    "wte.weight",  # GPT-2
    "shared.weight",  # T5
)
"""How tensors of a vector per subword are called; names may be longer to the left, the first of this list is taken."""
MAPPING = "mapping"
"""model2vec: which row each subword has, where several share one."""
WEIGHTS = "weights"
"""model2vec: how much each subword weighs."""

_ALLOWED = (
    f"Give a directory with {TOKENIZER_FILE} and {TENSOR_FILES} as model2vec, wordllama or a transformer has them."
)


@dataclass(frozen=True, eq=False)
class Embedding:
    """A vector for each subword."""

    subwords: Subwords
    vectors: npt.NDArray[np.float32]
    """(subwords, dimensions)"""
    sha256: str
    """Of the tokenizer's file and the vectors."""


def check_embedding(folder: Path) -> None:
    """Raise InputError if `folder` has no tokenizer or no table of vectors; neither is read."""
    if not (folder / TOKENIZER_FILE).is_file():
        raise InputError(f"embedding={folder} has no {TOKENIZER_FILE}. {_ALLOWED}")
    _find_table(folder)


def read_embedding(folder: Path) -> Embedding:
    """Read the embedding in `folder`.

    Raises:
        InputError: a file is missing or malformed, or tokenizer and vectors do not belong together.
    """
    check_embedding(folder)
    content = (folder / TOKENIZER_FILE).read_bytes()
    subwords = Subwords(content)
    vectors = _read_vectors(folder)
    if len(vectors) < subwords.num_base:
        raise InputError(
            f"embedding={folder}: the tokenizer knows {subwords.num_base} subwords, the table has {len(vectors)} "
            f"vectors. They do not belong together. {_ALLOWED}"
        )
    digest = hashlib.sha256(content)
    digest.update(np.ascontiguousarray(vectors).data)
    return Embedding(subwords, _fit_rows(vectors, len(subwords)), digest.hexdigest())


def _find_table(folder: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The table of vectors, and all tensors by name."""
    paths = sorted(folder.glob(TENSOR_FILES))
    if not paths:
        raise InputError(f"embedding={folder} has no {TENSOR_FILES}. {_ALLOWED}")
    tensors = find_tensors(paths)
    for table in TABLES:
        names = [name for name in tensors if name == table or name.endswith(f".{table}")]
        if names:
            return tensors[min(names, key=lambda name: (len(name), name))], tensors
    raise InputError(
        f"embedding={folder}: no tensor is called {', '.join(TABLES)}, but {_list_some(tensors)}. {_ALLOWED}"
    )


def _read_vectors(folder: Path) -> npt.NDArray[np.float32]:
    table, tensors = _find_table(folder)
    vectors: npt.NDArray[Any] = table.read()
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"embedding={folder}: its table is {vectors.shape}, not (subwords, dimensions). {_ALLOWED}")
    if MAPPING in tensors:
        rows = tensors[MAPPING].read()
        if rows.ndim != 1 or not ((rows >= 0) & (rows < len(vectors))).all():
            raise InputError(f"embedding={folder}: its mapping names rows that the table has not. {_ALLOWED}")
        vectors = vectors[rows]
    if WEIGHTS in tensors:
        weights = tensors[WEIGHTS].read()
        if weights.shape != (len(vectors),):
            raise InputError(
                f"embedding={folder}: {weights.shape} weights for {len(vectors)} subwords; one each is needed. "
                f"{_ALLOWED}"
            )
        vectors = vectors * weights[:, None]
    if not np.isfinite(vectors).all():
        raise InputError(f"embedding={folder}: its table has numbers that are not finite. {_ALLOWED}")
    return vectors.astype(np.float32, copy=False)


def _fit_rows(vectors: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """A vector for each of `size` subwords: tables are padded, and what was added to a tokenizer may have no vector."""
    fitted = np.zeros((size, vectors.shape[1]), dtype=np.float32)
    fitted[: len(vectors)] = vectors[:size]
    return fitted


def _list_some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
