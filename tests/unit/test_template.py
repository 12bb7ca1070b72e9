"""What templates make of whole responses is in test_reception; here are their own rules."""

from __future__ import annotations

import time

import pytest

from erhpc.client.template import FrameTemplate
from tests.streams import chat, chunk

FIRST = b'{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}'


def like(text: bytes) -> bytes:
    return chunk(b"data: " + FIRST.replace(b'"a"', b'"%b"' % text) + b"\n\n")


def template_of(event: bytes = FIRST) -> FrameTemplate:
    template = FrameTemplate.from_event(event)
    assert template is not None
    return template


def matches(piece: bytes) -> bool:
    """Whether a piece matches: the last one that came and one with others after it are compared in different ways."""
    template = template_of()
    alone = template.count_matches([piece], 0)
    among = template.count_matches([piece, piece, like(b"z")], 0)
    assert (alone, among) in [((1, 1, 0), (3, 3, 0)), ((0, 0, 0), (0, 0, 0))]
    return alone == (1, 1, 0)


@pytest.mark.parametrize("text", [b"b", b" token", "é漢😀".encode(), rb"\n", rb"\"quoted\"", rb"\u00e9", b"x" * 5_000])
def test_a_frame_with_another_text_matches(text: bytes):
    assert matches(like(text))


@pytest.mark.parametrize("text", [b"", b'"', b"\\", b"\n", b"\xff", rb"\x", rb"\ud800", rb"\u00"])
def test_a_text_that_is_no_json_string_does_not_match(text: bytes):
    assert not matches(like(text))


@pytest.mark.parametrize(
    "piece",
    [
        like(b"b")[:-1],
        like(b"b") + b"\n",
        b"0" + like(b"b")[1:],
        like(b"b").replace(b"\r\n", b" \r\n", 1),
        like(b"b").replace(b"\r\n", b";x\r\n", 1),
        like(b"b").replace(b"null", b"None"),
        like(b"b").replace(b'"c"', b'"d"'),
        chunk(b"data: [DONE]\n\n"),
        b"\r\n" + like(b"b"),
    ],
)
def test_what_is_more_or_less_than_one_frame_like_the_first_does_not_match(piece: bytes):
    assert not matches(piece)


def test_the_chunk_must_be_as_long_as_its_header_says_whatever_its_length():
    for length in range(1, 4_200):
        piece = like(b"x" * length)
        header, _, rest = piece.partition(b"\r\n")
        assert matches(piece)
        for size in (int(header, 16) - 1, int(header, 16) + 1):
            assert not matches(b"%x\r\n" % size + rest)


def test_matches_are_counted_from_a_place_on_up_to_the_first_that_differs():
    pieces = [b"head", like(b"b"), like(b"c") + like(b"d"), like(b"e"), chunk(chat("x")), like(b"f")]
    assert template_of().count_matches(pieces, 1) == (3, 4, 1)
    assert template_of().count_matches(pieces, 5) == (1, 1, 0)
    assert template_of().count_matches(pieces, 6) == (0, 0, 0)


def test_a_piece_counts_only_if_all_of_it_matches():
    assert template_of().count_matches([like(b"b") + chunk(chat("x"))], 0)[0] == 0


@pytest.mark.parametrize(
    "event", [b"{}", b'{"choices":[{"delta":{"content":""}}]}', b'{"choices":[{"delta":{"content":null}}]}']
)
def test_a_frame_without_text_is_no_template(event: bytes):
    assert FrameTemplate.from_event(event) is None


def test_a_long_text_takes_linear_time():
    started_s = time.process_time()
    assert template_of().count_matches([like(b"\\n" * 500_000), like(b"\\n" * 500_000 + b"\\")], 0) == (1, 1, 0)
    assert time.process_time() - started_s < 1
