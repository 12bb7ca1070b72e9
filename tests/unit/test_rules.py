"""Which member each rule picks, on members made up here."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.config import RULES, RouterConfig
from erhpc.routing.rendezvous import Rendezvous
from erhpc.routing.rules import PowerOfTwo, PrefixAffinity, make_rule
from tests.fakes.routing import Ask, Unread

LOADS = st.lists(st.integers(0, 100), min_size=1, max_size=8)


@dataclass
class Load:
    name: str
    in_flight: float = 0


def members(*loads):
    return [Load(f"m{number}", load) for number, load in enumerate(loads)]


def rule(name, group, *, seed=0, **config):
    return make_rule(name, group, RouterConfig(**config), random.Random(seed))


def picks(rule, allowed, count, request=None):
    return [rule.pick(allowed, request or Unread()) for _ in range(count)]


def test_round_robin_takes_those_allowed_in_turn():
    turns = rule("round_robin", members(0, 0, 0))
    assert picks(turns, (0, 1, 2), 4) == [0, 1, 2, 0]
    assert picks(turns, (0, 2), 3) == [2, 0, 2]


def test_random_picks_repeat_with_the_seed_and_spread_evenly():
    group = members(0, 0, 0, 0)
    picked = picks(rule("random", group, seed=7), range(4), 4000)
    assert picked == picks(rule("random", group, seed=7), range(4), 4000)
    assert picked != picks(rule("random", group, seed=8), range(4), 4000)
    assert all(900 < count < 1100 for count in Counter(picked).values())


def test_least_loaded_takes_the_emptiest_member():
    assert picks(rule("least_loaded", members(3, 2, 4)), range(3), 3) == [1, 1, 1]


def test_members_that_tie_take_turns():
    assert picks(rule("least_loaded", members(0, 0, 0)), range(3), 5) == [0, 1, 2, 0, 1]


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True), st.integers(0, 1000))
def test_power_of_two_never_picks_the_busier_of_its_two(loads, seed):
    picked = picks(PowerOfTwo(members(*loads), random.Random(seed)), range(len(loads)), 50)
    assert loads.index(max(loads)) not in picked


def test_power_of_two_draws_every_pair_equally_often():
    # The member of rank r of n, the emptiest being 0, wins all pairs with busier ones: 2 (n - 1 - r) / (n (n - 1)).
    picked = Counter(picks(PowerOfTwo(members(0, 1, 2, 3), random.Random(1)), range(4), 12_000))
    assert [round(picked[rank] / 1000) for rank in range(4)] == [6, 4, 2, 0]


def test_power_of_two_spreads_far_more_evenly_than_one_draw():
    def fill(name):
        group = members(*[0] * 20)
        filling = rule(name, group, seed=5)
        for _ in range(2000):
            group[filling.pick(range(20), Unread())].in_flight += 1
        return max(member.in_flight for member in group)

    assert fill("power_of_two") <= 105
    assert fill("random") > 115


# Keys


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.text(), min_size=1, max_size=30), st.integers(2, 8), st.data())
def test_a_member_that_is_not_allowed_moves_only_its_own_keys(keys, size, data):
    gone = data.draw(st.integers(0, size - 1))
    places = Rendezvous(f"member {number}" for number in range(size))
    rest = [number for number in range(size) if number != gone]
    for key in keys:
        before, after = places.find(key, range(size)), places.find(key, rest)
        assert after == before or before == gone
        assert after != gone


def test_keys_spread_evenly_and_those_of_a_dead_member_over_all_others():
    places = Rendezvous(f"math-{number}" for number in range(5))
    keys = [f"user-{number}" for number in range(5000)]
    before = {key: places.find(key, range(5)) for key in keys}
    assert all(900 < count < 1100 for count in Counter(before.values()).values())
    heirs = Counter(places.find(key, (0, 1, 3, 4)) for key in keys if before[key] == 2)
    assert all(200 < heirs[heir] < 300 for heir in (0, 1, 3, 4))


def test_the_place_of_a_key_depends_on_names_alone_and_not_on_their_order():
    names = [f"math-{number}" for number in range(6)]
    forward, backward = Rendezvous(names), Rendezvous(reversed(names))
    for number in range(100):
        assert names[forward.find(f"{number}", range(6))] == names[::-1][backward.find(f"{number}", range(6))]


def test_the_place_of_a_key_is_the_same_in_another_process():
    code = (
        "from erhpc.routing.rendezvous import Rendezvous\n"
        "print([Rendezvous('abcdef').find(str(key), range(6)) for key in range(50)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == f"{[Rendezvous('abcdef').find(str(key), range(6)) for key in range(50)]}\n"


@pytest.mark.parametrize("key", ["\ud800", "caf\udce9", "é" * 10_000, "\0"])
def test_any_text_may_be_a_key(key):
    places = Rendezvous("abc")
    assert places.find(key, range(3)) == places.find(key, range(3))


@pytest.mark.parametrize("name", ["session", "prefix_affinity"])
def test_requests_without_a_key_go_to_the_least_loaded_member(name):
    assert picks(rule(name, members(3, 1, 2)), range(3), 3, Ask(prefix="", session=None)) == [1, 1, 1]
    assert picks(rule(name, members(0, 0, 0)), range(3), 3, Ask(prefix="", session="")) == [0, 1, 2]


def test_a_session_stays_however_loaded_its_member_is():
    group = members(0, 0, 0)
    sticky = rule("session", group)
    home = sticky.pick(range(3), Ask(session="ann"))
    group[home].in_flight = 10_000
    assert sticky.pick(range(3), Ask(session="ann")) == home


# Prefixes


@settings(max_examples=200, deadline=None, database=None)
@given(LOADS, st.floats(1, 3), st.integers(1, 9), st.text(min_size=1, max_size=5))
def test_no_prefix_goes_to_a_member_past_the_bound(loads, factor, slack, prefix):
    affinity = PrefixAffinity(members(*loads), factor=factor, slack=slack)
    picked = affinity.pick(range(len(loads)), Ask(prefix=prefix))
    assert loads[picked] < factor * sum(loads) / len(loads) + slack


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.text(min_size=1, max_size=5))
def test_below_the_slack_a_prefix_always_finds_its_member(loads, prefix):
    request = Ask(prefix=prefix)
    idle, busy = (rule("prefix_affinity", members(*state)) for state in ([0] * len(loads), loads))
    allowed = range(len(loads))
    assert idle.pick(allowed, request) == busy.pick(allowed, request)


@pytest.mark.parametrize(("factor", "slack"), [(1.0, 1), (1.5, 8), (2.0, 4)])
def test_one_hot_prefix_cannot_overload_a_member(factor, slack):
    group = members(*[0] * 6)
    affinity = PrefixAffinity(group, factor=factor, slack=slack)
    for sent in range(600):
        picked = affinity.pick(range(6), Ask(prefix="hot"))
        assert group[picked].in_flight < factor * sent / 6 + slack
        group[picked].in_flight += 1
    assert max(member.in_flight for member in group) <= factor * 100 + slack


def test_a_hot_prefix_comes_home_once_its_member_has_room():
    group = members(*[0] * 4)
    affinity = rule("prefix_affinity", group)
    home = affinity.pick(range(4), Ask())
    group[home].in_flight = 100
    assert affinity.pick(range(4), Ask()) != home
    group[home].in_flight = 0
    assert affinity.pick(range(4), Ask()) == home


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_picks_the_only_member_allowed(name):
    request = Ask()
    assert picks(rule(name, members(5, 0, 9)), (2,), 5, request) == [2] * 5
