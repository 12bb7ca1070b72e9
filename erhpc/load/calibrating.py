"""Measures the client of this process against a null expert on this machine: what it costs, and how far it is off.

What becomes of the stamps and CPU seconds is `calibration`'s affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from erhpc.client.exchange import Exchange, StreamingClient
from erhpc.client.selection import make_client
from erhpc.config import LoadConfig, WorkloadConfig
from erhpc.errors import ProcessError
from erhpc.load.calibration import AnswerStamps, Calibration, ClientCost, parse_stamps, summarise_calibration
from erhpc.load.process import garbage_ignored
from erhpc.plan.protocol import API_PATHS
from erhpc.workload.requests import LoadRequest

USERS = 500
"""Enough for half of what one core can take: at a tenth of it a token costs twice as much."""
TTFT_MS = 50
GAP_MS = 20
ANSWER_TOKENS = (64, 8)
"""Two lengths tell the cost of a token from that of a request."""
SETTLE_S = 0.6
MEASURE_S = 2.0
LIFE_S = 60.0
START_TIMEOUT_S = 30.0


@dataclass
class _Book:
    """What came in while it was measured."""

    is_open: bool = False
    exchanges: list[Exchange] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def calibrate(load: LoadConfig) -> Calibration:
    """Measure the client of `load` for some seconds; `load.processes` of them are taken to cost the same each.

    Raises:
        ProcessError: the null expert could not be started, or did not answer.
    """
    async with _null_expert() as url:
        workload = WorkloadConfig(timeout_s=LIFE_S)
        async with make_client(url + API_PATHS["chat"], workload, load, None) as client:
            with garbage_ignored():
                measured = [await _measure(client, tokens) for tokens in ANSWER_TOKENS]
    failures = [failure for book, _ in measured for failure in book.failures]
    exchanges = measured[0][0].exchanges
    answers = [stamps for exchange in exchanges if (stamps := _find_stamps(exchange)) is not None]
    if failures or not answers:
        raise ProcessError(f"the client could not be calibrated: {(failures or ['no answer came'])[0]}")
    return summarise_calibration(
        answers,
        [cost for _, cost in measured],
        stamped_by="kernel" if all(exchange.stamped_by == "kernel" for exchange in exchanges) else "loop",
        users=USERS,
        num_processes=load.num_workers,
    )


def read_capacity(path: Path) -> float | None:
    """Tokens per second that all client processes can take, by the calibration in `path`; None if there is none."""
    if not path.exists():
        return None
    return msgspec.json.decode(path.read_bytes(), type=Calibration).capacity_tokens_per_s


@contextlib.asynccontextmanager
async def _null_expert() -> AsyncIterator[str]:
    """A null expert in a process of its own; it ends with its stdin, so that none is ever left behind."""
    pipe = asyncio.subprocess.PIPE
    pace = ("--ttft-ms", str(TTFT_MS), "--gap-ms", str(GAP_MS), "--max-life-s", str(LIFE_S))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobs.null_expert", *pace, stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None  # both are pipes
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        if not line:
            raise ProcessError("the null expert ended before it listened; its error stands above in this log.")
        yield f"http://127.0.0.1:{msgspec.json.decode(line)['port']}"
    finally:
        process.stdin.close()
        await process.wait()


async def _measure(client: StreamingClient, tokens: int) -> tuple[_Book, ClientCost]:
    """Let all users ask for answers of `tokens` tokens, one after the other, and count once they have settled."""
    book, stop = _Book(), asyncio.Event()
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "?"}], "max_tokens": tokens, "stream": True})
    request = LoadRequest(0, "", "", tokens, body)
    async with asyncio.TaskGroup() as group:
        for number in range(USERS):
            group.create_task(_ask(client, request, book, stop, number / USERS * SETTLE_S / 2))
        await asyncio.sleep(SETTLE_S + TTFT_MS / 1000)
        book.is_open, first_tokens = True, client.num_pieces
        started_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(MEASURE_S)
        book.is_open = False
        taken = client.num_pieces - first_tokens
        cost = ClientCost(
            tokens=taken,
            requests=len(book.exchanges),
            cpu_s=time.process_time() - cpu_s,
            duration_s=time.monotonic() - started_s,
        )
        stop.set()
    return book, cost


async def _ask(client: StreamingClient, request: LoadRequest, book: _Book, stop: asyncio.Event, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    while not stop.is_set() and not book.failures:
        exchange = Exchange(sent_ns=0, raw=[])
        await client.send(request, exchange)
        if exchange.error_kind is not None:
            book.failures.append(f"{exchange.error_kind}: {exchange.error_text}")
        if book.is_open:
            book.exchanges.append(exchange)


def _find_stamps(exchange: Exchange) -> AnswerStamps | None:
    """Arrivals beside the true times of the last token of each; None if a read ended within a token."""
    stamps = [parse_stamps(piece) for piece in exchange.raw or ()]
    true_ns = np.array([found[-1] for found in stamps if found.size], dtype=np.int64)
    if exchange.num_frames != sum(found.size for found in stamps) or len(exchange.arrivals_ns) != true_ns.size:
        return None
    return AnswerStamps(reported_ns=np.array(exchange.arrivals_ns), true_ns=true_ns)
