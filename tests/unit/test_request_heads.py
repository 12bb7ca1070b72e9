from __future__ import annotations

import pytest

from erhpc.http1.requests import find_request_head, may_become_plain, parse_request_head

PLAIN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a:1\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
)


def with_field(line: bytes) -> bytes:
    return PLAIN[:-2] + line + b"\r\n\r\n"


def test_a_plain_request_is_read():
    head = parse_request_head(PLAIN)
    assert head is not None
    assert (head.method, head.target, head.length_bytes) == (b"POST", b"/v1/chat/completions", 12)
    assert head.get(b"content-type") == "application/json"
    assert head.get(b"authorization") is None


@pytest.mark.parametrize(
    "line", [b"connection: keep-alive", b"Connection: Keep-Alive", b"x-empty:", b"x:  a b \t", b"x: \xe9"]
)
def test_a_plain_request_may_bear_other_fields(line: bytes):
    assert parse_request_head(with_field(line)) is not None


@pytest.mark.parametrize(
    "head",
    [
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/2"),
        PLAIN.replace(b"POST ", b"POST  "),
        PLAIN.replace(b"/v1", b"http://a/v1"),
        PLAIN.replace(b"12", b"+12"),
        PLAIN.replace(b"12", b"1_2"),
        PLAIN.replace(b"12", b"12, 12"),
        PLAIN.replace(b"12", b""),
        PLAIN.replace(b"12", "١٢".encode()),
        PLAIN.replace(b"Content-Length: 12\r\n", b""),
        PLAIN.replace(b"Host: a:1\r\n", b""),
        PLAIN.replace(b"\r\nHost", b"\nHost"),
        PLAIN.replace(b"Host:", b"Host :"),
        PLAIN.replace(b"Host", b" Host"),
        with_field(b"content-length: 12"),
        with_field(b"content-length: 13"),
        with_field(b"transfer-encoding: chunked"),
        with_field(b"Transfer-Encoding: identity"),
        with_field(b"transfer-encoding : chunked"),
        with_field(b"expect: 100-continue"),
        with_field(b"upgrade: h2c"),
        with_field(b"connection: close"),
        with_field(b"connection: upgrade"),
        with_field(b"content-encoding: gzip"),
        with_field(b"host: b"),
        with_field(b"no colon"),
        with_field(b": no name"),
        with_field(b" folded"),
        with_field(b"x: a\rb"),
        with_field(b"x: a\x00b"),
        with_field(b"x: a\nb: c"),
    ],
)
def test_what_could_be_read_in_two_ways_or_needs_more_is_left_to_others(head: bytes):
    assert parse_request_head(head) is None


def test_a_head_ends_with_its_empty_line():
    assert find_request_head(PLAIN + b"{}") == len(PLAIN)
    assert find_request_head(PLAIN[:-1]) == 0
    assert find_request_head(bytearray(b"\r\n\r\n")) == 4


def test_the_beginning_of_a_plain_head_may_become_one_and_what_is_no_http_or_ends_lines_with_lf_may_not():
    assert all(may_become_plain(PLAIN[:length]) for length in range(1, len(PLAIN)))
    assert may_become_plain(bytearray(PLAIN[:10]))
    for data in (
        b"POST / HTTP/1.1\n",
        b"POST / HTTP/1.1\r\nx: y\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x02",
        b"\r",
        b"post",
    ):
        assert not may_become_plain(data)
