"""Reads single tensors of safetensors files, also in bfloat16, which NumPy has not and the format's library refuses.

The format: 8 bytes with the length of the header, the header in JSON, the tensors' bytes, all little-endian
(https://huggingface.co/docs/safetensors). This module knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from erhpc.errors import InputError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""What the format allows."""
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32, see `Tensor.read`
    "I8": "|i1",
    "I32": "<i4",
    "I64": "<i8",
}
"""NumPy's name of each type that can be read."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    def read(self) -> npt.NDArray[Any]:
        """Its numbers, as float32 or, of integers, as int64.

        Raises:
            InputError: the file ends before them.
        """
        count = math.prod(self.shape)
        stored = np.fromfile(self.path, dtype=DTYPES[self.dtype], count=count, offset=self.offset)
        if len(stored) != count:
            raise InputError(f"{self.path} ends before one of its tensors does. Copy the file again.")
        if self.dtype == "BF16":
            stored = (stored.astype("<u4") << 16).view("<f4")
        return stored.reshape(self.shape).astype(np.int64 if self.dtype.startswith("I") else np.float32, copy=False)


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def find_tensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor in `paths` of a type that can be read, by its name; only headers are read.

    Raises:
        InputError: a file cannot be read or is no safetensors file.
    """
    return {name: tensor for path in paths for name, tensor in _read_header(path).items()}


def _read_header(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            content = file.read(min(length, _MAX_HEADER_BYTES))
        if len(content) != length:
            content = b""  # a header that the file does not hold is none
        header = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(
            f"{path} is no safetensors file: {error}. Copy it again, or give another directory."
        ) from error
    start = _LENGTH_BYTES + length
    return {
        name: Tensor(path, entry.dtype, entry.shape, start + entry.data_offsets[0])
        for name, entry in entries.items()
        if entry.dtype in DTYPES
    }
