"""The counts of all processes of a gateway, in one block of memory: a row per process, a cell per count.

A process writes to its own row only, so nothing needs a lock; what is true of the gateway is the sum over the rows. A
process that dies leaves its row as it was, and the next one in its place goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

CELL_BYTES = 8
Key = tuple[str, ...]
"""Names a cell: what is counted, and its labels."""


class Count:
    """One count of this process: `value` is its own part, `total` that of all processes."""

    __slots__ = ("_cells", "_column", "_index")

    def __init__(self, cells: Any, column: Any, index: int) -> None:
        self._cells = cells
        self._column = column
        self._index = index

    @property
    def value(self) -> int:
        """What this process has counted."""
        return int(self._cells[self._index])

    @value.setter
    def value(self, value: int) -> None:
        self._cells[self._index] = value

    @property
    def total(self) -> int:
        """What all processes have counted."""
        column = self._column
        return int(column[0]) if len(column) == 1 else sum(column)

    def add(self, number: int = 1) -> None:
        """Count `number` more."""
        self._cells[self._index] += number


class Ledger:
    """`keys` names the cells; every process of a gateway must be given the same ones in the same order.

    `memory` is zeroed memory of `size_bytes` that all processes see (None: a block of this process alone), `row` the
    row that this process writes.
    """

    def __init__(self, keys: Iterable[Key], *, num_rows: int = 1, row: int = 0, memory: Any = None) -> None:
        self._index = {key: index for index, key in enumerate(keys)}
        self.num_rows = num_rows
        self.row = row
        size_bytes = self.size_bytes(len(self._index), num_rows)
        block = memoryview(bytearray(size_bytes) if memory is None else memory).cast("B")[:size_bytes]
        self._cells = block.cast("q")

    @staticmethod
    def size_bytes(num_cells: int, num_rows: int) -> int:
        """How much memory a ledger takes."""
        return num_cells * num_rows * CELL_BYTES

    def count(self, key: Key, *, row: int | None = None) -> Count:
        """The count `key` of this process, or of the one that writes `row`. Raises KeyError."""
        index, width = self._index[key], len(self._index)
        start = (self.row if row is None else row) * width
        return Count(self._cells[start : start + width], self._cells[index::width], index)

    def total(self, key: Key) -> int:
        """What all processes have counted under `key`."""
        return sum(self._cells[self._index[key] :: len(self._index)])

    def by_row(self, key: Key) -> Sequence[int]:
        """What each process has counted under `key`."""
        return list(self._cells[self._index[key] :: len(self._index)])

    def keys(self, name: str) -> list[Key]:
        """The cells that begin with `name`."""
        return [key for key in self._index if key[0] == name]
