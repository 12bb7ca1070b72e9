"""Runs with made-up numbers, written through the store as a real run would be: for tests of what reads results."""

from __future__ import annotations

from array import array
from pathlib import Path

from erhpc.config import SloConfig, WorkloadConfig
from erhpc.results.paths import RunPaths
from erhpc.results.record import ClientPart, LevelIdentity, RequestRecord
from erhpc.results.store import append_level
from erhpc.results.summary import summarise_level

SECOND_NS = 1_000_000_000
WINDOW_S = 4
BOOT_NS = 2**60 + 1
"""A clock reading that a float cannot hold: the store must keep every digit."""
EXPERTS = ("code", "law", "math", "medicine")


def make_request(user: int, sequence: int, sent_s: float, *, num_tokens: int, ttft_s: float, gap_us: int):
    sent_ns = BOOT_NS + round(sent_s * SECOND_NS)
    first_ns = sent_ns + round(ttft_s * SECOND_NS)
    last_ns = first_ns + (num_tokens - 1) * gap_us * 1000
    expert = EXPERTS[(user + sequence * sequence) % len(EXPERTS)]
    return RequestRecord(
        request_id=f"u{user}-{sequence}",
        phase="measure" if sent_s < WINDOW_S else "drain",
        user=user,
        sequence=sequence,
        prompt_id=f"p{user}",
        domain=expert,
        expert=expert,
        replica=f"{expert}-0",
        scheduled_monotonic_ns=sent_ns,
        sent_monotonic_ns=sent_ns,
        first_token_monotonic_ns=first_ns,
        last_token_monotonic_ns=last_ns,
        end_monotonic_ns=last_ns,
        token_gaps_us=array("i", [gap_us] * (num_tokens - 1)),
        frames=num_tokens,
        tokens_in=100,
        tokens_out=num_tokens,
        max_tokens=num_tokens,
        status="ok",
        http_status=200,
    )


def make_part(users: int, *, speed: float = 1.0, interrupted: bool = False) -> ClientPart:
    """Every user asks without a pause; latency grows with the number of users."""
    ttft_s = 0.06 * (1 + users / 100) / speed
    gap_us = round(15_000 * (1 + users / 250) / speed)
    records = []
    for user in range(users):
        sent_s, sequence = 0.0, 0
        while sent_s < WINDOW_S:
            own_ttft_s = ttft_s * (1 + (user * 7 + sequence) % 10 / 10)
            records.append(make_request(user, sequence, sent_s, num_tokens=16, ttft_s=own_ttft_s, gap_us=gap_us))
            sent_s += own_ttft_s + 15 * gap_us / 1e6
            sequence += 1
    return ClientPart(
        records=records,
        window_start_monotonic_ns=BOOT_NS,
        window_end_monotonic_ns=BOOT_NS + WINDOW_S * SECOND_NS,
        warmup_s=1.0,
        started_utc="2026-01-01T00:00:00+00:00",
        lag_p99_s=0.001,
        steady=True,
        interrupted=interrupted,
    )


def summarise(identity: LevelIdentity, parts: list[ClientPart], **facts):
    """The row of a closed loop without an SLO, unless `facts` say something else."""
    usual = {
        "gateway_lag_p99_s": None,
        "engine_lag_p99_s": None,
        "reasons": [],
        "slo": SloConfig(),
        "workload": WorkloadConfig(),
        "capacity_tokens_per_s": None,
    }
    return summarise_level(identity, parts, **(usual | facts))


def write_run(
    folder: Path,
    *,
    experiment: str = "quickstart",
    engine: str = "emulated",
    users: tuple[int, ...] = (1, 10, 40),
    speed: float = 1.0,
    reasons: tuple[str, ...] = (),
) -> RunPaths:
    """A finished run in `folder`; `reasons` make its last level invalid."""
    paths = RunPaths(folder)
    folder.mkdir(parents=True)
    for level, count in enumerate(users):
        identity = LevelIdentity(
            experiment=experiment,
            run_id=folder.name,
            engine=engine,
            level=level,
            users=count,
            num_replicas=4,
            num_gpus=8,
        )
        part = make_part(count, speed=speed)
        given = list(reasons) if level == len(users) - 1 else []
        row = summarise(identity, [part], gateway_lag_p99_s=0.001, reasons=given)
        append_level(paths, identity, [part], row)
    return paths
