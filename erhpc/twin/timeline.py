"""When the steps of simulated replicas ended, told from what each noted of its stretches (see `Replica.stretches`).

Steps are told one by one only where somebody asks for them: most who simulate ask for the first and the last token of
each request, and a level has many more steps than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

STRETCH = Struct("=4d")
"""Steps that follow each other: when they began, how many, seconds of the first, by how much each next one is longer.

Packed, as a level has as many as requests, and a tuple would take six times the memory.
"""


class Timeline:
    """The stretches of all replicas of a level, steps numbered from 1 per replica."""

    def __init__(self, stretches: Sequence[bytearray]) -> None:
        table = np.frombuffer(b"".join(stretches), dtype=np.float64).reshape(-1, 4)
        self._start_s, num_steps, self._step_s, self._growth_s = table.T
        # Steps counted on from replica to replica: how many there are up to the end of each stretch, before each
        # stretch, and before each replica.
        self._up_to = np.cumsum(num_steps.astype(np.int64))
        self._before = np.concatenate([[0], self._up_to])
        self._before_replica = self._before[np.cumsum([0, *(len(one) // STRETCH.size for one in stretches)])]

    def ends_s(self, replica: Integers | int, step: Integers) -> Floats:
        """When steps ended, seconds since the level began: `step` counts those of `replica`."""
        number = self._before_replica[replica] + step
        stretch = np.searchsorted(self._up_to, number)
        nth = number - self._before[stretch]
        ends_s: Floats = self._start_s[stretch] + nth * self._step_s[stretch]
        ends_s += nth * (nth - 1) // 2 * self._growth_s[stretch]
        return ends_s
