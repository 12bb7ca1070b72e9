"""What comes from a replica reaches whoever asked, byte for byte, however the network cuts it."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.gateway.answers import find_usage
from erhpc.gateway.upstream import Upstream, UpstreamPool
from erhpc.http1.head import ResponseHead

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Wire(asyncio.Transport):
    """The network: remembers what became of the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return 0


MakePair = Callable[[], tuple[socket.socket, socket.socket]]


def make_record_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps writes apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Asker:
    """Keeps what it is told, in order; after the first piece the rest may come through its socket."""

    def __init__(self, upstream: Upstream, make_pair: MakePair, *, has_sink: bool = True) -> None:
        self.through_sink = 0
        self.is_over = False
        self.failure: str | None = None
        self.tail = b""
        self._came = b""
        self._upstream = upstream
        self._has_sink = has_sink
        self._near, self.far = make_pair()
        self._near.setblocking(False)
        self.far.setblocking(False)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._near.close()
        self.far.close()

    @property
    def came(self) -> bytes:
        """What came either way until now."""
        with contextlib.suppress(BlockingIOError):
            while data := self.far.recv(1 << 20):
                self.through_sink += 1
                self._came += data
        return self._came

    @property
    def sink(self) -> int | None:
        return self._near.fileno() if self._has_sink and self._came else None

    def begin(self, head: ResponseHead) -> None:
        assert head.status == 200

    def take(self, data: bytes, *, is_over: bool) -> None:
        assert not self.is_over
        self._came = self.came + data
        self.is_over = is_over
        self.tail = self._upstream.tail

    def break_off(self, reason: str) -> None:
        self.failure = reason


def frame(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.contextmanager
def asked(*, has_sink: bool = True, make_pair: MakePair = make_record_pair) -> Iterator[tuple[Upstream, Asker, Wire]]:
    """A connection with a request on it."""
    wire = Wire()
    upstream = Upstream(UpstreamPool("http://127.0.0.1:1"))
    upstream.connection_made(wire)
    with Asker(upstream, make_pair, has_sink=has_sink) as asker:
        upstream.ask(asker, b"")
        yield upstream, asker, wire


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces that end at each of `cuts`."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if end > begin]


chunks = st.lists(st.binary(min_size=1, max_size=80) | st.integers(60, 4200).map(lambda n: b"x" * n), max_size=8)


@given(chunks, st.lists(st.integers(0, 20_000), max_size=12), st.booleans())
def test_an_answer_comes_whole_wherever_it_is_cut(datas: list[bytes], cuts: list[int], has_sink: bool):
    with asked(has_sink=has_sink) as (upstream, asker, wire):
        body = b"".join(map(frame, datas)) + END
        for piece in cut(HEAD + body, cuts):
            upstream.data_received(piece)
        assert (asker.came, asker.is_over, asker.failure) == (body, True, None)
        assert not wire.is_aborted


@given(chunks)
def test_an_answer_comes_whole_chunk_by_chunk(datas: list[bytes]):
    with asked() as (upstream, asker, _):
        for piece in (HEAD, *map(frame, datas), END):
            upstream.data_received(piece)
        assert (asker.came, asker.is_over) == (b"".join(map(frame, datas)) + END, True)


@pytest.mark.parametrize("num_bytes", [*range(50, 70), *range(250, 280), *range(4070, 4110)])
def test_pieces_of_one_chunk_are_passed_on_whatever_their_length(num_bytes: int):
    with asked() as (upstream, asker, _):
        pieces = [frame(b"y" * num_bytes)] * 3
        for piece in (HEAD + frame(b"first"), *pieces):
            upstream.data_received(piece)
        assert asker.came == frame(b"first") + b"".join(pieces)
        assert asker.through_sink == (3 if 64 <= len(pieces[0]) < 4096 else 0)


@pytest.mark.parametrize(
    "piece",
    [
        frame(b"z" * 100)[:-2] + b"zz",
        b"70\r\n" + b"z" * 100 + b"\r\n" + b"z" * 20,
        b"10\r\n" + b"z" * 100 + b"\r\n",
        b"zz\r\n" + b"z" * 100 + b"\r\n",
    ],
)
def test_a_chunk_that_is_not_as_long_as_it_says_breaks_the_answer_off(piece: bytes):
    with asked() as (upstream, asker, wire):
        upstream.data_received(HEAD + frame(b"first") + frame(b"w" * 100))
        upstream.data_received(piece)
        assert asker.failure is not None
        assert wire.is_aborted
        assert asker.came == frame(b"first") + frame(b"w" * 100)


def test_the_tail_holds_what_was_used_though_short_pieces_follow():
    with asked() as (upstream, asker, _):
        used = b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}}\n\n'
        for piece in (HEAD, frame(b"a" * 300), frame(b"b" * 300), frame(used), frame(b"data: [DONE]\n\n"), END):
            upstream.data_received(piece)
        assert asker.is_over
        assert find_usage(asker.tail) == (7, 5)


def test_it_hears_a_replica_that_sends_the_same_bytes_again():
    with asked() as (upstream, _, _):
        upstream.data_received(HEAD + frame(b"first"))
        assert upstream.hears()
        assert not upstream.hears()
        for _ in range(2):
            again = bytes(bytearray(frame(b"s" * 100)))  # as the network makes them: never the same object
            upstream.data_received(again)
            assert upstream.hears()
        assert not upstream.hears()


def test_nothing_is_passed_on_once_it_was_given_up():
    with asked() as (upstream, asker, wire):
        upstream.data_received(HEAD + frame(b"first"))
        upstream.abort()
        upstream.data_received(frame(b"s" * 100))
        assert asker.came == frame(b"first")
        assert wire.is_aborted


def make_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection, which unlike a SEQPACKET takes a part of what is written when it is nearly full."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return near, server.accept()[0]


@pytest.mark.parametrize(("make_pair", "takes_a_part"), [(make_record_pair, False), (make_tcp_pair, True)])
def test_what_a_full_socket_does_not_take_is_told_in_its_place(make_pair: MakePair, takes_a_part: bool):
    pieces = [frame(b"%04d" % number + b"x" * 1000) for number in range(20_000)]
    with asked(make_pair=make_pair) as (upstream, asker, wire):
        upstream.data_received(HEAD + frame(b"first"))
        told: list[bytes] = []
        asker.take = lambda data, *, is_over: told.append(data)  # type: ignore[method-assign]
        num_passed = 0
        while not told:
            upstream.data_received(pieces[num_passed])
            num_passed += 1
        assert num_passed > 1
        body = frame(b"first") + b"".join(pieces[:num_passed])
        while len(asker.came) + len(told[0]) < len(body):  # the kernel may still hold some of it back
            assert select.select([asker.far], [], [], 5)[0]
        assert asker.came + told[0] == body
        assert (len(told[0]) < len(pieces[0])) == takes_a_part
        assert not wire.is_aborted


def test_what_comes_after_the_client_has_gone_is_told():
    with asked() as (upstream, asker, wire):
        upstream.data_received(HEAD + frame(b"first"))
        asker.far.close()
        told: list[bytes] = []
        asker.take = lambda data, *, is_over: told.append(data)  # type: ignore[method-assign]
        for _ in range(3):
            upstream.data_received(frame(b"s" * 100))
        assert told == [frame(b"s" * 100)] * 3
        assert (asker.failure, wire.is_aborted) == (None, False)
