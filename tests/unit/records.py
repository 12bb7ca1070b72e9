"""Records and parts for tests of what is computed from them: one well-behaved request, and changes to it."""

from __future__ import annotations

from array import array
from dataclasses import replace

from erhpc.results.record import ClientPart, RequestRecord

MS = 1_000_000
SECOND = 1_000 * MS


def make_record(sent_ns=0, ttft_ns=100 * MS, gaps_us=(20_000, 20_000, 20_000), **changes):
    """A request that finished well; its last token is as far from its first as the gaps say."""
    first_ns = sent_ns + ttft_ns
    last_ns = first_ns + sum(gaps_us) * 1000
    record = RequestRecord(
        request_id="u0-0",
        phase="measure",
        user=0,
        sequence=0,
        prompt_id="p0",
        domain="math",
        expert="math",
        replica="math-0",
        scheduled_monotonic_ns=sent_ns,
        sent_monotonic_ns=sent_ns,
        first_token_monotonic_ns=first_ns,
        last_token_monotonic_ns=last_ns,
        end_monotonic_ns=last_ns,
        token_gaps_us=array("i", gaps_us),
        frames=len(gaps_us) + 1,
        tokens_in=7,
        tokens_out=len(gaps_us) + 1,
        max_tokens=64,
        status="ok",
        http_status=200,
    )
    return replace(record, **changes)


def make_failed(**changes):
    """A request that got no token."""
    tokenless = {"first_token_monotonic_ns": None, "last_token_monotonic_ns": None, "expert": None, "frames": 0}
    failure = {"status": "failed", "tokens_out": 0, "error_kind": "connect", "http_status": None}
    return make_record(gaps_us=(), **(tokenless | failure | changes))


def make_part(records, start_ns=0, end_ns=SECOND, **changes):
    """What a quiet client measured in a window of one second."""
    part = ClientPart(
        records=list(records),
        window_start_monotonic_ns=start_ns,
        window_end_monotonic_ns=end_ns,
        warmup_s=5.0,
        started_utc="2026-01-01T12:00:00+00:00",
        lag_p99_s=0.001,
        steady=True,
    )
    return replace(part, **changes)


def busy_records(count=8):
    """One user without a pause for `count` requests of 125 ms."""
    return [
        make_record(sent_ns=index * 125 * MS, ttft_ns=65 * MS, request_id=f"u0-{index}", sequence=index)
        for index in range(count)
    ]


def shift_record(record, by_ns):
    """The same request by a clock that shows `by_ns` more."""
    names = ("scheduled", "sent", "first_token", "last_token", "end")
    times = {f"{name}_monotonic_ns": getattr(record, f"{name}_monotonic_ns") for name in names}
    return replace(record, **{name: time if time is None else time + by_ns for name, time in times.items()})
