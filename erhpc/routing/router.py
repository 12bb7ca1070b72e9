"""The router: `auto` goes to the policy, an expert's name to that expert.

Pure: it knows no HTTP, and no rule of any policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from erhpc.config import AUTO_MODEL, RouterConfig
from erhpc.routing.policy import (
    Choice,
    LeastLoaded,
    Policy,
    ReplicaState,
    TextClassifier,
    make_policy,
    pool_by_expert,
)


class UnknownModel(Exception):
    """A request names a model that is neither an expert nor `auto`."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model {model!r} is no expert")
        self.model = model


class Router:
    """Sends `auto` to the policy, an expert's name to that expert."""

    def __init__(self, policy: Policy, pools: dict[str, LeastLoaded]) -> None:
        self._policy = policy
        self._pools = pools

    @property
    def models(self) -> tuple[str, ...]:
        """Every model name that is answered."""
        return (AUTO_MODEL, *self._pools)

    def choose(self, model: str, text: Callable[[], str]) -> Choice:
        """Pick the replica for a request. Raises UnknownModel or NoLiveReplica."""
        if model == AUTO_MODEL:
            return self._policy.choose(text)
        pool = self._pools.get(model)
        if pool is None:
            raise UnknownModel(model)
        return Choice(pool.pick(), model)


def make_router(
    config: RouterConfig, replicas: Sequence[ReplicaState], *, classifier: TextClassifier | None, seed: int
) -> Router:
    """Build the router of a configuration; experts are ordered by their first replica.

    Raises:
        ConfigError: see `make_policy`.
    """
    pools = pool_by_expert(replicas)
    return Router(make_policy(config, replicas, pools, classifier, seed), pools)
