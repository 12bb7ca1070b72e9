"""Which replica of a pool the simulated gateway sends a request to: two of `erhpc.routing.rules`, for many replicas.

Here every choice counts, and a pool may have a thousand replicas: members are kept sorted by load, so that a choice
costs the same however many there are. They pick what the gateway's rules pick (a test holds them against each other).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import Protocol

from erhpc.errors import require_choice

RULES = ("least_loaded", "round_robin")


class Balancer(Protocol):
    """Picks a member of a pool by what is in flight there."""

    def take(self) -> int:
        """The member that gets the next request, which is in flight from now on."""

    def release(self, member: int, count: int) -> None:
        """So many requests are no longer in flight at `member`."""


class OnlyMember:
    """A pool of one replica, as each expert of the paper has."""

    def take(self) -> int:
        """See `Balancer.take`."""
        return 0

    def release(self, member: int, count: int) -> None:
        """See `Balancer.release`."""


class RoundRobin:
    """The members in turn."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._next = 0

    def take(self) -> int:
        """See `Balancer.take`."""
        member = self._next
        self._next = (member + 1) % self._size
        return member

    def release(self, member: int, count: int) -> None:
        """See `Balancer.release`."""


class LeastLoaded:
    """The member with the fewest requests in flight; members that tie take turns."""

    def __init__(self, size: int) -> None:
        self._loads = [0] * size
        self._members: defaultdict[int, list[int]] = defaultdict(list, {0: list(range(size))})
        """Members by load, ascending."""
        self._lowest = 0
        self._first = 0

    def take(self) -> int:
        """See `Balancer.take`."""
        tied = self._members[self._lowest]
        index = bisect_left(tied, self._first)
        member = tied.pop(index if index < len(tied) else 0)
        self._first = member + 1
        self._loads[member] += 1
        insort(self._members[self._lowest + 1], member)
        if not tied:
            self._lowest += 1
        return member

    def release(self, member: int, count: int) -> None:
        """See `Balancer.release`."""
        load = self._loads[member]
        self._loads[member] = less = load - count
        tied = self._members[load]
        del tied[bisect_left(tied, member)]
        insort(self._members[less], member)
        self._lowest = min(self._lowest, less)


def make_balancer(rule: str, size: int) -> Balancer:
    """Build the rule of a pool of `size` replicas. Raises ConfigError for a rule that is not simulated."""
    require_choice("router.replica_policy of a prediction", rule, RULES)
    if size == 1:
        return OnlyMember()
    return RoundRobin(size) if rule == "round_robin" else LeastLoaded(size)
