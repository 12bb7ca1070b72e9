"""Fills in what a plan leaves open: `{run}`, `{tmp}`, `{addressN}` of node N, `{portN}` at offset N of the band."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PLACEHOLDER = re.compile(r"\{(?:(run|tmp)|address(\d+)|port(\d+))\}")


@dataclass(frozen=True)
class Bindings:
    """What is known once the nodes are there."""

    run: str
    tmp: str
    addresses: Sequence[str]
    base_port: int

    def fill(self, text: str) -> str:
        """Replace every placeholder of `text`; other braces stay as they are."""
        return _PLACEHOLDER.sub(self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        name, node, offset = match.groups()
        if name is not None:
            return self.run if name == "run" else self.tmp
        return self.addresses[int(node)] if node is not None else str(self.base_port + int(offset))
