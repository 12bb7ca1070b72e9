"""The memory that the processes of a gateway share: the ledger, and how late each of their event loops ran."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

from erhpc.gateway.histogram import Histogram
from erhpc.gateway.ledger import Ledger
from erhpc.gateway.metrics import name_ledger_cells
from erhpc.plan.specs import Endpoint
from erhpc.results.telemetry import INTERVAL_S, KEEP_S, TimedValues

LAG_VALUES = round(KEEP_S / INTERVAL_S)


class LoopLagRing(TimedValues):
    """Lags of one process in shared memory; each is counted in a histogram too."""

    def __init__(self, memory: Any, histogram: Histogram) -> None:
        super().__init__(LAG_VALUES, memory=memory)
        self._histogram = histogram

    def add(self, time_s: float, value: float) -> None:
        """See `TimedValues.add`."""
        super().add(time_s, value)
        self._histogram.add(round(value * 1e9))


class Shared:
    """Memory for `num_workers` processes that pass requests on, and one that watches over them.

    `is_alone`: there is but one, which does both. `descriptor` is that of the memory in the process that made it;
    None makes new memory.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        num_workers: int,
        is_alone: bool = False,
        descriptor: int | None = None,
    ) -> None:
        self._cells = name_ledger_cells(endpoints)
        self._num_workers = num_workers
        self._num_rows = 1 if is_alone else num_workers + 1
        self._ledger_bytes = Ledger.size_bytes(len(self._cells), self._num_rows)
        self._lag_bytes = TimedValues.size_bytes(LAG_VALUES)
        size_bytes = self._ledger_bytes + num_workers * self._lag_bytes
        self.descriptor = descriptor
        self._memory: Any
        if is_alone:
            self._memory = memoryview(bytearray(size_bytes))
            return
        if self.descriptor is None:
            self.descriptor = os.memfd_create("erhpc-gateway")
            os.truncate(self.descriptor, size_bytes)
        self._memory = memoryview(mmap.mmap(self.descriptor, size_bytes))

    @property
    def overseer_row(self) -> int:
        """The row of the process that watches over the others."""
        return self._num_rows - 1

    def ledger(self, row: int) -> Ledger:
        """The ledger, for the process that writes `row`."""
        return Ledger(self._cells, num_rows=self._num_rows, row=row, memory=self._memory[: self._ledger_bytes])

    def lag_memory(self, row: int) -> Any:
        """Where the process `row` keeps its lags."""
        begin = self._ledger_bytes + row * self._lag_bytes
        return self._memory[begin : begin + self._lag_bytes]

    def lags(self) -> list[TimedValues]:
        """The lags of all processes that pass requests on."""
        return [TimedValues(LAG_VALUES, memory=self.lag_memory(row)) for row in range(self._num_workers)]
