from __future__ import annotations

import time

import pytest

from erhpc.http1.head import MAX_HEAD_BYTES, HeadError, ResponseHead, find_head_end, parse_head


def head_of(*lines: str, status: str = "HTTP/1.1 200 OK") -> ResponseHead:
    data = "\r\n".join([status, *lines, "", ""]).encode("latin-1")
    assert find_head_end(data) == len(data)
    return parse_head(data)


@pytest.mark.parametrize(
    ("lines", "framing", "length_bytes", "keeps_alive"),
    [
        (["Content-Length: 12"], "length", 12, True),
        (["Content-Length: 12", "Connection: Keep-Alive, Close"], "length", 12, False),
        (["Content-Length: 12", "content-length:12"], "length", 12, True),
        (["Content-Length: 12, 12"], "length", 12, True),
        (["Transfer-Encoding: Chunked"], "chunked", 0, True),
        (["Transfer-Encoding: chunked", "Content-Length: 12"], "chunked", 0, False),
        ([], "close", 0, False),
    ],
)
def test_a_head_tells_where_the_body_ends_and_whether_the_connection_stays(lines, framing, length_bytes, keeps_alive):
    head = head_of(*lines)
    assert (head.framing, head.length_bytes, head.keeps_alive) == (framing, length_bytes, keeps_alive)


@pytest.mark.parametrize(
    ("lines", "keeps_alive"),
    [
        (["Content-Length: 1"], False),
        (["Content-Length: 1", "Connection: keep-alive"], True),
        (["Content-Length: 1", "Connection: keep-alive, close"], False),
        (["Transfer-Encoding: chunked", "Connection: keep-alive"], False),
    ],
)
def test_http_1_0_keeps_a_connection_only_if_it_says_so_and_its_body_has_a_length(lines, keeps_alive):
    assert head_of(*lines, status="HTTP/1.0 200 OK").keeps_alive is keeps_alive


@pytest.mark.parametrize("status", ["HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified", "HTTP/1.1 100 Continue"])
def test_some_statuses_have_no_body_whatever_the_fields_say(status: str):
    head = head_of("Content-Length: 5", "Transfer-Encoding: chunked", status=status)
    assert (head.framing, head.length_bytes) == ("length", 0)


@pytest.mark.parametrize("status", ["HTTP/1.1 103 Early Hints", "HTTP/1.1 100", "HTTP/1.1 199 "])
def test_an_interim_head_is_not_the_answer(status: str):
    assert head_of(status=status).is_interim
    assert not head_of(status="HTTP/1.1 200 ").is_interim


def test_names_are_lower_case_and_values_are_stripped_and_joined():
    head = head_of(
        "X-A: \t one \t", "x-a:two", "X-Empty:", "X-Latin: \xe9", "Content-Type: Text/Event-Stream ; charset=x"
    )
    assert head.fields["x-a"] == "one, two"
    assert head.fields["x-empty"] == ""
    assert head.fields["x-latin"] == "\xe9"
    assert head.content_type == "text/event-stream"


def test_a_head_without_a_content_type_has_none():
    assert head_of().content_type == ""


@pytest.mark.parametrize(
    "line",
    [
        "Content-Length: -1",
        "Content-Length: +1",
        "Content-Length: 1_0",
        "Content-Length: 0x10",
        "Content-Length: \xb2",
        "Content-Length:",
        "Content-Length: 1, 2",
        "Content-Length: 1,",
        "Content-Length: " + "9" * 5_000,
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        " Folded: field",
        "No colon",
        ": no name",
        "Bad name: x",
        "Null: a\x00b",
        "Bare: a\rb",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(line: str):
    with pytest.raises(HeadError):
        head_of("A: b", line)


@pytest.mark.parametrize(
    "status", ["HTTP/1.1", "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1  200 OK", "HTTP/1.2 200 OK", "HTTP/1.1 abc"]
)
def test_a_status_line_has_a_version_and_three_digits(status: str):
    with pytest.raises(HeadError):
        head_of(status=status)


@pytest.mark.parametrize("data", [b"HTTP/2 200\r\n", b"http/1.1 200\r\n", b"\r\nHTTP/1.1", b"{", b"\x15\x03\x01"])
def test_what_is_no_http_is_refused_before_it_ends(data: bytes):
    with pytest.raises(HeadError, match="no HTTP/1"):
        find_head_end(data)


@pytest.mark.parametrize("data", [b"H", b"HTTP/1.", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/1.1 200 OK\r\n\r"])
def test_a_head_that_is_not_complete_has_no_end(data: bytes):
    assert find_head_end(data) == 0


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_a_head_ends_at_its_first_empty_line_though_the_body_has_others(end: bytes):
    head = b"HTTP/1.1 200 OK\nA: b" + end
    assert find_head_end(head + b"5\r\nhello\r\n0\r\n\r\n\n\n") == len(head)
    assert parse_head(head).fields == {"a": "b"}


def test_a_head_grows_to_a_limit():
    with pytest.raises(HeadError, match="longer than"):
        find_head_end(b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD_BYTES)
    with pytest.raises(HeadError, match="longer than"):
        find_head_end(b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n")


@pytest.mark.parametrize("value", [" " * 60_000 + "x", "x" + " " * 60_000 + "x", "a:" * 30_000])
def test_no_head_takes_long_to_read(value: str):
    started_s = time.process_time()
    head_of(f"A: {value}")
    assert time.process_time() - started_s < 0.5  # a millisecond; a pattern that strips blanks would take seconds
