"""The policies: which expert a request goes to, and with it which replica.

Pure: expert states, randomness and clock are handed in. It knows no HTTP, no model names and no features of a text.
A policy that needs nothing but a member's load and a key of the request is a rule (`erhpc.routing.rules`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from erhpc.config import POLICIES, RULES, RouterConfig
from erhpc.errors import ConfigError
from erhpc.routing.experts import Expert, NoLiveReplica
from erhpc.routing.rules import Rule, Traits, make_rule


class ClusterFound(Protocol):
    """What a policy reads of a classification."""

    @property
    def cluster(self) -> int | None:
        """Number of the nearest cluster; None: the text has no known word."""

    @property
    def distances2(self) -> npt.NDArray[np.float32]:
        """Squared distance to each cluster; means nothing if `cluster` is None."""


class TextClassifier(Protocol):
    """What a policy needs of a classifier; `erhpc.routing.classifier.Classifier` is one."""

    @property
    def num_clusters(self) -> int:
        """How many clusters there are, numbered from 0."""

    def classify(self, text: str) -> ClusterFound:
        """Find the cluster of `text`."""


@dataclass(slots=True)  # not frozen: one is made for every request, and those take three times as long to make
class Choice:
    """Where a request goes, and why."""

    replica: int
    """Index among the replicas the router was built with."""
    expert: str
    cluster: int | None = None
    """Nearest cluster of the text; None: it was not classified, or has no known word."""
    default_used: bool = False
    """The text has no known word and was meant for the default expert."""
    classify_ns: int | None = None
    """How long classification took, in nanoseconds; None: it was not needed."""
    overflow_from: str | None = None
    """The expert it was meant for, which is full or down; None: it went where it was meant to."""


class Policy(Protocol):
    """Picks an expert and its replica for a request."""

    def choose(self, traits: Traits) -> Choice:
        """Pick a replica; of `traits` only what decides is read. Raises NoLiveReplica."""


class Spread:
    """Any expert will do: of those that are live a rule picks one."""

    def __init__(self, experts: Sequence[Expert], rule: Rule) -> None:
        self._experts = experts
        self._rule = rule

    def choose(self, traits: Traits) -> Choice:
        """See `Policy.choose`."""
        live = [number for number, expert in enumerate(self._experts) if expert.live]
        if not live:
            raise NoLiveReplica(None)
        expert = self._experts[self._rule.pick(live, traits)]
        return Choice(expert.pick(traits), expert.name)


class Cluster:
    """The expert of the text's cluster; cluster i belongs to the i-th expert.

    Texts with no known word go to the default expert, the first if none is named. A temperature T above 0 draws the
    expert with probability softmax(-d^2 / T), d being the distance of the text to the centre of each cluster: the
    mixture weights of c-BTM (arXiv:2303.14177, where T = 0.1). With `router.overflow=next_nearest` an expert that is
    full or down is replaced by the nearest one with room; if none has room, requests go where they were meant to.
    Raises ConfigError when there are not as many clusters as experts. `clock` counts nanoseconds and measures
    classification.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        classifier: TextClassifier,
        config: RouterConfig,
        rng: random.Random,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._experts = experts
        self._classifier = classifier
        self._default = _find_default(experts, config.default_expert)
        self._temperature = config.temperature
        self._limit = config.overflow_limit if config.overflow == "next_nearest" else None
        self._rng = rng
        self._clock = clock
        self._check()

    def choose(self, traits: Traits) -> Choice:
        """See `Policy.choose`."""
        began_ns = self._clock()
        found = self._classifier.classify(traits.text)
        classify_ns = self._clock() - began_ns
        wanted = self._choose_expert(found)
        taken = wanted if self._limit is None else self._find_room(wanted, found, self._limit)
        return Choice(
            replica=self._experts[taken].pick(traits),
            expert=self._experts[taken].name,
            cluster=found.cluster,
            default_used=found.cluster is None,
            classify_ns=classify_ns,
            overflow_from=self._experts[wanted].name if taken != wanted else None,
        )

    def _choose_expert(self, found: ClusterFound) -> int:
        if found.cluster is None:
            return self._default
        if self._temperature == 0:
            return found.cluster
        weights = weigh_clusters(found.distances2.tolist(), self._temperature)
        return self._rng.choices(range(len(weights)), weights)[0]

    def _find_room(self, wanted: int, found: ClusterFound, limit: int) -> int:
        """`wanted` if it has room, else the nearest expert that has, else `wanted`, else the nearest that is live."""
        experts = self._experts
        if experts[wanted].has_room(limit):
            return wanted
        candidates = [number for number, expert in enumerate(experts) if expert.has_room(limit)]
        if not candidates:
            candidates = [number for number, expert in enumerate(experts) if expert.live]
        if not candidates or wanted in candidates:
            return wanted
        if found.cluster is None:  # no expert is nearer than another
            return min(candidates, key=lambda number: experts[number].in_flight)
        distances2 = found.distances2
        return min(candidates, key=lambda number: float(distances2[number]))

    def _check(self) -> None:
        clusters, experts = self._classifier.num_clusters, len(self._experts)
        if clusters != experts:
            names = ", ".join(expert.name for expert in self._experts)
            raise ConfigError(
                f"router: the artefact has {clusters} clusters, the experiment has {experts} experts "
                f"({names}). Fit one that matches: `python -m erhpc.fit clusters={experts}`."
            )


def weigh_clusters(distances2: Sequence[float], temperature: float) -> list[float]:
    """The softmax of -d^2 / T (arXiv:2303.14177), not normalised: the nearest cluster weighs 1. T must be above 0."""
    nearest = min(distances2)
    return [math.exp((nearest - distance2) / temperature) for distance2 in distances2]


def make_policy(
    config: RouterConfig, experts: Sequence[Expert], classifier: TextClassifier | None, seed: int
) -> Policy:
    """Build the policy a configuration names.

    Raises:
        ConfigError: the policy is `none`, or `cluster` without a classifier, or the clusters do not match the experts.
    """
    rng = random.Random(seed)
    if config.policy == "cluster" and classifier is not None:
        return Cluster(experts, classifier, config, rng)
    if config.policy in RULES:
        return Spread(experts, make_rule(config.policy, experts, config, rng))
    raise ConfigError(
        f"router.policy={config.policy!r} cannot route here: `cluster` needs a classifier (router.artefact), `none` "
        f"means that there is no gateway. Allowed: {', '.join(POLICIES[:-1])}."
    )


def _find_default(experts: Sequence[Expert], name: str | None) -> int:
    names = [expert.name for expert in experts]
    if name is None:
        return 0
    if name not in names:
        raise ConfigError(f"router.default_expert={name!r} is no expert. Allowed: {', '.join(names)}.")
    return names.index(name)
