"""Which port every process of a run uses: a deterministic map, moved as a whole to the first band that is free.

Probing a port and binding it minutes later loses races, so a run owns a band of consecutive ports below the
ephemeral range. Bands are numbered; a job starts at the one its id points to, and moves on when one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erhpc.errors import PlacementError

RENDEZVOUS_PORT = 0
GATEWAY_PORT = 1
STATUS_PORT = 2
"""Where the gateway tells of itself."""
FIRST_REPLICA_PORT = 3
CANDIDATE_BANDS = 16
ENGINE_PORTS = 16
"""Ports a vLLM server takes for itself (VLLM_PORT and those after it)."""


@dataclass(frozen=True)
class PortMap:
    """`width` consecutive ports per band, within [first, last]."""

    first: int
    last: int
    width: int

    @property
    def num_bands(self) -> int:
        """How many bands fit."""
        return (self.last - self.first + 1) // self.width

    def base(self, band: int) -> int:
        """The first port of a band; bands wrap around."""
        return self.first + (band % self.num_bands) * self.width

    def bands_for(self, job_number: int) -> Iterator[int]:
        """The bands a job may take, its own first: those that all its nodes try, in the same order."""
        return ((job_number + step) % self.num_bands for step in range(min(self.num_bands, CANDIDATE_BANDS)))


def build_port_map(ports: list[int], *, num_replicas: int, engine_ports: int) -> PortMap:
    """Lay out the ports of a run.

    Raises:
        PlacementError: the range is too small for even one band.
    """
    width = FIRST_REPLICA_PORT + num_replicas * (1 + engine_ports)
    if ports[1] - ports[0] + 1 < width:
        raise PlacementError(
            f"cluster.ports={ports} holds {ports[1] - ports[0] + 1} ports and this run needs {width} "
            f"({num_replicas} replicas). Widen it below the nodes' ephemeral range, e.g. [20000,32000]."
        )
    return PortMap(ports[0], ports[1], width)


def replica_port(index: int, engine_ports: int) -> int:
    """Offset of a replica's HTTP port within the band; its engine ports follow it."""
    return FIRST_REPLICA_PORT + index * (1 + engine_ports)
