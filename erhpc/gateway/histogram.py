"""A distribution of times as counts up to bounds, in a ledger, in the form that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from erhpc.gateway.ledger import Count, Key, Ledger

BOUNDS_S = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper ends of the buckets in seconds: from what a classification takes to the longest wait."""
_BOUNDS_NS = [round(bound * 1e9) for bound in BOUNDS_S]


def name_cells(name: str) -> Iterator[Key]:
    """The cells that the histogram `name` needs."""
    yield from ((name, "bucket", str(number)) for number in range(len(BOUNDS_S) + 1))
    yield (name, "sum_ns")


class Histogram:
    """Counts times; the cells of `name_cells` must be in the ledger."""

    __slots__ = ("_buckets", "_ledger", "_sum_ns", "name")

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.name = name
        self._ledger = ledger
        self._buckets: Sequence[Count] = [ledger.count((name, "bucket", str(k))) for k in range(len(BOUNDS_S) + 1)]
        self._sum_ns = ledger.count((name, "sum_ns"))

    def add(self, time_ns: int) -> None:
        """Count a time in nanoseconds."""
        self._buckets[bisect_left(_BOUNDS_NS, time_ns)].add()
        self._sum_ns.add(time_ns)

    @property
    def num_values(self) -> int:
        """How many times all processes have counted."""
        return sum(bucket.total for bucket in self._buckets)

    @property
    def mean_s(self) -> float | None:
        """Mean over all processes in seconds; None before the first time."""
        number = self.num_values
        return self._sum_ns.total / number / 1e9 if number else None

    def quantile_s(self, share: float) -> float | None:
        """Upper end of the bucket that holds the quantile, seconds; inf above the last one, None if there is none."""
        counts = [bucket.total for bucket in self._buckets]
        due, seen = share * sum(counts), 0
        for bound_s, count in zip((*BOUNDS_S, float("inf")), counts, strict=True):
            seen += count
            if seen and seen >= due:
                return bound_s
        return None

    def lines(self) -> Iterator[str]:
        """Its samples in Prometheus's text format."""
        seen = 0
        for bound_s, bucket in zip((*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"), self._buckets, strict=True):
            seen += bucket.total
            yield f'{self.name}_bucket{{le="{bound_s}"}} {seen}'
        yield f"{self.name}_sum {self._sum_ns.total / 1e9:.9f}"
        yield f"{self.name}_count {seen}"
