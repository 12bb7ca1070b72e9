"""Real sockets on loopback: what an inbox reads, and that it loses nothing between looks and rests."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from erhpc.client import pace
from erhpc.client.exchange import Exchange
from erhpc.client.inbox import MAX_READY, MAX_UNREAD, Inbox
from erhpc.client.stamps import KernelClock, request_stamps
from erhpc.client.wire import SocketWire
from tests.fakes.gateway_house import until
from tests.streams import CHUNKED_HEAD, answer, chat, chunk

pytestmark = pytest.mark.timeout(60)


class Line:
    """A wire and the server's end of it."""

    def __init__(self, inbox: Inbox, listener: socket.socket) -> None:
        connection = socket.create_connection(listener.getsockname())
        connection.setblocking(False)
        assert request_stamps(connection)
        self.server, _ = listener.accept()
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.exchange = Exchange(sent_ns=0)
        self.wire = SocketWire(connection, inbox, time.monotonic_ns)
        self.over = self.wire.begin(self.exchange, b"x")

    async def has_begun(self) -> bool:
        """Whether the client knows of a token."""
        return self.exchange.num_frames > 0


class Lines:
    """`number` lines of one inbox, open while the context is."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> list[Line]:
        self.inbox = Inbox(KernelClock())
        with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
            self._lines = [Line(self.inbox, listener) for _ in range(self._number)]
        return self._lines

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.wire.close()
            line.server.close()
        self.inbox.close()


async def test_more_sockets_than_one_look_takes_are_all_read():
    with Lines(MAX_READY + 50) as lines:
        for line in lines:
            line.server.sendall(b"".join(answer("a", "b")))
        await asyncio.wait_for(asyncio.gather(*(line.over for line in lines)), 20)
        assert {line.exchange.num_frames for line in lines} == {2}


async def test_every_piece_keeps_its_own_stamp_while_looks_rest():
    gap_s, num_pieces = 0.02, 60
    with Lines(30) as lines:
        for line in lines:
            line.server.sendall(CHUNKED_HEAD + chunk(chat("a")))
        sent_ns = []
        for _ in range(num_pieces):
            await asyncio.sleep(gap_s)
            sent_ns.append(time.monotonic_ns())
            for line in lines:
                line.server.sendall(chunk(chat("b")))
        for line in lines:
            line.server.sendall(b"".join(answer("c")[2:]))
        await asyncio.wait_for(asyncio.gather(*(line.over for line in lines)), 20)

        for line in lines:
            assert line.exchange.num_frames >= num_pieces + 1
            arrivals_ns = list(line.exchange.arrivals_ns)[1 : num_pieces + 1]
            after_ns = [arrived - sent for arrived, sent in zip(arrivals_ns, sent_ns, strict=True)]
            assert min(after_ns) >= 0
            assert sorted(after_ns)[num_pieces // 2] < gap_s * 1e9 / 2


async def test_unread_pieces_of_an_endless_answer_stay_few():
    with Lines(1) as [line]:
        line.server.sendall(CHUNKED_HEAD)
        most = 0
        for _ in range(3 * MAX_UNREAD):
            line.server.sendall(chunk(chat("a")))
            await asyncio.sleep(0)
            most = max(most, len(line.wire.pieces))
        assert most < MAX_UNREAD
        line.server.sendall(b"".join(answer("c")[2:]))
        await asyncio.wait_for(line.over, 5)
        assert line.exchange.num_frames == 3 * MAX_UNREAD + 1


async def test_a_closed_connection_is_noticed_by_whoever_waits_for_its_answer():
    with Lines(2) as [line, other]:
        line.server.recv(16)
        line.server.sendall(CHUNKED_HEAD + chunk(chat("a")))
        line.server.close()
        await asyncio.wait_for(line.over, 5)
        assert line.wire.loss == "the server closed the connection"
        assert line.exchange.num_frames == 1
        assert other.wire.is_open


async def test_answers_that_end_together_are_all_taken_apart_however_little_time_there_is(monkeypatch):
    monkeypatch.setattr(pace, "MIN_LOOK_NS", 0)
    monkeypatch.setattr(pace, "MAX_LOOK_NS", 0)
    with Lines(60) as lines:
        for line in lines:
            line.server.sendall(b"".join(answer("a", "b")))
        await asyncio.wait_for(asyncio.gather(*(line.over for line in lines)), 20)
        assert {line.exchange.num_frames for line in lines} == {2}


async def test_the_sockets_are_read_while_answers_that_ended_wait_to_be_taken_apart(monkeypatch):
    monkeypatch.setattr(pace, "MIN_LOOK_NS", 0)
    monkeypatch.setattr(pace, "MAX_LOOK_NS", 0)
    num_tokens = 10
    with Lines(40) as [*others, line]:
        line.server.sendall(CHUNKED_HEAD + chunk(chat("a")))
        await until(line.has_begun)
        for other in others:
            other.server.sendall(b"".join(answer("a", "b")))
        for _ in range(num_tokens):
            line.server.sendall(chunk(chat("b")))
            await asyncio.sleep(0)  # one answer is taken apart in each turn
            await asyncio.sleep(0)
        assert not all(other.over.done() for other in others)
        assert len(line.wire.pieces) >= num_tokens - 1
        line.server.sendall(b"".join(answer("c")[2:]))
        await asyncio.wait_for(asyncio.gather(*(each.over for each in (line, *others))), 20)
        assert line.exchange.num_frames == num_tokens + 2


async def test_a_connection_on_which_something_came_that_waits_to_be_looked_at_takes_no_request(monkeypatch):
    monkeypatch.setattr(pace, "MIN_LOOK_NS", 0)
    monkeypatch.setattr(pace, "MAX_LOOK_NS", 0)
    with Lines(20) as [*others, line]:
        line.server.sendall(b"".join(answer("a")))
        await asyncio.wait_for(line.over, 5)
        line.wire.release()
        assert line.wire.is_reusable
        for other in others:
            other.server.sendall(b"".join(answer("a")))
        line.server.sendall(b"".join(answer("nobody asked for this")))
        async with asyncio.timeout(5):
            while not line.wire.pieces:  # one answer is taken apart in each turn, this one last
                assert line.wire.is_open
                await asyncio.sleep(0)
        assert line.wire.is_open
        assert not line.wire.is_reusable
        await until(lambda: asyncio.sleep(0, not line.wire.is_open))
        assert line.wire.loss == "the server sent what nobody asked for"
