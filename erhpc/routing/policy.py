"""The policies: rules that pick the replica for a text.

Pure: replica states, randomness and clock are handed in. It knows no HTTP, no model names and no features of a text.
A new policy is a class here and a line in `make_policy`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from erhpc.config import RouterConfig
from erhpc.errors import ConfigError


class ReplicaState(Protocol):
    """What a policy sees of a replica; read anew at each choice."""

    @property
    def expert(self) -> str:
        """Name of the expert the replica belongs to."""

    @property
    def in_flight(self) -> int:
        """Requests the replica is answering now."""

    @property
    def live(self) -> bool:
        """Whether requests may be sent to it."""


class ClusterFound(Protocol):
    """What a policy reads of a classification."""

    @property
    def cluster(self) -> int | None:
        """Number of the nearest cluster; None: the text has no known word."""


class TextClassifier(Protocol):
    """What a policy needs of a classifier; `erhpc.routing.classifier.Classifier` is one."""

    @property
    def num_clusters(self) -> int:
        """How many clusters there are, numbered from 0."""

    def classify(self, text: str) -> ClusterFound:
        """Find the cluster of `text`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes, and why."""

    replica: int
    """Index among the replicas the policy was built with."""
    expert: str
    cluster: int | None = None
    """Cluster of the text; None: it was not classified, or has no known word."""
    default_used: bool = False
    """The text has no known word and went to the default expert."""
    classify_ns: int | None = None
    """How long classification took, in nanoseconds; None: it was not needed."""


class NoLiveReplica(Exception):
    """No replica that may be chosen is live. `expert` is the one wanted; None: any expert would have done."""

    def __init__(self, expert: str | None) -> None:
        super().__init__(f"expert {expert!r} has no live replica" if expert else "no replica is live")
        self.expert = expert


class Policy(Protocol):
    """The rule that picks a replica for a text."""

    def choose(self, text: Callable[[], str]) -> Choice:
        """Pick a replica; `text` is called only by policies that read it. Raises NoLiveReplica."""


class LeastLoaded:
    """The live replica with the fewest requests in flight; replicas that tie take turns.

    `members` are indices into `replicas`; without them all replicas are considered. `expert` names whose replicas
    they are, for the error.
    """

    def __init__(
        self, replicas: Sequence[ReplicaState], members: Sequence[int] | None = None, expert: str | None = None
    ) -> None:
        self._replicas = replicas
        self._members = tuple(range(len(replicas)) if members is None else members)
        self._expert = expert
        self._first = 0

    def choose(self, text: Callable[[], str]) -> Choice:
        """See `Policy.choose`."""
        index = self.pick()
        return Choice(index, self._replicas[index].expert)

    def pick(self) -> int:
        """Index of the replica. Raises NoLiveReplica."""
        size = len(self._members)
        best, best_in_flight = -1, 0
        for step in range(size):
            position = (self._first + step) % size
            replica = self._replicas[self._members[position]]
            if replica.live and (best < 0 or replica.in_flight < best_in_flight):
                best, best_in_flight = position, replica.in_flight
        if best < 0:
            raise NoLiveReplica(self._expert)
        self._first = (best + 1) % size
        return self._members[best]


class RoundRobin:
    """All live replicas in turn."""

    def __init__(self, replicas: Sequence[ReplicaState]) -> None:
        self._replicas = replicas
        self._next = 0

    def choose(self, text: Callable[[], str]) -> Choice:
        """See `Policy.choose`."""
        size = len(self._replicas)
        for step in range(size):
            index = (self._next + step) % size
            if self._replicas[index].live:
                self._next = (index + 1) % size
                return Choice(index, self._replicas[index].expert)
        raise NoLiveReplica(None)


class Random:
    """Any live replica, all equally likely."""

    def __init__(self, replicas: Sequence[ReplicaState], rng: random.Random) -> None:
        self._replicas = replicas
        self._rng = rng

    def choose(self, text: Callable[[], str]) -> Choice:
        """See `Policy.choose`."""
        live = [index for index, replica in enumerate(self._replicas) if replica.live]
        if not live:
            raise NoLiveReplica(None)
        index = self._rng.choice(live)
        return Choice(index, self._replicas[index].expert)


class Cluster:
    """The expert of the text's cluster, and of its replicas the least loaded; cluster i belongs to the i-th expert.

    Texts with no known word go to `default_expert` (None: the first). Raises ConfigError when there are not as many
    clusters as experts. `clock` counts nanoseconds and measures classification.
    """

    def __init__(
        self,
        pools: dict[str, LeastLoaded],
        classifier: TextClassifier,
        *,
        default_expert: str | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._experts = tuple(pools)
        self._pools = pools
        self._classifier = classifier
        self._default = default_expert or self._experts[0]
        self._clock = clock
        self._check()

    def choose(self, text: Callable[[], str]) -> Choice:
        """See `Policy.choose`."""
        began_ns = self._clock()
        cluster = self._classifier.classify(text()).cluster
        classify_ns = self._clock() - began_ns
        expert = self._default if cluster is None else self._experts[cluster]
        return Choice(self._pools[expert].pick(), expert, cluster, cluster is None, classify_ns)

    def _check(self) -> None:
        clusters, experts = self._classifier.num_clusters, len(self._experts)
        if clusters != experts:
            raise ConfigError(
                f"router: the artefact has {clusters} clusters, the experiment has {experts} experts "
                f"({', '.join(self._experts)}). Fit one that matches: `python -m erhpc.fit clusters={experts}`."
            )
        if self._default not in self._pools:
            raise ConfigError(
                f"router.default_expert={self._default!r} is no expert. Allowed: {', '.join(self._experts)}."
            )


def make_policy(
    config: RouterConfig,
    replicas: Sequence[ReplicaState],
    pools: dict[str, LeastLoaded],
    classifier: TextClassifier | None,
    seed: int,
) -> Policy:
    """Build the policy a configuration names.

    Raises:
        ConfigError: the policy is `none`, or `cluster` without a classifier, or the clusters do not match the experts.
    """
    if config.policy == "cluster" and classifier is not None:
        return Cluster(pools, classifier, default_expert=config.default_expert)
    if config.policy == "round_robin":
        return RoundRobin(replicas)
    if config.policy == "random":
        return Random(replicas, random.Random(seed))
    if config.policy == "least_loaded":
        return LeastLoaded(replicas)
    raise ConfigError(
        f"router.policy={config.policy!r} cannot route here: `cluster` needs a classifier (router.artefact), `none` "
        "means that there is no gateway. Allowed: cluster, round_robin, random, least_loaded."
    )


def pool_by_expert(replicas: Sequence[ReplicaState]) -> dict[str, LeastLoaded]:
    """One pool per expert, in the order in which the experts first appear among `replicas`."""
    members: dict[str, list[int]] = {}
    for index, replica in enumerate(replicas):
        members.setdefault(replica.expert, []).append(index)
    return {expert: LeastLoaded(replicas, indices, expert) for expert, indices in members.items()}
