"""A gateway asked byte by byte: one before given replicas, requests as bytes, and responses read off a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from erhpc.config import GatewayConfig, RouterConfig
from erhpc.gateway.server import serve
from erhpc.plan.specs import Endpoint, GatewaySpec

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "é"}], "stream": True}).encode()
LAST = b"0\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(
    urls: Sequence[str], *, relay: str = "fast", policy: str = "round_robin", key: str | None = None, **limits: float
) -> AsyncIterator[Gate]:
    """A gateway before the replicas `a-0`, `a-1`, ... at these URLs, all of one expert."""
    spec = GatewaySpec(
        host="127.0.0.1",
        port=0,
        endpoints=[
            Endpoint(replica=f"a-{number}", expert="a", model="llama", url=url) for number, url in enumerate(urls)
        ],
        router=RouterConfig(policy=policy),
        limits=GatewayConfig(relay=relay, **limits),  # type: ignore[arg-type]
        artefact=None,
        seed=0,
    )
    async with serve(spec, key=key, expert_key=key) as url:
        yield Gate(int(url.rpartition(":")[2]))


class Gate:
    """The port of a gateway."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Streams]:
        """A connection until the context ends."""
        reader, writer = await self.connect()
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def ask(self, data: bytes) -> tuple[bytes, bytes]:
        """Head and body of the response to `data`, on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(data)
        try:
            return await read_response(reader)
        finally:
            writer.close()

    async def metric(self, name: str) -> float:
        """The first value whose line begins so, 0 if there is none."""
        _, body = await self.ask(request(b"", "/metrics", "GET"))
        lines = [line for line in body.decode().splitlines() if line.startswith(name)]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    async def gauges(self) -> dict[str, float]:
        """What goes up and down: requests admitted, queued, and in flight at each replica."""
        _, body = await self.ask(request(b"", "/metrics", "GET"))
        lines = [line.rpartition(" ") for line in body.decode().splitlines()]
        return {
            name: float(value)
            for name, _, value in lines
            if name.startswith(("erhpc_admitted", "erhpc_queued", "erhpc_in_flight{"))
        }

    async def outcomes(self) -> dict[str, int]:
        """How many requests ended in each way."""
        _, body = await self.ask(request(b"", "/metrics", "GET"))
        found: dict[str, int] = {}
        for line in body.decode().splitlines():
            if line.startswith("erhpc_requests_total{"):
                outcome = line.partition('outcome="')[2].partition('"')[0]
                found[outcome] = found.get(outcome, 0) + int(line.rpartition(" ")[2])
        return found


def request(body: bytes = BODY, path: str = CHAT, method: str = "POST") -> bytes:
    """A plain request."""
    return f"{method} {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def chat(text: str, **fields: object) -> bytes:
    """The body of a chat of one turn."""
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **fields}).encode()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request as they came."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def read_response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a response; a chunked body stays as it is framed, interim heads are left out."""
    head = await reader.readuntil(b"\r\n\r\n")
    while head.split(b" ")[1] == b"100":
        head = await reader.readuntil(b"\r\n\r\n")
    fields = head.lower()
    if b"transfer-encoding: chunked" in fields:
        return head, await reader.readuntil(LAST)
    if b"content-length:" in fields:
        return head, await reader.readexactly(int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0]))
    return head, await reader.read()
