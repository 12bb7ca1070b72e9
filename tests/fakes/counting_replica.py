"""A replica on bare protocols that counts what reaches it, fast enough for tens of thousands of requests.

What it answers is told by a word in the body of the request: see `ANSWERS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.streams import CHUNKED_HEAD, DONE, LAST_CHUNK, chunk

JSON = b'{"id":"1","choices":[]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON) + JSON
EVENT = chunk(b'data: {"choices":[]}\n\n')
STREAM = CHUNKED_HEAD + EVENT + chunk(DONE) + LAST_CHUNK
FLOOD = chunk(b"data: " + b"x" * 32_000 + b"\n\n")
BIG = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n" + b" " * 1_000_000
ANSWERS = {
    b"hang": b"",
    b"linger": CHUNKED_HEAD + EVENT,
    b"flood": CHUNKED_HEAD,
    b"big": BIG,
    b'"stream": true': STREAM,
    b"": WHOLE,
}
"""What is answered to a body with this word, the first that is found: nothing; one event and then nothing; events as
fast as they are taken, for ever; 1 MB; a short stream, which clients ask for in these bytes; a short JSON answer.
"""


class CountingReplica:
    """Serves while `serving`; all that it has seen since the start."""

    def __init__(self) -> None:
        self.url = ""
        self.num_requests = 0
        self.num_connections = 0
        self.num_open = 0
        """Connections that are open now."""
        self.flooded_bytes = 0
        self.bodies: deque[bytes] = deque(maxlen=1000)
        self.strange: list[bytes] = []
        """Heads that the gateway has no business to send."""
        self.last_lost_s = 0.0
        """When a connection was lost last, on the monotonic clock."""

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[CountingReplica]:
        """Listen on the loopback until the context ends."""
        loop = asyncio.get_running_loop()
        connections: set[_Connection] = set()
        server = await loop.create_server(lambda: _Connection(self, connections), "127.0.0.1", port, backlog=4096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for connection in list(connections):
                connection.transport.abort()


class _Connection(asyncio.Protocol):
    """One connection of the gateway."""

    transport: asyncio.Transport

    def __init__(self, replica: CountingReplica, connections: set[_Connection]) -> None:
        self._replica = replica
        self._connections = connections
        self._buffer = b""
        self._floods = self._is_full = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._connections.add(self)
        self._replica.num_connections += 1
        self._replica.num_open += 1

    def connection_lost(self, error: Exception | None) -> None:
        self._floods = False
        self._connections.discard(self)
        self._replica.num_open -= 1
        self._replica.last_lost_s = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            head = self._buffer[:end]
            digits = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
            if head.startswith(b"GET /health HTTP/1.1\r\n"):
                self._buffer = self._buffer[end:]
                self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            if not head.startswith(b"POST /") or b"\r\ntransfer-encoding" in head.lower() or not digits.isdigit():
                self._replica.strange.append(head)
                self.transport.abort()
                return
            if len(self._buffer) < end + int(digits):
                return
            body, self._buffer = self._buffer[end : end + int(digits)], self._buffer[end + int(digits) :]
            self._answer(body)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._flood()

    def _answer(self, body: bytes) -> None:
        replica = self._replica
        replica.num_requests += 1
        replica.bodies.append(body)
        word = next(word for word in ANSWERS if word in body)
        self.transport.write(ANSWERS[word])
        if word == b"flood":
            self._floods = True
            self._flood()

    def _flood(self) -> None:
        while self._floods and not self._is_full and not self.transport.is_closing():
            self.transport.write(FLOOD)
            self._replica.flooded_bytes += len(FLOOD)
