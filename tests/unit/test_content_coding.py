"""Encoded bodies: what they were before, and that no more is made of them than is allowed."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from erhpc.gateway.app import decode_content
from erhpc.gateway.errors import ApiError

TEXT = b"a body" * 10


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", zlib.compress(TEXT, wbits=-zlib.MAX_WBITS)),
    ],
    ids=["gzip", "deflate", "bare deflate"],
)
def test_a_body_is_what_it_was_before_it_was_encoded(coding, body):
    assert decode_content(body, coding, len(TEXT)) == TEXT
    with pytest.raises(ApiError) as caught:
        decode_content(body, coding, len(TEXT) - 1)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b""),
        ("gzip", TEXT),
        ("gzip", gzip.compress(TEXT)[:-1]),
        ("gzip", gzip.compress(TEXT) + b"x"),
        ("deflate", b""),
        ("br", TEXT),
        ("gzip, gzip", gzip.compress(TEXT)),
        ("x" * 10_000, TEXT),
    ],
    ids=["empty", "plain", "cut", "more", "no deflate", "unknown", "twice", "long"],
)
def test_what_is_not_encoded_as_is_said_is_refused(coding, body):
    with pytest.raises(ApiError) as caught:
        decode_content(body, coding, 1000)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 200


def test_no_more_is_made_of_a_body_than_is_allowed():
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ApiError):
            decode_content(bomb, "gzip", 100_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
