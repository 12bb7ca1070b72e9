"""TCP between the agents and rank 0: both ends prove that they hold the run's key, then exchange JSON lines.

The key itself never travels: each end answers the other's challenge with an HMAC of it. Several candidate ports
are tried, because the first may be in use by a stranger.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from erhpc.cluster.messages import AgentMessage, CoordinatorMessage
from erhpc.errors import ProcessError

_HANDSHAKE_TIMEOUT_S = 5.0
_RETRY_S = 0.2
_LIMIT_BYTES = 1 << 20
_KEEPALIVE = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 20),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 10),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 4),
)

Incoming = TypeVar("Incoming")


class Link(Generic[Incoming]):
    """One authenticated connection; messages arrive in order, None marks its end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.json.Decoder[Incoming]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        # A node that loses power says nothing; without probes its link would look alive for hours.
        connection = writer.get_extra_info("socket")
        for option, value in _KEEPALIVE:
            connection.setsockopt(*option, value)

    @property
    def local_address(self) -> str:
        """This end's address."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def peer_address(self) -> str:
        """The other end's address."""
        return str(self._writer.get_extra_info("peername")[0])

    def send(self, message: AgentMessage | CoordinatorMessage) -> None:
        """Queue a message; a connection that is gone swallows it (its end shows in `receive`)."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def receive(self) -> Incoming | None:
        """The next message, None when the connection ended."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        return self._decoder.decode(line) if line.endswith(b"\n") else None

    async def close(self) -> None:
        """Send what is queued and close."""
        with contextlib.suppress(OSError):
            await self._writer.drain()
            self._writer.close()
            await self._writer.wait_closed()


async def _authenticate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, role: str) -> None:
    """Prove and demand knowledge of the key; `role` keeps an answer from being reflected."""
    own = secrets.token_hex(16)
    writer.write(f"{role} {own}\n".encode())
    peer_role, _, challenge = (await reader.readline()).decode().strip().partition(" ")
    if peer_role == role or not challenge:
        raise ConnectionError("the peer does not speak erhpc's rendezvous")
    writer.write(_answer(key, role, challenge) + b"\n")
    proof = (await reader.readline()).strip()
    if not hmac.compare_digest(proof, _answer(key, peer_role, own)):
        raise ConnectionError("the peer does not hold this run's key")


def _answer(key: str, role: str, challenge: str) -> bytes:
    return hmac.new(key.encode(), f"{role} {challenge}".encode(), hashlib.sha256).hexdigest().encode()


async def serve_rendezvous(
    host: str, ports: Sequence[int], key: str, on_link: Callable[[Link[AgentMessage]], Awaitable[None]]
) -> asyncio.Server:
    """Listen on the first free candidate port; `on_link` is awaited for every agent that proves itself.

    Raises:
        ProcessError: no candidate port is free.
    """
    decoder = msgspec.json.Decoder(AgentMessage)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(_authenticate(reader, writer, key, "coordinator"), _HANDSHAKE_TIMEOUT_S)
        except (OSError, ValueError, TimeoutError):
            writer.close()
            return
        await on_link(Link(reader, writer, decoder))

    for port in ports:
        with contextlib.suppress(OSError):
            return await asyncio.start_server(accept, host, port, limit=_LIMIT_BYTES)
    raise ProcessError(f"rank 0: none of the ports {list(ports)[:4]}... is free on {host}. Widen cluster.ports.")


async def connect_rendezvous(host: str, ports: Sequence[int], key: str, timeout_s: float) -> Link[CoordinatorMessage]:
    """Find rank 0 among the candidate ports, retrying until it listens.

    Raises:
        ProcessError: nobody with the run's key answered within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                for port in ports:
                    # A closed port refuses at once; the time-out is for a stranger that accepts and stays silent.
                    with contextlib.suppress(OSError, ValueError):
                        async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                            return await _connect(host, port, key)
                await asyncio.sleep(_RETRY_S)
    except TimeoutError:
        raise ProcessError(
            f"no answer from rank 0 at {host}, ports {ports[0]}..., within {timeout_s:.0f} s. "
            "Are the nodes allowed to reach each other on cluster.ports? Several networks? Set cluster.interface."
        ) from None


async def _connect(host: str, port: int, key: str) -> Link[CoordinatorMessage]:
    reader, writer = await asyncio.open_connection(host, port, limit=_LIMIT_BYTES)
    try:
        await _authenticate(reader, writer, key, "agent")
    except BaseException:
        writer.close()
        raise
    return Link(reader, writer, msgspec.json.Decoder(CoordinatorMessage))
