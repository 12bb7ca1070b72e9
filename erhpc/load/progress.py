"""How a level goes right now, for a live view; not results, which come from records only.

It does not know where the numbers are shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from erhpc.load.messages import Tally
from erhpc.results.record import Phase

RATE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All client processes of a level together."""

    level: int
    users: int | None
    rate_per_s: float | None
    phase: Phase
    elapsed_s: float
    """Since the level began."""
    in_flight: int
    requests_ok: int
    requests_failed: int
    output_tokens_per_s: float
    """Pieces of answers over the last RATE_WINDOW_S, per second."""
    ttft_p50_s: float | None
    """Median over the clients' medians; None before the first token."""
    commonest_failure: str | None = None


class RateMeter:
    """Tokens per second over the last RATE_WINDOW_S."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, time_s: float, tokens: int) -> float:
        """Note how many tokens have come in all; returns the rate."""
        self._counts.append((time_s, tokens))
        while len(self._counts) > 2 and time_s - self._counts[1][0] >= RATE_WINDOW_S:
            self._counts.popleft()
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def merge_tallies(
    tallies: Sequence[Tally], *, level: int, users: int | None, rate_per_s: float | None, tokens_per_s: float
) -> Progress:
    """What the clients of a level say, as one; `tallies` has at least one."""
    ttfts_s = [tally.ttft_p50_s for tally in tallies if tally.ttft_p50_s is not None]
    failures = [tally.commonest_failure for tally in tallies if tally.commonest_failure]
    return Progress(
        level=level,
        users=users,
        rate_per_s=rate_per_s,
        phase=tallies[0].phase,
        elapsed_s=max(tally.elapsed_s for tally in tallies),
        in_flight=sum(tally.in_flight for tally in tallies),
        requests_ok=sum(tally.requests_ok for tally in tallies),
        requests_failed=sum(tally.requests_failed for tally in tallies),
        output_tokens_per_s=tokens_per_s,
        ttft_p50_s=median(ttfts_s) if ttfts_s else None,
        commonest_failure=failures[0] if failures else None,
    )
