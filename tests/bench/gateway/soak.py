"""Many users for a long time, while replicas die and come back: does the gateway leak, does it lose count?

    python -m tests.bench.gateway.soak minutes=30 users=500

Replicas are processes that are killed and started again on their port, one after the other, never all at once. Most
users read their answers to the end; some leave in the middle of everything, read slowly, or ask nonsense. It needs a C
compiler (the replicas are the mock of the load bench), ends by itself, and exits 1 if a request is lost in the counters
or something is left over in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from erhpc.config import GatewayConfig
from tests.bench.gateway.standing import Standing, standing
from tests.bench.load.environments import cache_folder
from tests.bench.load.mock import NoCompiler, compile_mock
from tests.gateways import LAST, Streams, chat, request

NUM_REPLICAS = 4
NUM_TOKENS = 20
TTFT_MS = 200
GAP_MS = 50
THINK_S = 1.0
LIFE_S = 8.0
"""Mean time between two deaths."""
DEATH_S = 3.0
"""Mean time that a replica is gone."""
PATIENCE_S = 60.0
SAMPLE_S = 1.0
SETTLE_S = 15.0
"""Within this, everything must be over once the users have gone."""
KINDS = {
    "read": 78,
    "leave in the stream": 8,
    "leave before it": 5,
    "leave in the body": 3,
    "read slowly": 3,
    "nonsense": 3,
}
BODY = chat("x", stream=True, max_tokens=NUM_TOKENS)
NONSENSE = request(b'{"model":"auto"}')
FAILED = ("unreachable", "broken", "silent", "no_replica", "overloaded", "refused")
FINISHED = ("ok", "rejected")


@dataclass
class Replica:
    """A mock that can be killed and started again where it was."""

    program: Path
    lifetime_s: float
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [str(self.program), "--ttft-ms", str(TTFT_MS), "--gap-ms", str(GAP_MS), "--port", str(self.port)]
        command += ["--lifetime-s", str(self.lifetime_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@dataclass
class Ledger:
    """What the users did and saw."""

    num_sent: int = 0
    """Requests whose whole head was sent."""
    num_deaths: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Time and resident memory of the gateway."""


