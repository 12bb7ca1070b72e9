"""Where the requests of a level go: the pools of replicas that the gateway picks among, and the pool of each request.

With the fitted classifier of a run, prompts go where it sends them; without one, shares are balanced, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import numpy.typing as npt

from erhpc.config import ExperimentConfig
from erhpc.errors import ConfigError
from erhpc.forecast.demand import Asked
from erhpc.routing.classifier import Classifier
from erhpc.routing.policy import weigh_clusters

BALANCERS = {
    "least_loaded": "least_loaded",
    "round_robin": "round_robin",
    "power_of_two": "least_loaded",
    "prefix_affinity": "least_loaded",
    "random": "round_robin",
    "session": "round_robin",
}
"""The simulated rule that comes nearest to each rule among replicas."""
_BY_LOAD = ("least_loaded", "power_of_two", "prefix_affinity", "none")
"""Policies under which any replica may get any request, so that all are one pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Who answers what."""

    pools: Sequence[Sequence[str]]
    """Names of the experts whose replicas are one pool."""
    rule: str
    """By which a replica of a pool is picked, of those that are simulated."""
    classifier: Classifier | None = None
    notices: Sequence[str] = ()
    _experiment: ExperimentConfig = field(repr=False)
    _known: dict[str, int] = field(default_factory=dict, repr=False)

    def find_pools(self, asked: Asked) -> npt.NDArray[np.int64]:
        """The pool of each request."""
        router, num_pools = self._experiment.router, len(self.pools)
        if num_pools == 1:
            return np.zeros(len(asked), dtype=np.int64)
        random = Random(self._experiment.seed)
        if router.policy == "cluster" and self.classifier is not None:
            return np.array([self._classify(text, self.classifier, random) for text in asked.texts])
        if router.policy == "random":
            return np.array([random.randrange(num_pools) for _ in asked.texts])
        if router.policy == "session":
            # As good as hashed: each user has a pool of its own choice, and keeps it.
            return np.array([Random(f"{self._experiment.seed} {user}").randrange(num_pools) for user in asked.users])
        return np.arange(len(asked)) % num_pools

    def _classify(self, text: str, classifier: Classifier, random: Random) -> int:
        router = self._experiment.router
        if router.temperature == 0 and text in self._known:
            return self._known[text]
        found = classifier.classify(text)
        if found.cluster is None:
            pool = list(self._experiment.experts).index(router.default_expert) if router.default_expert else 0
        elif router.temperature > 0:
            weights = weigh_clusters(found.distances2.tolist(), router.temperature)
            pool = random.choices(range(len(weights)), weights)[0]
        else:
            pool = found.cluster
        self._known[text] = pool
        return pool


def plan_routes(experiment: ExperimentConfig, classifier: Classifier | None) -> Routes:
    """How the router of an experiment is simulated.

    Raises:
        ConfigError: the classifier has not as many clusters as there are experts.
    """
    router, names = experiment.router, list(experiment.experts)
    if classifier is not None and router.policy == "cluster" and classifier.num_clusters != len(names):
        raise ConfigError(
            f"router.artefact={router.artefact} has {classifier.num_clusters} clusters and the experiment has "
            f"{len(names)} experts. Fit one that matches: python -m erhpc.fit clusters={len(names)} output=DIR."
        )
    merged = router.policy in _BY_LOAD or len(names) == 1
    rule = router.policy if merged and router.policy in BALANCERS else router.replica_policy
    return Routes(
        pools=[names] if merged else [[name] for name in names],
        rule=BALANCERS[rule],
        classifier=classifier,
        notices=tuple(_note_differences(experiment, classifier, rule)),
        _experiment=experiment,
    )


def _note_differences(experiment: ExperimentConfig, classifier: Classifier | None, rule: str) -> list[str]:
    """What the simulation takes to be otherwise than the run will have it."""
    router, notices = experiment.router, []
    if len(experiment.experts) > 1:
        if router.policy == "cluster" and classifier is None:
            notices.append(
                "balanced routing assumed: no classifier is fitted yet. Real shares: fit one (python -m erhpc.fit) and "
                "set router.artefact=DIR"
            )
        elif router.policy == "cluster":
            notices.append("routing shares: the classifier's, on the workload's own prompts")
        if router.overflow != "none":
            notices.append(f"router.overflow={router.overflow} is not simulated: prompts stay with their expert")
    if any(expert.replicas > 1 for expert in experiment.experts.values()) and BALANCERS[rule] != rule:
        notices.append(f"{rule} among replicas is simulated as {BALANCERS[rule]}")
    if experiment.engine.prefix_caching:
        notices.append("hits of the prefix cache are not predicted: with them, first tokens come sooner")
    if experiment.engine.faults or experiment.engine.speedup != 1:
        notices.append("engine.faults and engine.speedup are not simulated: both are of emulated experts only")
    if not experiment.workload.ignore_eos:
        notices.append("answers are taken to be as long as they may (workload.ignore_eos=false)")
    if not experiment.workload.arrivals.is_open and experiment.workload.profile.kind != "flat":
        notices.append(f"workload.profile.kind={experiment.workload.profile.kind} is predicted at its full load")
    return notices
