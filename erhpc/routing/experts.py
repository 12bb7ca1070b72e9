"""An expert as the router sees it: its replicas, how loaded they are together, and which of them is next.

Pure: replica states and randomness are handed in. It does not know how an expert is chosen.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import Protocol

from erhpc.config import RouterConfig
from erhpc.routing.rules import Rule, Traits, make_rule


class ReplicaState(Protocol):
    """What is seen of a replica; read anew at each choice."""

    @property
    def name(self) -> str:
        """Name of the replica."""

    @property
    def expert(self) -> str:
        """Name of the expert the replica belongs to."""

    @property
    def in_flight(self) -> int:
        """Requests the replica is answering now."""

    @property
    def live(self) -> bool:
        """Whether requests may be sent to it."""


class NoLiveReplica(Exception):
    """No replica that may be chosen is live. `expert` is the one wanted; None: any expert would have done."""

    def __init__(self, expert: str | None) -> None:
        super().__init__(f"expert {expert!r} has no live replica" if expert else "no replica is live")
        self.expert = expert


class Expert:
    """One expert; `indices` say where its replicas stand among those of the whole router."""

    def __init__(self, name: str, replicas: Sequence[ReplicaState], indices: Sequence[int], rule: Rule) -> None:
        self.name = name
        self._replicas = replicas
        self._indices = indices
        self._rule = rule

    @property
    def live(self) -> bool:
        """Whether any of its replicas is live."""
        for replica in self._replicas:  # noqa: SIM110 - asked of every expert for every request: any() takes longer
            if replica.live:
                return True
        return False

    @property
    def in_flight(self) -> float:
        """Requests in flight per live replica, on average; 0 if none is live."""
        num_live = num_requests = 0
        for replica in self._replicas:
            if replica.live:
                num_live += 1
                num_requests += replica.in_flight
        return num_requests / num_live if num_live else 0.0

    def has_room(self, limit: int) -> bool:
        """Whether it is live and has fewer than `limit` requests in flight per live replica."""
        return self.live and self.in_flight < limit

    @property
    def num_live(self) -> int:
        """How many of its replicas are live."""
        return sum(replica.live for replica in self._replicas)

    def pick(self, traits: Traits, without: Container[int] = ()) -> int:
        """Index, among all replicas of the router, of the one for a request; none of `without`.

        Raises NoLiveReplica.
        """
        live = [
            number
            for number, replica in enumerate(self._replicas)
            if replica.live and self._indices[number] not in without
        ]
        if not live:
            raise NoLiveReplica(self.name)
        if len(live) == 1:  # most experts have one replica, and then nothing of the request need be read
            return self._indices[live[0]]
        return self._indices[self._rule.pick(live, traits)]


def group_by_expert(replicas: Sequence[ReplicaState], config: RouterConfig, seed: int) -> list[Expert]:
    """The experts of `replicas`, in the order in which they first appear, each with a rule of its own."""
    indices: dict[str, list[int]] = {}
    for index, replica in enumerate(replicas):
        indices.setdefault(replica.expert, []).append(index)
    return [_make_expert(name, replicas, held, config, seed) for name, held in indices.items()]


def _make_expert(
    name: str, replicas: Sequence[ReplicaState], indices: Sequence[int], config: RouterConfig, seed: int
) -> Expert:
    own = [replicas[index] for index in indices]
    # Experts draw independently of each other, or all of them would favour the same numbers at the same time.
    rule = make_rule(config.replica_policy, own, config, random.Random(f"{seed} {name}"))
    return Expert(name, own, indices, rule)