class User:
    """Asks again and again over a connection that is kept as long as it lasts."""

    def __init__(self, port: int, draw: random.Random, ledger: Ledger) -> None:
        self._port = port
        self._draw = draw
        self._ledger = ledger
        self._streams: Streams | None = None

    async def live(self, end_s: float) -> None:
        await asyncio.sleep(self._draw.random() * THINK_S)
        while time.monotonic() < end_s:
            [kind] = self._draw.choices(list(KINDS), list(KINDS.values()))
            try:
                async with asyncio.timeout(PATIENCE_S):
                    self._ledger.seen[await self._ask(kind)] += 1
            except (OSError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError
                self._ledger.seen[type(error).__name__] += 1
                self._leave()
            await asyncio.sleep(self._draw.expovariate(1 / THINK_S))
        self._leave()

    async def _ask(self, kind: str) -> str:
        """What became of one request."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = NONSENSE if kind == "nonsense" else request(BODY)
        writer.write(data[:-10] if kind == "leave in the body" else data)
        self._ledger.num_sent += 1
        if kind in ("leave in the body", "leave before it"):
            await asyncio.sleep(self._draw.random() * TTFT_MS / 1e3)
            self._leave()
            return "left"
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        if status != 200:
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            return str(status)
        if kind == "leave in the stream":
            await reader.read(100)
            self._leave()
            return "left"
        return await self._read_stream(reader, slowly=kind == "read slowly")

    async def _read_stream(self, reader: asyncio.StreamReader, *, slowly: bool) -> str:
        end = b""
        while not end.endswith(LAST):
            data = await reader.read(200 if slowly else 65536)
            if not data:
                self._leave()
                return "cut short"
            end = end[-400:] + data
            if slowly:
                await asyncio.sleep(0.02)
        return "error event" if b'"error"' in end else "whole"

    def _leave(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def kill_and_restart(replicas: list[Replica], draw: random.Random, ledger: Ledger) -> None:
    """One replica after the other dies and comes back, for ever."""
    while True:
        await asyncio.sleep(draw.expovariate(1 / LIFE_S))
        replica = draw.choice(replicas)
        replica.kill()
        ledger.num_deaths += 1
        await asyncio.sleep(draw.expovariate(1 / DEATH_S))
        replica.start()


async def watch(gateway: Standing, ledger: Ledger) -> None:
    """Sample its memory, for ever; says each minute how it goes."""
    begin_s = time.monotonic()
    while True:
        ledger.samples.append((time.monotonic() - begin_s, gateway.rss_bytes()))
        if len(ledger.samples) % 60 == 0:
            minutes, rss_mib = len(ledger.samples) / 60, ledger.samples[-1][1] / 2**20
            sockets = f"{gateway.num_sockets()} sockets"
            print(f"{minutes:3.0f} min: {ledger.num_sent} sent, {rss_mib:.1f} MiB, {sockets}", flush=True)
        await asyncio.sleep(SAMPLE_S)


async def soak(gateway: Standing, replicas: list[Replica], ledger: Ledger, minutes: float, users: int) -> None:
    """All users until the time is up, and then until nothing is being answered any more."""
    end_s = time.monotonic() + minutes * 60
    others = [
        asyncio.create_task(kill_and_restart(replicas, random.Random(0), ledger)),
        asyncio.create_task(watch(gateway, ledger)),
    ]
    await asyncio.gather(*(User(gateway.port, random.Random(n + 1), ledger).live(end_s) for n in range(users)))
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    deadline_s = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline_s:
        if not any(gateway.gauges().values()):
            return
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def running_replicas(program: Path, lifetime_s: float) -> Iterator[list[Replica]]:
    replicas = [Replica(program, lifetime_s) for _ in range(NUM_REPLICAS)]
    try:
        for replica in replicas:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.kill()


def report(gateway: Standing, ledger: Ledger, num_sockets: int) -> bool:
    """Print what was found; whether it is as it must be."""
    outcomes, gauges = gateway.outcomes(), gateway.gauges()
    finished, failed = (sum(outcomes.get(name, 0) for name in names) for names in (FINISHED, FAILED))
    cancelled, counted = outcomes.get("cancelled", 0), sum(outcomes.values())
    times_s, rss_bytes = np.array(ledger.samples).T
    settled = times_s >= times_s[-1] / 3
    slope = np.polyfit(times_s[settled] / 60, rss_bytes[settled] / 1024, 1)[0] if settled.sum() > 2 else float("nan")
    print(f"requests sent           {ledger.num_sent:>10}   as users saw them: {dict(ledger.seen.most_common())}")
    print(f"= finished              {finished:>10}   {outcomes}")
    print(f"+ failed                {failed:>10}")
    print(f"+ cancelled             {cancelled:>10}   lost: {ledger.num_sent - counted}")
    print(f"deaths of replicas      {ledger.num_deaths:>10}")
    print(f"RSS at the end, MiB     {rss_bytes[-1] / 2**20:>10.1f}   at the beginning {rss_bytes[0] / 2**20:.1f}")
    print(f"RSS slope, KiB/min      {slope:>+10.1f}   over the last two thirds")
    print(f"sockets at the end      {gateway.num_sockets():>10}   at the beginning {num_sockets}; kept for replicas")
    print(f"gauges at the end       {sum(gauges.values()):>10}")
    return ledger.num_sent == finished + failed + cancelled == counted and not any(gauges.values())


def main(arguments: list[str] | None = None) -> int:
    """Soak and print."""
    given = {"minutes": "30", "users": "500", "relay": "fast"}
    given |= dict(argument.split("=", 1) for argument in (sys.argv[1:] if arguments is None else arguments))
    minutes, users = float(given["minutes"]), int(given["users"])
    try:
        program = compile_mock(cache_folder())
    except NoCompiler as error:
        print(error)
        return 1
    ledger = Ledger()
    with running_replicas(program, minutes * 60 + 120) as replicas:
        urls = [f"http://127.0.0.1:{replica.port}" for replica in replicas]
        with standing(urls, GatewayConfig(relay=given["relay"])) as gateway:
            num_sockets = gateway.num_sockets()
            uvloop.run(soak(gateway, replicas, ledger, minutes, users))
            return 0 if report(gateway, ledger, num_sockets) else 1


if __name__ == "__main__":
    raise SystemExit(main())
