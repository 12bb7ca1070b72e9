"""What comes from a replica reaches whoever asked, byte for byte, however the network cuts it."""

from __future__ import annotations

import asyncio

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


class Asker:
    """Keeps what it is told, in order; after the first piece the rest may come through its sink."""

    def __init__(self, upstream: Upstream, *, has_sink: bool = True) -> None:
        self.came = b""
        self.through_sink = 0
        self.is_over = False
        self.failure: str | None = None
        self.tail = b""
        self._upstream = upstream
        self._has_sink = has_sink

    @property
    def sink(self) -> Asker | None:
        return self if self._has_sink and self.came else None

    def begin(self, head: ResponseHead) -> None:
        assert head.status == 200

    def take(self, data: bytes, *, is_over: bool) -> None:
        assert not self.is_over
        self.came += data
        self.is_over = is_over
        self.tail = self._upstream.tail

    def break_off(self, reason: str) -> None:
        self.failure = reason

    def write(self, data: bytes) -> None:
        self.through_sink += 1
        self.came += data


def frame(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def ask(*, has_sink: bool = True) -> tuple[Upstream, Asker, Wire]:
    """A connection with a request on it."""
    wire = Wire()
    upstream = Upstream(UpstreamPool("http://127.0.0.1:1"))
    upstream.connection_made(wire)
    asker = Asker(upstream, has_sink=has_sink)
    upstream.ask(asker, b"")
    return upstream, asker, wire


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces that end at each of `cuts`."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if end > begin]


chunks = st.lists(st.binary(min_size=1, max_size=80) | st.integers(60, 4200).map(lambda n: b"x" * n), max_size=8)


@given(chunks, st.lists(st.integers(0, 20_000), max_size=12), st.booleans())
def test_an_answer_comes_whole_wherever_it_is_cut(datas: list[bytes], cuts: list[int], has_sink: bool):
    upstream, asker, wire = ask(has_sink=has_sink)
    body = b"".join(map(frame, datas)) + END
    for piece in cut(HEAD + body, cuts):
        upstream.data_received(piece)
    assert (asker.came, asker.is_over, asker.failure) == (body, True, None)
    assert not wire.is_aborted


@given(chunks)
def test_an_answer_comes_whole_chunk_by_chunk(datas: list[bytes]):
    upstream, asker, _ = ask()
    for piece in (HEAD, *map(frame, datas), END):
        upstream.data_received(piece)
    assert (asker.came, asker.is_over) == (b"".join(map(frame, datas)) + END, True)


@pytest.mark.parametrize("num_bytes", [*range(50, 70), *range(250, 280), *range(4070, 4110)])
def test_pieces_of_one_chunk_are_passed_on_whatever_their_length(num_bytes: int):
    upstream, asker, _ = ask()
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
    upstream, asker, wire = ask()
    upstream.data_received(HEAD + frame(b"first") + frame(b"w" * 100))
    upstream.data_received(piece)
    assert asker.failure is not None
    assert wire.is_aborted
    assert asker.came == frame(b"first") + frame(b"w" * 100)


def test_the_tail_holds_what_was_used_though_short_pieces_follow():
    upstream, asker, _ = ask()
    used = b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}}\n\n'
    for piece in (HEAD, frame(b"a" * 300), frame(b"b" * 300), frame(used), frame(b"data: [DONE]\n\n"), END):
        upstream.data_received(piece)
    assert asker.is_over
    assert find_usage(asker.tail) == (7, 5)


def test_it_hears_a_replica_that_sends_the_same_bytes_again():
    upstream, _, _ = ask()
    upstream.data_received(HEAD + frame(b"first"))
    assert upstream.hears()
    assert not upstream.hears()
    for _ in range(2):
        upstream.data_received(bytes(bytearray(frame(b"s" * 100))))  # as the network makes them: never the same object
        assert upstream.hears()
    assert not upstream.hears()


def test_nothing_is_passed_on_once_it_was_given_up():
    upstream, asker, wire = ask()
    upstream.data_received(HEAD + frame(b"first"))
    upstream.abort()
    upstream.data_received(frame(b"s" * 100))
    assert asker.came == frame(b"first")
    assert wire.is_aborted
