"""The replicas behind the gateway: how loaded each is, and whether it is live.

Pure state; it knows no HTTP. What is written here is what policies see.
"""

from __future__ import annotations

from collections.abc import Sequence

from erhpc.plan.specs import Endpoint


class Replica:
    """One replica. It counts as live until a request finds it unreachable."""

    __slots__ = ("endpoint", "expert", "in_flight", "live")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.expert = endpoint.expert
        self.in_flight = 0
        self.live = True

    @property
    def name(self) -> str:
        """Name of the replica."""
        return self.endpoint.replica


def find_missing_experts(replicas: Sequence[Replica]) -> list[str]:
    """Experts without a live replica, in order."""
    live = {replica.expert for replica in replicas if replica.live}
    return list(dict.fromkeys(replica.expert for replica in replicas if replica.expert not in live))
