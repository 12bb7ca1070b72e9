"""The rules: which member of a group a request goes to, be the members experts or the replicas of one expert.

Pure: loads, randomness and what is read of a request are handed in. Who is live, who is full and what a group consists
of is for the caller to say. A new rule is a class here, a line in `make_rule` and a word in `erhpc.config.RULES`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from erhpc.config import RouterConfig
from erhpc.routing.rendezvous import Rendezvous


class Traits(Protocol):
    """What of a request may decide where it goes. Each is made when it is read: a rule pays for what it uses."""

    @property
    def text(self) -> str:
        """The text that is classified; empty if there is none."""

    @property
    def prefix(self) -> str:
        """How the prompt begins (see RouterConfig.prefix_limit_chars); empty if there is no prompt."""

    @property
    def session(self) -> str | None:
        """Whose request it is; None: it does not say."""


class Member(Protocol):
    """What a rule sees of a member; read anew at each choice."""

    @property
    def name(self) -> str:
        """Tells it from the other members, now and in later runs."""

    @property
    def in_flight(self) -> float:
        """How loaded it is: requests being answered now, per replica."""


class Rule(Protocol):
    """Picks one of the members it was built with."""

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """One of `allowed`: indices of members, ascending, at least one."""


class RoundRobin:
    """The members in turn."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """See `Rule.pick`."""
        picked = next((index for index in allowed if index >= self._next), allowed[0])
        self._next = picked + 1
        return picked


class Random:
    """Any member, all equally likely."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """See `Rule.pick`."""
        return allowed[int(self._rng.random() * len(allowed))]


class LeastLoaded:
    """The member with the fewest requests in flight; members that tie take turns."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._first = 0

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """See `Rule.pick`."""
        members, size = self._members, len(self._members)
        best, lowest, soonest = -1, 0.0, 0
        for index in allowed:
            load, turn = members[index].in_flight, (index - self._first) % size
            if best < 0 or load < lowest or (load == lowest and turn < soonest):
                best, lowest, soonest = index, load, turn
        self._first = best + 1
        return best


class PowerOfTwo:
    """The less loaded of two members drawn at random; the first one drawn if they tie.

    Nearly as even as the least loaded, and it does not send everyone to the same member when loads are known late
    (Mitzenmacher, IEEE Transactions on Parallel and Distributed Systems 12(10), 2001).
    """

    def __init__(self, members: Sequence[Member], rng: random.Random) -> None:
        self._members = members
        self._rng = rng

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """See `Rule.pick`."""
        size = len(allowed)
        if size == 1:
            return allowed[0]
        first = int(self._rng.random() * size)
        second = (first + 1 + int(self._rng.random() * (size - 1))) % size
        one, other = allowed[first], allowed[second]
        return other if self._members[other].in_flight < self._members[one].in_flight else one


class PrefixAffinity:
    """The same prefix goes to the same member, whose cache has it, unless that member is too loaded.

    A member is passed over while it has `factor` x (mean of all allowed) + `slack` requests in flight or more; its
    prefixes then go to the member that comes next for each of them. Consistent hashing with bounded loads (Mirrokni,
    Thorup and Zadimoghaddam, arXiv:1608.01350); the slack keeps few requests together, where it costs nothing. With
    `factor` and `slack` of at least 1 the least loaded member is never passed over. A request without a prefix goes
    to the least loaded one.
    """

    def __init__(self, members: Sequence[Member], *, factor: float, slack: int) -> None:
        self._members = members
        self._factor = factor
        self._slack = slack
        self._places = Rendezvous(member.name for member in members)
        self._without_key = LeastLoaded(members)

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """See `Rule.pick`."""
        prefix = traits.prefix
        if not prefix:
            return self._without_key.pick(allowed, traits)
        loads = [self._members[index].in_flight for index in allowed]
        bound = self._factor * sum(loads) / len(loads) + self._slack
        within = [index for index, load in zip(allowed, loads, strict=True) if load < bound]
        return self._places.find(prefix, within)


class Session:
    """The same session goes to the same member, however loaded it is; without a key, to the least loaded one."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._places = Rendezvous(member.name for member in members)
        self._without_key = LeastLoaded(members)

    def pick(self, allowed: Sequence[int], traits: Traits) -> int:
        """See `Rule.pick`."""
        key = traits.session
        return self._places.find(key, allowed) if key else self._without_key.pick(allowed, traits)


def make_rule(name: str, members: Sequence[Member], config: RouterConfig, rng: random.Random) -> Rule:
    """Build the rule `name`, one of `erhpc.config.RULES`."""
    match name:
        case "round_robin":
            return RoundRobin()
        case "random":
            return Random(rng)
        case "power_of_two":
            return PowerOfTwo(members, rng)
        case "prefix_affinity":
            return PrefixAffinity(members, factor=config.affinity_factor, slack=config.affinity_slack)
        case "session":
            return Session(members)
        case _:
            return LeastLoaded(members)
