"""Agents and rank 0 find each other over TCP, whoever else listens there."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from erhpc.cluster.messages import Done, FreeBands, Hello, Output, ProcessReport, Start, Stop, Survey
from erhpc.cluster.rendezvous import connect_rendezvous, serve_rendezvous
from erhpc.errors import ProcessError

HOST = "127.0.0.1"
KEY = "k" * 64
HELLO = Hello(rank=0, node="n1", address=HOST, coordinator_address=HOST, facts={"gpus": ["A100"]})


class Rank0:
    """The coordinator's end: keeps the links that were admitted."""

    def __init__(self) -> None:
        self.links = asyncio.Queue()
        self.is_over = asyncio.Event()
        self._admitted = asyncio.Queue()

    async def admit(self, link):
        closed = asyncio.get_running_loop().create_future()
        self._admitted.put_nowait(closed)
        self.links.put_nowait(link)
        await self.is_over.wait()
        await link.close()
        closed.set_result(None)

    async def close(self):
        self.is_over.set()
        while not self._admitted.empty():
            await self._admitted.get_nowait()


@contextlib.asynccontextmanager
async def rank0(ports=(0,), key=KEY):
    """Rank 0 listening; yields it and its port."""
    rank = Rank0()
    server = await serve_rendezvous(HOST, ports, key, rank.admit)
    try:
        yield rank, server.sockets[0].getsockname()[1]
    finally:
        await rank.close()
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def stranger(answer):
    """Somebody else's server; yields its port and what it was told."""
    heard, guests = [], []

    async def serve(reader, writer):
        guests.append(asyncio.current_task())
        if answer is not None:
            writer.write(answer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                heard.append(data)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*guests)


@contextlib.asynccontextmanager
async def connected(port, ports=None):
    link = await connect_rendezvous(HOST, ports or [port], KEY, 20)
    try:
        yield link
    finally:
        await link.close()


async def test_messages_arrive_in_order_at_both_ends():
    to_agent = [Survey(bands=[3, 4]), Start(names=["gateway"]), Stop()]
    to_rank0 = [
        HELLO,
        FreeBands(rank=0, bands=[4]),
        ProcessReport(rank=0, name="gateway", phase="ready", seconds=1.5),
        Output(name="client-000", line='{"users": 1}\nnext'),
        Done(rank=0, leftovers=[]),
    ]
    async with rank0() as (rank, port), connected(port) as agent:
        coordinator = await rank.links.get()
        for message in to_agent:
            coordinator.send(message)
        for message in to_rank0:
            agent.send(message)

        assert [await agent.receive() for _ in to_agent] == to_agent
        assert [await coordinator.receive() for _ in to_rank0] == to_rank0
        assert agent.peer_address == agent.local_address == HOST


async def test_the_end_of_a_connection_is_told_and_later_messages_are_swallowed():
    async with rank0() as (rank, port), connected(port) as agent:
        coordinator = await rank.links.get()
        await agent.close()

        assert await coordinator.receive() is None
        coordinator.send(Stop())
        agent.send(HELLO)


async def test_an_agent_waits_for_rank_0_to_listen():
    async with rank0() as (_, port):
        pass
    connecting = asyncio.create_task(connect_rendezvous(HOST, [port], KEY, 20))
    async with rank0([port]) as (rank, _):
        link = await rank.links.get()
        agent = await connecting
        agent.send(HELLO)

        assert await link.receive() == HELLO
        await agent.close()


async def test_both_sides_refuse_a_peer_with_another_key():
    async with rank0(key="x" * 64) as (rank, port):
        with pytest.raises(ProcessError, match=f"no answer from rank 0 at {HOST}, ports {port}"):
            await connect_rendezvous(HOST, [port], KEY, 0.5)

        assert rank.links.empty()


@pytest.mark.parametrize(
    "first_line", [b"agent 00\n", b"coordinator 00\n", b"GET / HTTP/1.1\n\n", b"\n", b"\xff\xff\n"]
)
async def test_rank_0_admits_nobody_who_cannot_prove_the_key(first_line):
    async with rank0() as (rank, port):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(first_line + b"0" * 64 + b"\n")

        await asyncio.wait_for(reader.read(), 10)

        assert rank.links.empty()
        writer.close()


async def test_the_key_itself_is_never_sent():
    async with stranger(b"coordinator 00\n") as (port, heard):
        with pytest.raises(ProcessError):
            await connect_rendezvous(HOST, [port], KEY, 0.5)

        assert heard
        assert KEY.encode() not in b"".join(heard)


@pytest.mark.parametrize(
    "answer",
    [None, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\xfe\xff\x00\n"],
    ids=["silent", "http", "ssh", "binary"],
)
async def test_a_stranger_on_the_first_candidate_port_is_passed_over(answer):
    async with stranger(answer) as (taken, _), rank0([taken, 0]) as (rank, port):
        assert port != taken

        async with connected(port, [taken, port]) as agent:
            agent.send(HELLO)
            assert await (await rank.links.get()).receive() == HELLO


async def test_no_answer_is_an_error_within_the_time_out_that_says_what_to_check():
    started_s = time.monotonic()
    async with stranger(None) as (first, _), stranger(None) as (second, _):
        with pytest.raises(ProcessError, match=r"within 1 s\. Are the nodes allowed .* Set cluster\.interface\."):
            # Each silent stranger would be worth a handshake's patience of its own.
            await connect_rendezvous(HOST, [first, second] * 10, KEY, 1)

    assert time.monotonic() - started_s < 4


async def test_rank_0_without_a_free_candidate_port_says_so():
    async with stranger(None) as (taken, _):
        with pytest.raises(ProcessError, match=f"none of the ports .{taken}.* is free on {HOST}"):
            await serve_rendezvous(HOST, [taken], KEY, Rank0().admit)
