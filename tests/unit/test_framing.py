from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erhpc.http1.body import BodyError, ChunkedBody
from erhpc.http1.framing import ChunkedFraming, LengthFraming, make_framing
from erhpc.http1.head import parse_head

many = settings(deadline=None, max_examples=300)
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
CUTS = st.lists(st.integers(0, 300), max_size=12)


def framed(chunks: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"


def split(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@many
@given(CHUNKS, CUTS, st.sampled_from([b"", b"x-a: b\r\n", b"a: 1\r\nb: 2\r\n"]), st.binary(max_size=5))
def test_a_chunked_body_ends_where_its_last_chunk_does_wherever_it_is_cut(chunks, places, trailer, excess):
    body = framed(chunks, trailer)
    framing, taken = ChunkedFraming(), 0
    for piece in split(body + excess, places):
        if framing.is_over:
            break
        taken += framing.feed(piece)
    assert framing.is_over
    assert taken == len(body)


@many
@given(CHUNKS, CUTS, st.integers(0, 300))
def test_a_body_that_breaks_off_can_be_completed_so_that_another_chunk_follows(chunks, places, broken_at):
    body = framed(chunks)
    passed = body[: min(broken_at, len(body) - 5)]  # before the last chunk
    framing = ChunkedFraming()
    for piece in split(passed, places):
        framing.feed(piece)
    ending = framing.complete()
    assert ending is not None
    reader = ChunkedBody()
    payload = reader.feed(passed + ending + b"5\r\nerror\r\n0\r\n\r\n")
    assert reader.is_over
    assert not reader.has_excess
    whole = b"".join(chunks)
    kept = payload.removesuffix(b"error")
    assert whole.startswith(kept.rstrip(b"\n")) or kept == whole[: len(kept)]


@pytest.mark.parametrize("passed", [b"0", b"0\r\n", b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n0\r\nx: y\r\n"])
def test_a_body_whose_last_chunk_has_begun_cannot_be_completed(passed: bytes):
    framing = ChunkedFraming()
    framing.feed(passed)
    assert framing.complete() is None


@pytest.mark.parametrize(
    "data", [b"\r\n", b"x\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloX\r\n", b"0x5\r\nhello\r\n", b"5 5\r\nhello\r\n"]
)
def test_what_is_no_chunk_is_refused(data: bytes):
    with pytest.raises(BodyError):
        ChunkedFraming().feed(data)


def test_a_body_of_known_length_ends_after_it():
    framing = LengthFraming(5)
    assert (framing.feed(b"abc"), framing.is_over) == (3, False)
    assert (framing.feed(b"defg"), framing.is_over) == (2, True)


def test_the_head_says_how_the_body_ends():
    def framing_of(fields: bytes) -> object:
        return make_framing(parse_head(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n"))

    assert isinstance(framing_of(b"transfer-encoding: chunked\r\n"), ChunkedFraming)
    assert isinstance(framing_of(b"content-length: 3\r\n"), LengthFraming)
    open_ended = framing_of(b"")
    assert (open_ended.feed(b"abc"), open_ended.is_over) == (3, False)  # type: ignore[attr-defined]
