"""The router: `auto` goes to the policy, an expert's name to that expert.

Pure: it knows no HTTP, and no rule of any policy.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from erhpc.config import AUTO_MODEL, RouterConfig
from erhpc.routing.experts import Expert, ReplicaState, group_by_expert
from erhpc.routing.policy import Choice, Policy, TextClassifier, make_policy
from erhpc.routing.rules import Traits


class UnknownModel(Exception):
    """A request names a model that is neither an expert nor `auto`."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model {model!r} is no expert")
        self.model = model


class Router:
    """Sends `auto` to the policy, an expert's name to that expert."""

    def __init__(self, policy: Policy, experts: Sequence[Expert]) -> None:
        self._policy = policy
        self._experts = {expert.name: expert for expert in experts}

    @property
    def models(self) -> tuple[str, ...]:
        """Every model name that is answered."""
        return (AUTO_MODEL, *self._experts)

    def choose(self, model: str, traits: Traits) -> Choice:
        """Pick the replica for a request. Raises UnknownModel or NoLiveReplica."""
        if model == AUTO_MODEL:
            return self._policy.choose(traits)
        expert = self._experts.get(model)
        if expert is None:
            raise UnknownModel(model)
        return Choice(expert.pick(traits), model)

    def pick_replica(self, expert: str, traits: Traits, without: Container[int] = ()) -> int:
        """Pick a replica of an expert again, none of `without`. Raises NoLiveReplica."""
        return self._experts[expert].pick(traits, without)

    def count_live(self, expert: str) -> int:
        """How many replicas of an expert are live."""
        return self._experts[expert].num_live


def make_router(
    config: RouterConfig, replicas: Sequence[ReplicaState], *, classifier: TextClassifier | None, seed: int
) -> Router:
    """Build the router of a configuration; experts are ordered by their first replica.

    Raises:
        ConfigError: see `make_policy`.
    """
    experts = group_by_expert(replicas, config, seed)
    return Router(make_policy(config, experts, classifier, seed), experts)
