"""Goodput under too much load, with admission and without.

    python -m tests.bench.gateway.overload --relay fast --seconds 6

A replica has a fixed number of slots and a fixed service time, and lets further requests wait, as vLLM does. Requests
arrive as a Poisson process whatever becomes of them, at shares of the replica's capacity up to three times it. Good is
an answer within the SLO; clients wait longer than that, as people do.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from erhpc.config import GatewayConfig
from tests.bench.gateway.standing import standing
from tests.gateways import Streams, chat, read_response, request

LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
NUM_SLOTS = 16
SERVICE_S = 0.1
CAPACITY_PER_S = NUM_SLOTS / SERVICE_S
SLO_S = 0.5
PATIENCE_S = 5.0
ADMISSION = {
    # Two more than slots, so that a slot need not stay empty while the next request is under way.
    "on": GatewayConfig(max_in_flight=NUM_SLOTS + 2, max_queued=2 * NUM_SLOTS, queue_timeout_s=0.3),
    "off": GatewayConfig(max_in_flight=100_000),
}
JSON = b'{"id":"1","choices":[]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON) + JSON


class SlottedReplica:
    """Answers NUM_SLOTS requests at once, each after SERVICE_S; the others wait in turn."""

    def __init__(self) -> None:
        self.url = ""
        self._num_free = NUM_SLOTS
        self._waiting: deque[_Connection] = deque()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[SlottedReplica]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    def ask(self, connection: _Connection) -> None:
        self._waiting.append(connection)
        self._begin()

    def _begin(self) -> None:
        while self._waiting and self._num_free:
            connection = self._waiting.popleft()
            if not connection.transport.is_closing():
                self._num_free -= 1
                asyncio.get_running_loop().call_later(SERVICE_S, self._end, connection)

    def _end(self, connection: _Connection) -> None:
        self._num_free += 1
        if not connection.transport.is_closing():
            connection.transport.write(WHOLE)
        self._begin()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, replica: SlottedReplica) -> None:
        self._replica = replica
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length.isdigit() and len(body) >= int(length):
            self._buffer = b""
            self._replica.ask(self)


@dataclass
class Tally:
    """What became of the requests of one load."""

    num_sent: int = 0
    answers_s: list[float] = field(default_factory=list)
    refusals_s: list[float] = field(default_factory=list)
    num_given_up: int = 0

    @property
    def num_good(self) -> int:
        return sum(answer_s <= SLO_S for answer_s in self.answers_s)


class Crowd:
    """Clients that come whenever they like, over connections that are kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._kept: list[Streams] = []
        self._data = request(chat("x"))

    async def come(self, tally: Tally) -> None:
        tally.num_sent += 1
        begin_s = time.monotonic()
        streams = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                streams = self._kept.pop() if self._kept else await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = streams
                writer.write(self._data)
                head, _ = await read_response(reader)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            tally.num_given_up += 1
            if streams is not None:
                streams[1].transport.abort()
            return
        took = tally.answers_s if head.startswith(b"HTTP/1.1 200 ") else tally.refusals_s
        took.append(time.monotonic() - begin_s)
        self._kept.append(streams)

    def leave(self) -> None:
        for _, writer in self._kept:
            writer.transport.abort()
        self._kept.clear()


async def load(crowd: Crowd, rate_per_s: float, seconds: float, seed: int) -> Tally:
    """Requests arrive for `seconds`, after a second of the same that is not counted; waits for the last."""
    draw, tally, ignored = random.Random(seed), Tally(), Tally()
    clients: set[asyncio.Task[None]] = set()
    begin_s = due_s = time.monotonic()
    while due_s < begin_s + 1 + seconds:
        due_s += draw.expovariate(rate_per_s)
        await asyncio.sleep(due_s - time.monotonic())
        clients.add(asyncio.create_task(crowd.come(tally if due_s >= begin_s + 1 else ignored)))
    await asyncio.gather(*clients)
    return tally


async def measure(relay: str, admission: str, seconds: float, loads: Sequence[float]) -> list[tuple[float, Tally]]:
    """All loads through a gateway with admission `on` or `off`."""
    limits = ADMISSION[admission]
    limits.relay = relay
    async with SlottedReplica().serving() as replica:
        with standing([replica.url], limits) as gateway:
            crowd, found = Crowd(gateway.port), []
            for number, share in enumerate(loads):
                found.append((share, await load(crowd, share * CAPACITY_PER_S, seconds, number)))
                crowd.leave()
            return found


def table(admission: str, found: list[tuple[float, Tally]], seconds: float) -> str:
    """A line per load."""
    peak = max(tally.num_good for _, tally in found)
    lines = [
        f"admission {admission}: capacity {CAPACITY_PER_S:.0f}/s, good: answered within {SLO_S:g} s",
        "  load  sent/s  good/s  of peak  503/s  given up/s  answer p50, ms  p99, ms  503 p99, ms",
    ]
    for share, tally in found:
        lines.append(
            f"{share:6.1f}{tally.num_sent / seconds:8.0f}{tally.num_good / seconds:8.0f}{tally.num_good / peak:9.0%}"
            f"{len(tally.refusals_s) / seconds:7.0f}{tally.num_given_up / seconds:12.0f}"
            f"{percentile_ms(tally.answers_s, 50):>16}{percentile_ms(tally.answers_s, 99):>9}"
            f"{percentile_ms(tally.refusals_s, 99):>13}"
        )
    return "\n".join(lines)


def percentile_ms(values_s: list[float], share: int) -> str:
    """In milliseconds; a dash if there are too few values."""
    return f"{statistics.quantiles(values_s, n=100)[share - 1] * 1e3:.0f}" if len(values_s) > 1 else "-"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway.overload", description=__doc__.splitlines()[0])
    parser.add_argument("--relay", default="fast")
    parser.add_argument("--admission", choices=tuple(ADMISSION), nargs="+", default=list(ADMISSION))
    words = lambda text: [float(word) for word in text.split(",")]  # noqa: E731
    parser.add_argument("--loads", type=words, default=LOADS, help="as shares of the capacity")
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    for admission in options.admission:
        found = uvloop.run(measure(options.relay, admission, options.seconds, options.loads))
        print(table(admission, found, options.seconds), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
