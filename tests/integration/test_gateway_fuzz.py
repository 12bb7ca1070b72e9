"""Requests at random: none of them makes the gateway fail, hang, or pass on what no client has clearly asked for.

make fuzz            all of them; ERHPC_FUZZ_REQUESTS=100000 ERHPC_FUZZ_SEED=0
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections import Counter

import pytest
import uvloop

from erhpc.config.routing import RELAYS
from tests.fakes.counting_replica import CountingReplica
from tests.fakes.request_fuzzer import Drawn, draw_request
from tests.gateways import Gate, read_response, serving

NUM_REQUESTS = int(os.environ.get("ERHPC_FUZZ_REQUESTS", "5000"))
SEED = int(os.environ.get("ERHPC_FUZZ_SEED", "0"))
NUM_CLIENTS = 32
KEY = "secret"
PATIENCE_S = 20.0
"""Longer than aiohttp goes on reading after it has refused a request."""
FILLER = b"x" * 200 + b"\r\n\r\n" * 5
"""Ends what a broken request has begun, so that it need not be waited for."""
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")

pytestmark = pytest.mark.timeout(120 + NUM_REQUESTS / 50)


@pytest.mark.parametrize("relay", RELAYS)
def test_random_requests_find_no_failure_and_no_hang(relay: str, caplog: pytest.LogCaptureFixture):
    uvloop.run(fuzz(relay, caplog))


async def fuzz(relay: str, caplog: pytest.LogCaptureFixture) -> None:
    statuses: Counter[int] = Counter()
    begin_s = time.monotonic()
    async with (
        CountingReplica().serving() as replica,
        serving([replica.url], relay=relay, policy="session", key=KEY, max_body_bytes=2**20) as gate,
    ):
        shares = [NUM_REQUESTS // NUM_CLIENTS + (number < NUM_REQUESTS % NUM_CLIENTS) for number in range(NUM_CLIENTS)]
        await asyncio.gather(*(send_all(gate, number, share, statuses) for number, share in enumerate(shares)))
        gauges, outcomes = await gate.gauges(), await gate.outcomes()
        took_s = time.monotonic() - begin_s
    print(
        f"{relay}: {NUM_REQUESTS} requests (seed {SEED}) in {took_s:.1f} s: {dict(sorted(statuses.items()))} {outcomes}"
    )
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert {status for status in statuses if status >= 500} == set()
    assert replica.strange == []
    assert set(gauges.values()) == {0.0}
    assert outcomes.keys() <= {"ok", "cancelled", "refused"}
    assert statuses[200] > NUM_REQUESTS / 10


async def send_all(gate: Gate, client: int, num_requests: int, statuses: Counter[int]) -> None:
    """Send one client's share, some requests on each connection."""
    draw = random.Random(f"{SEED} {client}")
    while num_requests > 0:
        drawn = [draw_request(draw, KEY) for _ in range(min(draw.choice((1, 1, 2, 8)), num_requests))]
        num_requests -= len(drawn)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await send(gate, drawn, statuses)
        except TimeoutError:
            pytest.fail(f"client {client} hangs at one of {[request.data[:2000] for request in drawn]}")


async def send(gate: Gate, drawn: list[Drawn], statuses: Counter[int]) -> None:
    """Send requests one behind the other, and read all answers; what has no certain end goes last, each by itself."""
    whole = [request for request in drawn if request.has_end]
    async with gate.visit() as (reader, writer):
        writer.write(b"".join(request.data for request in whole))
        try:
            for request in whole:
                statuses[await read_status(reader, request.method)] += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            statuses[0] += 1  # closed after an earlier answer
    for request in drawn:
        if not request.has_end:
            async with gate.visit() as (reader, writer):
                writer.write(request.data + FILLER)
                writer.write_eof()
                try:
                    found = await reader.read()
                except ConnectionError:
                    found = b""
                statuses.update(int(status) for status in STATUS.findall(found))


async def read_status(reader: asyncio.StreamReader, method: str) -> int:
    """The status of the next answer, which is read to its end."""
    head = await reader.readuntil(b"\r\n\r\n") if method == "HEAD" else (await read_response(reader))[0]
    return int(head.split(b" ")[1])
