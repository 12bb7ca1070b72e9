"""Loads one URL for some seconds and prints what came back as JSON: what the bench of gateways measures with.

    python -m tests.bench.gateway.driver URL --users 1000 --tokens 64 --seconds 8 --ramp-s 2

Users ask again as soon as they have an answer. Times to the first token are the kernel's, so that a busy driver does
not make a gateway look slow.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import time
from dataclasses import dataclass, field

import msgspec
import uvloop

from erhpc.client.exchange import Exchange, Patience
from erhpc.client.native import NativeClient
from erhpc.workload.requests import LoadRequest

WORDS = [
    "the",
    "cluster",
    "of",
    "a",
    "prompt",
    "is",
    "found",
    "by",
    "words",
    "that",
    "it",
    "shares",
    "with",
    "others",
    "such",
    "as",
    "integral",
    "proof",
    "loop",
    "function",
]


@dataclass
class Tally:
    """What happened so far."""

    num_requests: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def ttfts_ms(self, start_ns: int, end_ns: int) -> list[float]:
        """Of all answers whose first token came in [start, end), in order of length."""
        firsts = [(one.arrivals_ns[0], one.sent_ns) for one in self.exchanges if one.arrivals_ns]
        return sorted((first_ns - sent_ns) / 1e6 for first_ns, sent_ns in firsts if start_ns <= first_ns < end_ns)


def main() -> None:
    """Load, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ramp-s", type=float, default=0.0)
    parser.add_argument("--once", action="store_true", help="each user asks once, all at the same time")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(json.dumps(uvloop.run(drive(options))), flush=True)


async def drive(options: argparse.Namespace) -> dict[str, object]:
    """Ask with all users; what came within the window of `seconds` after the ramp, and all first tokens in it."""
    tally, request = Tally(), build_request(options)
    gc.collect()
    gc.disable()  # nothing here makes cycles, and a collection would stop all streams
    async with NativeClient(
        f"{options.url}/v1/chat/completions", patience=Patience(total_s=120, connect_s=30)
    ) as client:
        begin_s, begin_ns = time.monotonic(), time.monotonic_ns()
        until_s = begin_s if options.once else begin_s + options.ramp_s + options.seconds + 0.5
        users = [
            asyncio.create_task(ask(client, request, tally, begin_s + options.ramp_s * number / options.users, until_s))
            for number in range(options.users)
        ]
        if options.once:
            await asyncio.gather(*users)
            return summarise(tally, 0, begin_ns, time.monotonic_ns())
        await asyncio.sleep(options.ramp_s)
        start_ns, num_pieces, num_requests = time.monotonic_ns(), client.num_pieces, tally.num_requests
        await asyncio.sleep(options.seconds)
        end_ns, num_pieces = time.monotonic_ns(), client.num_pieces - num_pieces
        tally.num_requests -= num_requests
        for user in users:
            user.cancel()
        # What had come of an answer by then is read now.
        await asyncio.gather(*users, return_exceptions=True)
        return summarise(tally, num_pieces, start_ns, end_ns)


async def ask(client: NativeClient, request: LoadRequest, tally: Tally, start_s: float, until_s: float) -> None:
    """One user's life."""
    await asyncio.sleep(start_s - time.monotonic())
    while True:
        exchange = Exchange(time.monotonic_ns())
        tally.exchanges.append(exchange)
        await client.send(request, exchange)
        tally.num_requests += 1
        if exchange.error_kind is not None:
            tally.failures[exchange.error_kind] = tally.failures.get(exchange.error_kind, 0) + 1
            await asyncio.sleep(0.01)
        if time.monotonic() >= until_s:
            return


def build_request(options: argparse.Namespace) -> LoadRequest:
    """The request that all users send."""
    prompt = " ".join(WORDS[number % len(WORDS)] for number in range(options.words))
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": options.tokens,
        "stream": True,
    }
    return LoadRequest(0, "bench", "", options.tokens, msgspec.json.encode(body))


def summarise(tally: Tally, num_pieces: int, start_ns: int, end_ns: int) -> dict[str, object]:
    """What is printed."""
    ttfts_ms = tally.ttfts_ms(start_ns, end_ns)
    at = lambda share: ttfts_ms[min(int(share * len(ttfts_ms)), len(ttfts_ms) - 1)] if ttfts_ms else None  # noqa: E731
    return {
        "pieces": num_pieces,
        "requests": tally.num_requests,
        "seconds": (end_ns - start_ns) / 1e9,
        "start_ns": start_ns,
        "end_ns": end_ns,
        "ttft_mean_ms": sum(ttfts_ms) / len(ttfts_ms) if ttfts_ms else None,
        "ttft_p50_ms": at(0.5),
        "ttft_p90_ms": at(0.9),
        "ttft_p99_ms": at(0.99),
        "failures": tally.failures,
    }


if __name__ == "__main__":
    main()
