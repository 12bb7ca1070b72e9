"""The tokens that the end of an answer tells of, and responses as bytes."""

from __future__ import annotations

import json

import pytest

from erhpc.gateway.answers import build_error, find_usage
from erhpc.gateway.errors import overloaded

USAGE = {"prompt_tokens": 12, "total_tokens": 30, "completion_tokens": 18}


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps({"id": "c-1", **fields}).encode() + b"\n\n"


CONTENT = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (event(choices=[], usage=USAGE) + DONE, (12, 18)),
        (event(**CONTENT, usage=None) + event(choices=[], usage=USAGE) + DONE, (12, 18)),
        (event(**CONTENT, usage={**USAGE, "completion_tokens": 17}) + event(choices=[], usage=USAGE) + DONE, (12, 18)),
        (json.dumps({"choices": [], "usage": USAGE}, separators=(",", ":")).encode(), (12, 18)),
        (json.dumps({"choices": [], "usage": USAGE}, indent=2).encode(), (12, 18)),
        (json.dumps({"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode(), (8, 0)),
        (json.dumps({"usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 4}}, "id": "c"}).encode(), (12, 18)),
        (json.dumps({"usage": {"input_tokens": 19, "input_tokens_details": {}, "output_tokens": 4}}).encode(), (19, 4)),
        (b'tent":"cut off here"}}]}\n\n' + event(choices=[], usage=USAGE), (12, 18)),
        (event(**CONTENT) + event(**CONTENT, usage=None) + DONE, None),
        (event(**CONTENT) + DONE, None),
        (b'"prompt_tokens": 3, "completion_tokens": 4}}', None),
        (b'{"usage": {"prompt_to', None),
        (b"", None),
        (event(choices=[{"delta": {"content": json.dumps({"usage": USAGE})}}]) + DONE, None),
        (b"\xff\xfe\x00", None),
    ],
)
def test_the_last_object_usage_is_found_and_nothing_that_only_looks_like_it(tail: bytes, found: tuple[int, int] | None):
    assert find_usage(tail) == found


def test_an_error_is_a_whole_response():
    head, _, body = build_error(overloaded(), {"x-request-id": "r-1"}).partition(b"\r\n\r\n")
    status_line, *fields = head.split(b"\r\n")
    names = [field.partition(b":")[0] for field in fields]
    assert status_line == b"HTTP/1.1 503 Service Unavailable"
    assert {b"Retry-After: 1", b"x-request-id: r-1", b"content-length: %d" % len(body)} <= set(fields)
    assert len(names) == len(set(names))
    assert b"date" in names
    assert json.loads(body)["error"]["code"] == "overloaded"
