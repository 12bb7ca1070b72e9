"""What the records of a replica show of its steps: how long decodes of so many sequences took, and prompts alone.

Pure: times come as arrays of one clock, in nanoseconds. A decode is seen where, between two events (a request sent, a
first or a last token), nobody's prompt was computed: every token then marks the end of a step of known sequences and
known context. A prompt is seen where nothing else was in flight, from sending to the first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

MIN_STEPS = 4
"""Fewer steps in a row say little: arrivals are a fraction of a step late."""
MIN_FRAMES_SHARE = 0.9
"""Below it, so many arrivals carried several tokens that a gap is no step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """One request of a replica; times in nanoseconds of one clock."""

    sent_ns: int
    first_ns: int | None
    """First token; None: there was none."""
    last_ns: int
    """Last token, or the end of a request without one."""
    gaps_us: Sequence[int]
    """Between arrivals of tokens."""
    tokens_in: int
    tokens_out: int
    is_measured: bool
    """Answered, and sent in the measuring window: what others saw of the steps is not counted."""

    @property
    def has_steps(self) -> bool:
        """Whether its arrivals are those of single tokens, nearly all of them."""
        return len(self.gaps_us) >= MIN_FRAMES_SHARE * max(self.tokens_out - 1, 1)

    def token_times_ns(self) -> Integers:
        """When tokens arrived; empty if none did."""
        if self.first_ns is None:
            return np.empty(0, dtype=np.int64)
        gaps_ns = np.asarray(self.gaps_us, dtype=np.int64) * 1000
        times_ns = self.first_ns + np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(gaps_ns)])
        ends_ns: Integers = np.minimum(times_ns, self.last_ns)  # gaps are rounded
        return ends_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Steps of one kind that were seen, in the order in which they happened."""

    kind: Literal["decode", "prefill"]
    num_seqs: int
    """Sequences that decoded; 1 for a prompt."""
    tokens: float
    """Of context, summed over the sequences and averaged over the steps; of the prompt."""
    seconds: float
    """Of one step; of a prompt, from sending to the first token."""
    num_steps: float
    """How many steps this is the mean of; 1 for a prompt."""


def observe(spans: Iterable[Span]) -> list[Observation]:
    """What the requests of one replica in one level show, in order of time."""
    known = sorted(spans, key=lambda span: span.sent_ns)
    if not known:
        return []
    timed = [*_observe_decodes(known), *_observe_prefills(known)]
    return [observation for _, observation in sorted(timed, key=lambda item: item[0])]


def _observe_prefills(spans: Sequence[Span]) -> Iterable[tuple[int, Observation]]:
    sent = np.array([span.sent_ns for span in spans])
    last = np.sort([span.last_ns for span in spans])
    for span in spans:
        if not span.is_measured or span.first_ns is None:
            continue
        begun_before = np.searchsorted(sent, span.first_ns, side="right")
        over_before = np.searchsorted(last, span.sent_ns, side="right")
        if begun_before - over_before == 1:
            seconds = (span.first_ns - span.sent_ns) / 1e9
            yield (
                span.sent_ns,
                Observation(kind="prefill", num_seqs=1, tokens=span.tokens_in, seconds=seconds, num_steps=1),
            )


def _observe_decodes(spans: Sequence[Span]) -> Iterable[tuple[int, Observation]]:
    answered = [span for span in spans if span.first_ns is not None]
    sent = np.sort([span.sent_ns for span in spans])
    prompt_over = np.sort([span.last_ns if span.first_ns is None else span.first_ns for span in spans])
    first = np.sort([span.first_ns for span in answered if span.first_ns is not None])
    last = np.sort([span.last_ns for span in answered])
    events = np.unique(np.concatenate([sent, prompt_over, last])).astype(np.int64)
    if events.size < 2 or not answered:
        return
    prompts = _count(sent, events) - _count(prompt_over, events)
    decodes = _count(first, events) - _count(last, events)
    times = [span.token_times_ns() for span in answered]
    seen = _collect(answered, times, events, prompts == 0)
    for interval, means in seen.items():
        num_seqs = int(decodes[interval])
        num_steps = median(count for _, count in means)
        context = _sum_context(answered, times, int(events[interval])) + num_seqs * (num_steps - 1) / 2
        seconds = median(step_s for step_s, _ in means)
        yield (
            int(events[interval]),
            Observation(kind="decode", num_seqs=num_seqs, tokens=context, seconds=seconds, num_steps=num_steps),
        )


def _collect(
    spans: Sequence[Span], times: Sequence[Integers], events: Integers, is_calm: npt.NDArray[np.bool_]
) -> dict[int, list[tuple[float, float]]]:
    """By interval between events: mean seconds of its steps and their number, as each measured request saw them."""
    seen: dict[int, list[tuple[float, float]]] = {}
    for span, arrived in zip(spans, times, strict=True):
        if not span.is_measured or not span.has_steps or arrived.size < 2:
            continue
        starts, ends = arrived[:-1], arrived[1:]
        interval = np.clip(np.searchsorted(events, starts, side="right") - 1, 0, events.size - 2)
        inside = (ends <= events[interval + 1]) & is_calm[interval]
        tokens_per_gap = (span.tokens_out - 1) / starts.size
        for number in np.unique(interval[inside]):
            chosen = inside & (interval == number)
            num_steps = float(chosen.sum()) * tokens_per_gap
            if num_steps >= MIN_STEPS:
                lasted_s = float((ends - starts)[chosen].sum()) / 1e9
                seen.setdefault(int(number), []).append((lasted_s / num_steps, num_steps))
    return seen


def _sum_context(spans: Sequence[Span], times: Sequence[Integers], at_ns: int) -> int:
    """Tokens that the first step after `at_ns` attends to: prompts and answers so far of whoever decodes."""
    return sum(
        span.tokens_in + int(np.searchsorted(arrived, at_ns, side="right"))
        for span, arrived in zip(spans, times, strict=True)
        if arrived[0] <= at_ns < span.last_ns
    )


def _count(times_ns: Integers, events: Integers) -> Integers:
    """How many of the sorted times are not after each event."""
    return np.searchsorted(times_ns, events, side="right").astype(np.int64)
