"""Which expert and replica the router chooses, on replica states made up here."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import POLICIES, RULES, RouterConfig
from erhpc.errors import ConfigError
from erhpc.routing.classifier import Classifier
from erhpc.routing.experts import NoLiveReplica
from erhpc.routing.policy import weigh_clusters
from erhpc.routing.router import UnknownModel, make_router
from tests.fakes.routing import Ask, Found, KeywordClassifier, Unread, fleet

LOADS = st.lists(st.integers(0, 6), min_size=6, max_size=6)
LIVES = st.lists(st.booleans(), min_size=6, max_size=6)


class FixedClassifier:
    """The same distances for every text."""

    def __init__(self, distances2) -> None:
        self.distances2 = np.asarray(distances2, np.float32)
        self.num_clusters = len(self.distances2)

    def classify(self, text):
        return Found(int(self.distances2.argmin()), self.distances2)


def router(policy, replicas, *, keywords=("sum", "loop"), classifier=None, seed=0, **config):
    if policy == "cluster":
        classifier = classifier or KeywordClassifier(*keywords)
    return make_router(RouterConfig(policy=policy, **config), replicas, classifier=classifier, seed=seed)


def choices(router, count, *, model="auto", request=None):
    return [router.choose(model, request or Unread()).replica for _ in range(count)]


# The expert of a cluster


def test_a_prompt_goes_to_the_expert_of_its_cluster():
    chooser = router("cluster", fleet("math", "code"))
    first = chooser.choose("auto", Ask("a sum"))
    second = chooser.choose("auto", Ask("a loop"))
    assert (first.expert, first.cluster, first.replica) == ("math", 0, 0)
    assert (second.expert, second.cluster, second.replica) == ("code", 1, 1)
    assert not first.default_used
    assert first.classify_ns is not None


def test_clusters_follow_the_order_in_which_experts_first_appear():
    chooser = router("cluster", fleet("code", "math", "code"))
    assert chooser.choose("auto", Ask("a loop")).expert == "math"


@pytest.mark.parametrize(("default", "expert"), [(None, "math"), ("code", "code")])
def test_a_prompt_with_no_known_word_goes_to_the_default_expert(default, expert):
    choice = router("cluster", fleet("math", "code"), default_expert=default).choose("auto", Ask("?"))
    assert (choice.expert, choice.cluster, choice.default_used) == (expert, None, True)


def test_a_fitted_classifier_fits_the_policy():
    classifier = Classifier(("sum", "loop"), np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    for more in ({}, {"temperature": 0.01, "overflow": "next_nearest"}):
        chooser = router("cluster", fleet("math", "code"), classifier=classifier, **more)
        assert chooser.choose("auto", Ask("loop")).expert == "code"


def test_unequal_numbers_of_clusters_and_experts_are_refused_with_both_numbers_and_the_remedy():
    with pytest.raises(ConfigError, match=r"3 clusters.*2 experts \(math, code\).*clusters=2"):
        router("cluster", fleet("math", "code"), keywords=("a", "b", "c"))


def test_a_default_expert_without_a_replica_is_refused():
    with pytest.raises(ConfigError, match=r"default_expert='law'.*Allowed: math, code"):
        router("cluster", fleet("math", "code"), default_expert="law")


@pytest.mark.parametrize("policy", ["none", "cluster"])
def test_a_policy_that_cannot_route_is_refused(policy):
    with pytest.raises(ConfigError, match=r"Allowed: cluster, round_robin, .*session\."):
        make_router(RouterConfig(policy=policy), fleet("math"), classifier=None, seed=0)


def test_an_expert_without_a_live_replica_is_not_replaced_by_another():
    replicas = fleet("math", "code")
    replicas[1].live = False
    with pytest.raises(NoLiveReplica) as caught:
        router("cluster", replicas).choose("auto", Ask("loop"))
    assert caught.value.expert == "code"


# Temperature


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.floats(0, 4, width=32), min_size=1, max_size=8), st.floats(1e-6, 100))
def test_the_weights_of_clusters_are_the_softmax_of_minus_the_squared_distance_over_t(distances2, temperature):
    logits = -np.asarray(distances2, np.float64) / temperature
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    weights = np.asarray(weigh_clusters(distances2, temperature))
    assert np.allclose(weights / weights.sum(), expected, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 5.0])
def test_experts_are_drawn_as_often_as_the_softmax_says(temperature):
    distances2 = np.array([0.9, 0.5, 0.6, 1.2], np.float32)
    replicas = fleet("a", "b", "c", "d")
    chooser = router("cluster", replicas, classifier=FixedClassifier(distances2), temperature=temperature, seed=3)
    count = 20_000
    picked = Counter(choices(chooser, count, request=Ask()))
    expected = np.exp(-distances2 / temperature) / np.exp(-distances2 / temperature).sum()
    for number, share in enumerate(expected):
        # Five standard deviations of a binomial share.
        assert abs(picked[number] / count - share) < 5 * math.sqrt(share * (1 - share) / count)


def test_draws_repeat_with_the_seed_and_say_the_nearest_cluster():
    def draw(seed):
        classifier = FixedClassifier([0.5, 0.6, 0.7])
        chooser = router("cluster", fleet("a", "b", "c"), classifier=classifier, temperature=0.2, seed=seed)
        return [chooser.choose("auto", Ask()) for _ in range(200)]

    experts = [choice.expert for choice in draw(1)]
    assert experts == [choice.expert for choice in draw(1)]
    assert experts != [choice.expert for choice in draw(2)]
    assert {(choice.cluster, choice.overflow_from) for choice in draw(1)} == {(0, None)}


@pytest.mark.parametrize("temperature", [0, 1e-300])
def test_a_temperature_of_zero_or_nearly_so_takes_the_nearest(temperature):
    chooser = router("cluster", fleet("a", "b"), classifier=FixedClassifier([0.6, 0.5]), temperature=temperature)
    assert set(choices(chooser, 50, request=Ask())) == {1}


# Overflow


def overflowing(replicas, limit=4, **config):
    return router(
        "cluster", replicas, keywords=("sum", "loop", "law"), overflow="next_nearest", overflow_limit=limit, **config
    )


def test_a_prompt_whose_expert_is_full_goes_to_the_nearest_expert_with_room_and_says_so():
    replicas = fleet("math", "code", "law")
    replicas[1].in_flight = replicas[0].in_flight = 4
    choice = overflowing(replicas).choose("auto", Ask("a loop"))
    assert (choice.expert, choice.cluster, choice.overflow_from) == ("law", 1, "code")
    replicas[0].in_flight = 3
    assert overflowing(replicas).choose("auto", Ask("a loop")).expert == "math"


def test_an_expert_is_full_by_its_requests_per_live_replica():
    replicas = fleet("math", "math", "code", "law")
    replicas[0].in_flight, replicas[1].in_flight = 6, 1
    assert overflowing(replicas).choose("auto", Ask("sum")).replica == 1
    replicas[1].live = False
    assert overflowing(replicas).choose("auto", Ask("sum")).overflow_from == "math"


def test_a_prompt_whose_expert_is_down_overflows_too():
    replicas = fleet("math", "code", "law")
    replicas[0].live = False
    choice = overflowing(replicas).choose("auto", Ask("sum"))
    assert (choice.expert, choice.overflow_from) == ("code", "math")


def test_a_prompt_with_no_known_word_overflows_to_the_least_loaded_expert():
    replicas = fleet("math", "code", "law")
    replicas[0].in_flight, replicas[1].in_flight, replicas[2].in_flight = 4, 3, 2
    choice = overflowing(replicas).choose("auto", Ask("?"))
    assert (choice.expert, choice.default_used, choice.overflow_from) == ("law", True, "math")


def test_a_request_that_names_its_expert_never_overflows():
    replicas = fleet("math", "code", "law")
    replicas[0].in_flight = 100
    assert overflowing(replicas).choose("math", Unread()).expert == "math"


@settings(max_examples=300, deadline=None, database=None)
@given(LOADS, LIVES, st.integers(1, 6), st.sampled_from(["sum", "loop", "law", "?"]), st.sampled_from([0.0, 0.3]))
def test_no_prompt_is_sent_past_the_limit_while_another_expert_is_below_it(loads, lives, limit, text, temperature):
    replicas = fleet("math", "code", "law", "code", "law", "math")
    for replica, load, live in zip(replicas, loads, lives, strict=True):
        replica.in_flight, replica.live = load, live
    per_replica = {}
    for name in ("math", "code", "law"):
        own = [replica.in_flight for replica in replicas if replica.expert == name and replica.live]
        per_replica.update({name: sum(own) / len(own)} if own else {})
    chooser = overflowing(replicas, limit, temperature=temperature)
    if not per_replica:
        with pytest.raises(NoLiveReplica):
            chooser.choose("auto", Ask(text))
        return
    choice = chooser.choose("auto", Ask(text))
    assert replicas[choice.replica].live
    assert replicas[choice.replica].expert == choice.expert
    if min(per_replica.values()) < limit:
        assert per_replica[choice.expert] < limit
        assert replicas[choice.replica].in_flight < limit
    elif choice.overflow_from is not None:
        assert choice.overflow_from not in per_replica
    assert choice.overflow_from != choice.expert


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policy": "random", "overflow": "wait"}, "overflow=wait needs router.policy=cluster.*random"),
        ({"overflow": "away"}, "router.overflow='away'.*Allowed: none, wait, next_nearest"),
        ({"policy": "random", "overflow": "next_nearest"}, "overflow=next_nearest needs router.policy=cluster.*random"),
        ({"policy": "session", "temperature": 0.1}, "router.temperature=0.1 needs router.policy=cluster"),
        ({"temperature": -0.1}, "router.temperature=-0.1 is out of range"),
        ({"temperature": math.nan}, "router.temperature=nan is out of range"),
        ({"replica_policy": "cluster"}, "router.replica_policy='cluster'.*Allowed: round_robin, random"),
        ({"overflow_limit": 0}, "router.overflow_limit=0.*at least 1"),
        ({"affinity_factor": 0.9}, "router.affinity_factor=0.9.*from 1"),
        ({"affinity_slack": 0}, "router.affinity_slack=0.*at least 1"),
        ({"prefix_limit_chars": 0}, "router.prefix_limit_chars=0.*at least 1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_what_is_allowed(config, message):
    with pytest.raises(ConfigError, match=message):
        RouterConfig(**config)


# Two levels


@pytest.mark.parametrize("replica_policy", RULES)
def test_of_the_chosen_experts_replicas_the_second_rule_picks(replica_policy):
    replicas = fleet("math", "code", "math", "math")
    chooser = router("cluster", replicas, replica_policy=replica_policy)
    picked = choices(chooser, 60, request=Ask("sum"))
    if replica_policy in ("session", "prefix_affinity"):
        assert len(set(picked)) == 1
        assert set(picked) < {0, 2, 3}
    else:
        assert set(picked) == {0, 2, 3}


@pytest.mark.parametrize("replica_policy", RULES)
def test_nothing_is_read_of_a_request_when_its_expert_has_one_live_replica(replica_policy):
    replicas = fleet("math", "math", "code")
    replicas[0].live = False
    chooser = router("round_robin", replicas, replica_policy=replica_policy)
    assert choices(chooser, 4) == [1, 2, 1, 2]


def test_the_least_loaded_replica_of_the_clusters_expert_is_the_default():
    replicas = fleet("math", "code", "math", "math")
    replicas[0].in_flight, replicas[2].in_flight, replicas[3].in_flight = 2, 1, 5
    assert router("cluster", replicas).choose("auto", Ask("sum")).replica == 2


def test_experts_are_chosen_by_requests_per_live_replica():
    replicas = fleet("math", "math", "code")
    replicas[0].in_flight, replicas[1].in_flight, replicas[2].in_flight = 3, 2, 3
    chooser = router("least_loaded", replicas)
    assert choices(chooser, 2) == [1, 1]
    replicas[1].live = False
    replicas[2].in_flight = 2
    assert choices(chooser, 2) == [2, 2]


def test_experts_take_turns_however_many_replicas_they_have():
    chooser = router("round_robin", fleet("math", "math", "code"), replica_policy="round_robin")
    assert choices(chooser, 6) == [0, 2, 1, 2, 0, 2]


def test_a_replica_that_dies_moves_only_the_sessions_it_held():
    replicas = fleet("a", "a", "a", "b", "b", "b")
    chooser = router("session", replicas, replica_policy="session")
    requests = [Ask(session=f"user {number}") for number in range(300)]
    before = [chooser.choose("auto", request).replica for request in requests]
    replicas[1].live = False
    after = [chooser.choose("auto", request).replica for request in requests]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != 1)
    assert {new for old, new in zip(before, after, strict=True) if old == 1} == {0, 2}
    assert Counter(before).keys() == set(range(6))


def test_an_expert_that_dies_moves_only_the_sessions_it_held():
    replicas = fleet("a", "a", "b", "b", "c")
    chooser = router("session", replicas, replica_policy="session")
    requests = [Ask(session=f"user {number}") for number in range(200)]
    before = [chooser.choose("auto", request) for request in requests]
    replicas[2].live = replicas[3].live = False
    after = [chooser.choose("auto", request) for request in requests]
    moved = [new.expert for old, new in zip(before, after, strict=True) if old.expert == "b"]
    assert set(moved) == {"a", "c"}
    assert all(old == new for old, new in zip(before, after, strict=True) if old.expert != "b")


# Pinned by the model's name


def test_a_request_that_names_an_expert_is_pinned_to_its_least_loaded_replica():
    replicas = fleet("math", "code", "code")
    replicas[1].in_flight = 1
    for policy in set(POLICIES) - {"none"}:
        choice = router(policy, replicas).choose("code", Unread())
        assert (choice.replica, choice.expert, choice.cluster, choice.classify_ns) == (2, "code", None, None)


def test_a_pinned_session_keeps_its_replica():
    chooser = router("cluster", fleet("math", "code", "code", "code"), replica_policy="session")
    picked = choices(chooser, 20, model="code", request=Ask(session="ann"))
    assert len(set(picked)) == 1
    assert set(picked) < {1, 2, 3}


def test_pinning_leaves_the_turns_of_the_policy_alone():
    chooser = router("round_robin", fleet("a", "b"))
    choices(chooser, 1)
    choices(chooser, 3, model="b")
    assert choices(chooser, 1) == [1]


def test_a_model_that_is_no_expert_is_unknown():
    with pytest.raises(UnknownModel, match="'law'"):
        router("random", fleet("math")).choose("law", Unread())


def test_the_models_are_auto_and_the_experts():
    assert router("random", fleet("b", "a", "b")).models == ("auto", "b", "a")


# Replicas that are down


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"none"}))
def test_no_policy_chooses_when_nothing_is_live(policy):
    replicas = fleet("math", "code")
    for replica in replicas:
        replica.live = False
    chooser = router(policy, replicas)
    with pytest.raises(NoLiveReplica):
        chooser.choose("auto", Ask("sum"))


@settings(max_examples=100, deadline=None, database=None)
@given(st.sampled_from(RULES), st.sampled_from(RULES), LOADS, LIVES, st.sampled_from(["", "You are"]))
def test_no_policy_takes_a_replica_that_is_down_while_another_is_live(policy, replica_policy, loads, lives, prefix):
    replicas = fleet("a", "b", "c", "a", "b", "a")
    for replica, load, live in zip(replicas, loads, lives, strict=True):
        replica.in_flight, replica.live = load, live
    replicas[random.Random(repr(lives)).randrange(6)].live = True
    chooser = router(policy, replicas, replica_policy=replica_policy)
    for number in range(12):
        picked = chooser.choose("auto", Ask(prefix=prefix, session=f"{number}" if number else None)).replica
        assert replicas[picked].live
