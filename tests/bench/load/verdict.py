"""Holds the medians against the targets of the load generator. It prints ratios and judges; nothing here asserts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.load.measurement import Measurement
from tests.bench.load.tables import COLUMNS, Value, align, clients_of, median_of
from tests.bench.load.truth import possible_tokens_per_s

USABLE_CPU_SHARE = 0.85
"""As a level's verdict has it: a client process that is busier has queues of its own."""
NODE_CORES = 16
NOISE_MS = 0.05
"""Two clients whose errors differ by less are as good as each other."""
NOISE_SHARE = 0.01


@dataclass(frozen=True)
class Target:
    """At `users` (None: at every level), `value` over `allowed` must not exceed 1."""

    name: str
    users: int | None
    value: Value
    allowed: float


def _relative(name: str, quantile: str) -> Value:
    """Absolute error over the truth."""

    def value(measurement: Measurement) -> float | None:
        reported = getattr(getattr(measurement, f"reported_{name}"), f"{quantile}_ms")
        true = getattr(getattr(measurement, f"true_{name}"), f"{quantile}_ms")
        return None if reported is None or true is None else abs(reported - true) / true

    return value


def _missing_users(measurement: Measurement) -> float:
    return max(0.0, 1 - measurement.held / measurement.users)


TARGETS = (
    Target("TTFT mean within 1 %", 1000, _relative("ttft", "mean"), 0.01),
    Target("TTFT p99 within 1 %", 1000, _relative("ttft", "p99"), 0.01),
    Target("gap p99 within 5 %", 1000, _relative("gap", "p99"), 0.05),
    Target("CPU at most 14 us/token", 1000, lambda m: m.cpu_us_per_token, 14.0),
    Target("TTFT mean within 3 %", 2000, _relative("ttft", "mean"), 0.03),
    Target("TTFT p99 within 3 %", 2000, _relative("ttft", "p99"), 0.03),
    Target("gap p99 within 3 %", 2000, _relative("gap", "p99"), 0.03),
    Target("users held within 1 %", None, _missing_users, 0.01),
)


def _errors(title: str) -> Value:
    [column] = [column for column in COLUMNS if column.title == title]

    def value(measurement: Measurement) -> float | None:
        found = column.value(measurement)
        return None if found is None else abs(found)

    return value


# Name, value (less is better), difference that counts.
CONTESTS: tuple[tuple[str, Value, float], ...] = (
    ("TTFT mean", _errors("TTFT mean"), NOISE_MS),
    ("TTFT p99", _errors("TTFT p99"), NOISE_MS),
    ("gap p99", _errors("gap p99"), NOISE_MS),
    ("token rate", lambda m: 1 - m.possible_share, NOISE_SHARE),
    ("users held", _missing_users, NOISE_SHARE),
    ("CPU us/token", lambda m: m.cpu_us_per_token, 0.0),
    ("RSS", lambda m: float(m.peak_rss_bytes), 0.0),
)


def verdict_tables(measurements: Sequence[Measurement]) -> str:
    """The targets for each of erhpc's clients, then each of them against each peer."""
    ours = [name for name in clients_of(measurements) if name.startswith("erhpc")]
    targets = [row for client in ours for row in _target_rows(measurements, client)]
    contests = [row for client in ours for row in _contest_rows(measurements, client)]
    text = "\ntargets (medians; a ratio up to 1 is met)\n"
    text += align([["client", "users", "target", "value", "ratio", "met"], *targets])
    if contests:
        text += "\n\nagainst the peers (medians; errors as absolute values)\n"
        text += align([["client", "users", "peer", "better or alike", "worse in"], *contests])
    return text


def _target_rows(measurements: Sequence[Measurement], client: str) -> Iterator[list[str]]:
    for target in TARGETS:
        levels = [target.users] if target.users is not None else sorted({m.users for m in measurements})
        for users in levels:
            value = median_of((m for m in measurements if (m.client, m.users) == (client, users)), target.value)
            if value is None:
                continue
            ratio = value / target.allowed
            yield [client, f"{users:,}", target.name, f"{value:.4f}", f"{ratio:.2f}", "yes" if ratio <= 1 else "NO"]


def _contest_rows(measurements: Sequence[Measurement], client: str) -> Iterator[list[str]]:
    for users in sorted({measurement.users for measurement in measurements}):
        level = [measurement for measurement in measurements if measurement.users == users]
        for peer in clients_of(level):
            if peer.startswith("erhpc"):
                continue
            held, worse = 0, []
            for name, value, noise in CONTESTS:
                our, their = (median_of((m for m in level if m.client == who), value) for who in (client, peer))
                if our is None or their is None:
                    continue
                held += our <= their + noise
                worse += [] if our <= their + noise else [name]
            yield [client, f"{users:,}", peer, f"{held} of {held + len(worse)}", ", ".join(worse) or "nothing"]


def extrapolation(measurements: Sequence[Measurement], tokens: int, ttft_ms: float, gap_ms: float) -> str:
    """How many such users erhpc could play on one node, from what a token costs at the largest level measured.

    Cores of a node share memory bandwidth and the kernel's network stack, which this does not know.
    """
    mine = [m for m in measurements if m.client.startswith("erhpc")]
    if not mine:
        return ""
    largest = max(m.users for m in mine)
    per_user = possible_tokens_per_s(1, tokens, ttft_ms, gap_ms)
    lines = [f"\none process per core at {USABLE_CPU_SHARE:.0%}, {per_user:.1f} tokens/s per user, one core left over"]
    for client in dict.fromkeys(m.client for m in mine if m.users == largest):
        us = statistics.median(m.cpu_us_per_token for m in mine if (m.client, m.users) == (client, largest))
        per_core = USABLE_CPU_SHARE * 1e6 / (us * per_user)
        lines.append(
            f"  {client}: {us:.1f} us/token at {largest:,} users: {per_core:,.0f} users per core, "
            f"{(NODE_CORES - 1) * per_core:,.0f} on a node of {NODE_CORES} cores"
        )
    return "\n".join(lines)
