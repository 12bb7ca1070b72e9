from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.http1.body import MAX_INFLATED_BYTES, MAX_LINE_BYTES, Body, BodyError, ChunkedBody, make_body
from erhpc.http1.head import parse_head
from tests.streams import LAST_CHUNK, chunk, cut


def body_of(*fields: str) -> Body:
    return make_body(parse_head("\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode()))


CHUNKED = "Transfer-Encoding: chunked"


def fed(body: Body, *pieces: bytes) -> bytes:
    return b"".join(body.feed(piece) for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.lists(st.integers(0, 400), max_size=9), st.binary())
def test_chunks_are_joined_wherever_they_are_cut(payloads: list[bytes], places: list[int], excess: bytes):
    body = body_of(CHUNKED)
    data = b"".join(map(chunk, payloads)) + LAST_CHUNK
    assert fed(body, *cut(data + excess, places)) == b"".join(payloads)
    assert body.is_over
    assert body.has_excess is bool(excess)


def test_a_chunk_may_have_extensions_leading_zeros_and_lone_line_feeds():
    body = body_of(CHUNKED)
    assert (
        fed(body, b'0005;a="b;c"\r\nhello\r\n', b"2 \nyo\n", b"0;x\r\nTrailer: 1\r\n", b"More: 2\r\n\r\n") == b"helloyo"
    )
    assert body.is_over
    assert not body.has_excess


@pytest.mark.parametrize(
    "data",
    [b"\r\n", b"x\r\n", b"-5\r\n", b"+5\r\n", b"0x5\r\n", b"5 5\r\n", b";a\r\n", b"1" * 17 + b"\r\n", b"\xd9\xa3\r\n"],
)
def test_a_chunk_size_is_up_to_16_hexadecimal_digits(data: bytes):
    with pytest.raises(BodyError, match="no chunk size"):
        body_of(CHUNKED).feed(data)


def test_a_chunk_that_is_longer_than_it_says_is_refused():
    with pytest.raises(BodyError, match="longer than it says"):
        body_of(CHUNKED).feed(b"4\r\nhello\r\n")


@pytest.mark.parametrize("start", [b"5", b"0\r\nTrailer: "])
def test_a_line_of_the_framing_has_a_limit(start: bytes):
    with pytest.raises(BodyError, match="longer than"):
        fed(body_of(CHUNKED), start, *[b"x" * 1024] * (MAX_LINE_BYTES // 1024 + 1))


def test_a_chunk_is_given_as_far_as_it_came():
    body = body_of(CHUNKED)
    assert [body.feed(piece) for piece in (b"a\r\nhel", b"lo", b" you!", b"\r", b"\n0\r\n\r", b"\n")] == [
        b"hel",
        b"lo",
        b" you!",
        b"",
        b"",
        b"",
    ]
    assert body.is_over


def test_a_body_says_when_a_chunk_is_next():
    body = ChunkedBody()
    states = [body.expects_chunk]
    for piece in (b"5", b"\r\nhel", b"lo", b"\r\n", b"0\r\n", b"\r\n"):
        body.feed(piece)
        states.append(body.expects_chunk)
    assert states == [True, False, False, False, True, False, False]


def test_a_length_ends_the_body_and_the_rest_is_excess():
    body = body_of("Content-Length: 5")
    assert (body.feed(b"hel"), body.is_over) == (b"hel", False)
    assert (body.feed(b"lo"), body.is_over, body.has_excess) == (b"lo", True, False)
    assert (body.feed(b"more"), body.has_excess) == (b"", True)
    assert body_of("Content-Length: 0").is_over


def test_without_framing_the_body_lasts_as_long_as_the_connection():
    body = body_of()
    assert fed(body, b"a", b"b") == b"ab"
    assert not body.is_over


@pytest.mark.parametrize(("coding", "wbits"), [("gzip", 31), ("x-gzip", 31), ("deflate", 15), ("GZIP", 31)])
def test_a_compressed_body_is_inflated_as_it_comes(coding: str, wbits: int):
    squeeze = zlib.compressobj(wbits=wbits)
    first = squeeze.compress(b"hello") + squeeze.flush(zlib.Z_SYNC_FLUSH)
    body = body_of(CHUNKED, f"Content-Encoding: {coding}")
    assert body.feed(chunk(first)) == b"hello"
    assert fed(body, chunk(squeeze.flush()), LAST_CHUNK) == b""
    assert body.is_over


def test_what_cannot_be_inflated_is_refused():
    with pytest.raises(BodyError, match="cannot be inflated"):
        body_of("Content-Encoding: gzip").feed(b"not gzip at all")
    with pytest.raises(BodyError, match="allowed: identity, gzip, deflate"):
        body_of("Content-Encoding: br")
    with pytest.raises(BodyError, match="allowed"):
        body_of("Content-Encoding: gzip", "Content-Encoding: gzip")


def test_a_piece_does_not_inflate_to_any_size():
    bomb = zlib.compress(bytes(MAX_INFLATED_BYTES + 1), wbits=31)
    assert len(bomb) < 32 * 1024
    with pytest.raises(BodyError, match="inflates to more"):
        body_of("Content-Encoding: gzip").feed(bomb)
