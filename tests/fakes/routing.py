"""What the router reads, made up: replicas, requests, and a classifier that goes by keywords."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class State:
    """A replica whose load and life a test sets."""

    name: str
    expert: str
    in_flight: int = 0
    live: bool = True


def fleet(*experts: str) -> list[State]:
    """One replica for each name; replicas of one expert are numbered."""
    return [State(f"{expert}-{experts[:index].count(expert)}", expert) for index, expert in enumerate(experts)]


@dataclass(frozen=True)
class Ask:
    """A request that says all a policy may want to know."""

    text: str = "a sum"
    prefix: str = "You are kind."
    session: str | None = "ann"


class Unread:
    """A request that nothing may be read of."""

    def _refuse(self) -> str:
        raise AssertionError("this policy has no business with the request")

    text = prefix = session = property(_refuse)


@dataclass(frozen=True)
class Found:
    """A cluster and the distances to all."""

    cluster: int | None
    distances2: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class KeywordClassifier:
    """The cluster of the first keyword in the text; the others are the farther, the higher their number."""

    def __init__(self, *keywords: str) -> None:
        self.keywords = keywords

    @property
    def num_clusters(self) -> int:
        return len(self.keywords)

    def classify(self, text: str) -> Found:
        distances2 = np.arange(1, len(self.keywords) + 1, dtype=np.float32)
        for number, keyword in enumerate(self.keywords):
            if keyword in text:
                distances2[number] = 0
                return Found(number, distances2)
        return Found(None, distances2)
