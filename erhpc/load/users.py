"""One user of a closed loop: sends a request, streams the answer, records it, thinks, repeats.

A user does not know the level's plan: it goes on until it is dismissed (ends after its answer) or its task is
cancelled (breaks its answer off). Either way each request it began has exactly one record.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from erhpc.load.exchange import Clock, Exchange, StreamingClient
from erhpc.load.journal import Journal
from erhpc.load.requests import LoadRequest, RequestSource
from erhpc.plan.specs import ClientSpec
from erhpc.results.record import Phase, RequestRecord, Status

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0


class User:
    """User `number` of the level that `spec` describes; `live` is its whole life."""

    def __init__(
        self,
        number: int,
        spec: ClientSpec,
        source: RequestSource,
        client: StreamingClient,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._number = number
        self._spec = spec
        self._source = source
        self._client = client
        self._journal = journal
        self._clock = clock
        self._dismissed = asyncio.Event()
        self._failures_in_row = 0

    async def live(self, start_ns: int) -> None:
        """Send requests, the first at `start_ns`, until dismissed or cancelled."""
        due_ns = start_ns
        try:
            while await self._reach(due_ns):
                record = await self._ask(self._source.draw(), due_ns)
                due_ns = record.end_monotonic_ns + round(self._pause_s(record.status) * 1e9)
        finally:
            self._journal.leave(self._number)

    def dismiss(self) -> None:
        """Send no further request; a pause ends at once, an answer in flight goes on."""
        self._dismissed.set()

    async def _reach(self, due_ns: int) -> bool:
        """Wait until `due_ns`; False if the user was dismissed before."""
        pause_s = (due_ns - self._clock()) / 1e9
        if pause_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._dismissed.wait()
        return not self._dismissed.is_set()

    async def _ask(self, request: LoadRequest, due_ns: int) -> RequestRecord:
        """Send one request and keep its record, also when this task is cancelled meanwhile."""
        phase = self._journal.phase
        exchange = Exchange(sent_ns=self._clock())
        self._journal.open(self._number, exchange)
        try:
            await self._client.send(request, exchange)
        except asyncio.CancelledError:
            exchange.fail("cancelled", "cut at the end of the level, before the answer ended")
            raise
        finally:
            record = self._record(request, exchange, phase, due_ns)
            self._journal.close(record)
        return record

    def _pause_s(self, status: Status) -> float:
        """Think time after an answer; after failures a longer one, so that an error storm is bounded."""
        self._failures_in_row = 0 if status == "ok" else self._failures_in_row + 1
        if status == "ok":
            return self._spec.workload.think_time_s
        return backoff_s(self._failures_in_row)

    def _record(self, request: LoadRequest, exchange: Exchange, phase: Phase, due_ns: int) -> RequestRecord:
        direct = self._spec.direct
        arrivals_ns = exchange.arrivals_ns
        return RequestRecord(
            request_id=f"{self._spec.level}-{self._number}-{request.sequence}",
            phase=phase,
            user=self._number,
            sequence=request.sequence,
            prompt_id=request.prompt_id,
            domain=request.domain,
            expert=exchange.expert or (direct.expert if direct else None),
            replica=exchange.replica or (direct.replica if direct else None),
            scheduled_monotonic_ns=due_ns,
            sent_monotonic_ns=exchange.sent_ns,
            first_token_monotonic_ns=arrivals_ns[0] if arrivals_ns else None,
            last_token_monotonic_ns=arrivals_ns[-1] if arrivals_ns else None,
            end_monotonic_ns=self._clock(),
            token_gaps_us=exchange.gaps_us(),
            tokens_in=exchange.tokens_in,
            tokens_out=exchange.num_frames if exchange.tokens_out is None else exchange.tokens_out,
            max_tokens=request.max_tokens,
            status=_status_of(exchange),
            http_status=exchange.http_status,
            error_kind=exchange.error_kind,
            error_text=exchange.error_text,
        )


def backoff_s(failures_in_row: int) -> float:
    """Pause after the given number of failures in a row, in seconds: 0.1, 0.2, 0.4 and so on up to 5."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(failures_in_row - 1, 10), LONGEST_BACKOFF_S)


def _status_of(exchange: Exchange) -> Status:
    if exchange.error_kind is None:
        return "ok"
    return "cancelled" if exchange.error_kind == "cancelled" else "failed"
