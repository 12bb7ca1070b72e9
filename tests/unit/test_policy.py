"""Which replica the policies choose, on replica states made up here."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from erhpc.config import POLICIES, RouterConfig
from erhpc.errors import ConfigError
from erhpc.routing.classifier import Classifier
from erhpc.routing.policy import NoLiveReplica, Random
from erhpc.routing.router import Router, UnknownModel, make_router


@dataclass
class State:
    expert: str
    in_flight: int = 0
    live: bool = True


@dataclass(frozen=True)
class Found:
    cluster: int | None


class KeywordClassifier:
    """The cluster of the first keyword in the text."""

    def __init__(self, *keywords) -> None:
        self.keywords = keywords

    @property
    def num_clusters(self):
        return len(self.keywords)

    def classify(self, text):
        return Found(next((n for n, keyword in enumerate(self.keywords) if keyword in text), None))


def fleet(*experts):
    return [State(expert) for expert in experts]


def router(policy, replicas, *, keywords=("sum", "loop"), seed=0, **config):
    classifier = KeywordClassifier(*keywords) if policy == "cluster" else None
    return make_router(RouterConfig(policy=policy, **config), replicas, classifier=classifier, seed=seed)


def choices(router, count, *, model="auto"):
    return [router.choose(model, unread).replica for _ in range(count)]


def unread():
    raise AssertionError("this policy has no business with the text")


def test_a_prompt_goes_to_the_expert_of_its_cluster():
    chooser = router("cluster", fleet("math", "code"))
    first = chooser.choose("auto", lambda: "a sum")
    second = chooser.choose("auto", lambda: "a loop")
    assert (first.expert, first.cluster, first.replica) == ("math", 0, 0)
    assert (second.expert, second.cluster, second.replica) == ("code", 1, 1)
    assert not first.default_used
    assert first.classify_ns is not None


def test_clusters_follow_the_order_in_which_experts_first_appear():
    chooser = router("cluster", fleet("code", "math", "code"))
    assert chooser.choose("auto", lambda: "a loop").expert == "math"


def test_the_least_loaded_replica_of_the_clusters_expert_is_chosen():
    replicas = fleet("math", "code", "math", "math")
    replicas[0].in_flight, replicas[2].in_flight, replicas[3].in_flight = 2, 1, 5
    assert router("cluster", replicas).choose("auto", lambda: "sum").replica == 2


@pytest.mark.parametrize(("default", "expert"), [(None, "math"), ("code", "code")])
def test_a_prompt_with_no_known_word_goes_to_the_default_expert(default, expert):
    choice = router("cluster", fleet("math", "code"), default_expert=default).choose("auto", lambda: "?")
    assert (choice.expert, choice.cluster, choice.default_used) == (expert, None, True)


def test_a_fitted_classifier_fits_the_policy():
    classifier = Classifier(("sum", "loop"), np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    chooser = make_router(RouterConfig(), fleet("math", "code"), classifier=classifier, seed=0)
    assert chooser.choose("auto", lambda: "loop").expert == "code"


def test_unequal_numbers_of_clusters_and_experts_are_refused_with_both_numbers_and_the_remedy():
    with pytest.raises(ConfigError, match=r"3 clusters.*2 experts \(math, code\).*clusters=2"):
        router("cluster", fleet("math", "code"), keywords=("a", "b", "c"))


def test_a_default_expert_without_a_replica_is_refused():
    with pytest.raises(ConfigError, match=r"default_expert='law'.*Allowed: math, code"):
        router("cluster", fleet("math", "code"), default_expert="law")


@pytest.mark.parametrize("policy", ["none", "cluster"])
def test_a_policy_that_cannot_route_is_refused(policy):
    with pytest.raises(ConfigError, match="Allowed: cluster, round_robin"):
        make_router(RouterConfig(policy=policy), fleet("math"), classifier=None, seed=0)


def test_round_robin_takes_live_replicas_in_turn():
    replicas = fleet("a", "b", "c")
    chooser = router("round_robin", replicas)
    assert choices(chooser, 4) == [0, 1, 2, 0]
    replicas[1].live = False
    assert choices(chooser, 3) == [2, 0, 2]


def test_random_choices_repeat_with_the_seed_and_spread_evenly():
    replicas = fleet("a", "b", "c", "d")
    picked = choices(router("random", replicas, seed=7), 4000)
    assert picked == choices(router("random", replicas, seed=7), 4000)
    assert picked != choices(router("random", replicas, seed=8), 4000)
    assert all(900 < count < 1100 for count in Counter(picked).values())


def test_random_never_takes_a_replica_that_is_down():
    replicas = fleet("a", "b", "c")
    replicas[0].live = False
    chooser = Router(Random(replicas, random.Random(0)), {})
    assert set(choices(chooser, 100)) == {1, 2}


def test_least_loaded_takes_the_emptiest_replica_of_all_experts():
    replicas = fleet("a", "b", "c")
    replicas[0].in_flight, replicas[1].in_flight, replicas[2].in_flight = 3, 2, 4
    assert choices(router("least_loaded", replicas), 3) == [1, 1, 1]


def test_replicas_that_tie_take_turns():
    assert choices(router("least_loaded", fleet("a", "b", "c")), 5) == [0, 1, 2, 0, 1]


def test_a_request_that_names_an_expert_is_pinned_to_its_least_loaded_replica():
    replicas = fleet("math", "code", "code")
    replicas[1].in_flight = 1
    for policy in set(POLICIES) - {"none"}:
        choice = router(policy, replicas).choose("code", unread)
        assert (choice.replica, choice.expert, choice.cluster, choice.classify_ns) == (2, "code", None, None)


def test_pinning_leaves_the_turns_of_the_policy_alone():
    chooser = router("round_robin", fleet("a", "b"))
    choices(chooser, 1)
    choices(chooser, 3, model="b")
    assert choices(chooser, 1) == [1]


def test_a_model_that_is_no_expert_is_unknown():
    with pytest.raises(UnknownModel, match="'law'"):
        router("random", fleet("math")).choose("law", unread)


def test_the_models_are_auto_and_the_experts():
    assert router("random", fleet("b", "a", "b")).models == ("auto", "b", "a")


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"none"}))
def test_no_policy_chooses_when_nothing_is_live(policy):
    replicas = fleet("math", "code")
    for replica in replicas:
        replica.live = False
    chooser = router(policy, replicas)
    with pytest.raises(NoLiveReplica):
        chooser.choose("auto", lambda: "sum")


def test_an_expert_without_a_live_replica_is_not_replaced_by_another():
    replicas = fleet("math", "code")
    replicas[1].live = False
    with pytest.raises(NoLiveReplica) as caught:
        router("cluster", replicas).choose("auto", lambda: "loop")
    assert caught.value.expert == "code"
