"""Makes the records of a level from what its journal noted. Pure."""

from __future__ import annotations

from erhpc.load.journal import Ended, Journal
from erhpc.plan.specs import ClientSpec
from erhpc.results.record import RequestRecord


def make_records(spec: ClientSpec, journal: Journal) -> list[RequestRecord]:
    """A record for each request that has ended, in the order of their ends."""
    return [_make_record(spec, journal, ended) for ended in journal.ended]


def _make_record(spec: ClientSpec, journal: Journal, ended: Ended) -> RequestRecord:
    request, exchange, direct = ended.request, ended.exchange, spec.direct
    arrivals_ns = exchange.arrivals_ns
    return RequestRecord(
        request_id=f"{spec.level}-{ended.user}-{request.sequence}",
        phase=journal.phase(ended.due_ns),
        worker=spec.worker,
        user=ended.user,
        sequence=request.sequence,
        turn=request.turn,
        prompt_id=request.prompt_id,
        domain=request.domain,
        expert=exchange.expert or (direct.expert if direct else None),
        replica=exchange.replica or (direct.replica if direct else None),
        gateway_queue_s=exchange.gateway_queue_s,
        scheduled_monotonic_ns=ended.due_ns,
        sent_monotonic_ns=exchange.sent_ns,
        latency_from="scheduled" if spec.workload.arrivals.is_open else "sent",
        stamped_by=exchange.stamped_by,
        first_token_monotonic_ns=arrivals_ns[0] if arrivals_ns else None,
        last_token_monotonic_ns=arrivals_ns[-1] if arrivals_ns else None,
        end_monotonic_ns=ended.end_ns,
        token_gaps_us=exchange.gaps_us(),
        frames=exchange.num_frames,
        coalesced=exchange.num_coalesced,
        new_connection=exchange.new_connection,
        tokens_in=exchange.tokens_in,
        tokens_out=exchange.num_frames if exchange.tokens_out is None else exchange.tokens_out,
        max_tokens=request.max_tokens,
        status=ended.status,
        http_status=exchange.http_status,
        error_kind=exchange.error_kind,
        error_text=exchange.error_text,
    )
