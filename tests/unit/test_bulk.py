"""Long bodies: what they may hold, and that no client decides how long one is read."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from erhpc.config import RouterConfig
from erhpc.gateway.bulk import MAX_DIGITS, MAX_PARTS, MAX_VALUES, check_bulk
from erhpc.gateway.errors import ApiError
from erhpc.gateway.requests import InquiryTraits, parse_inquiry

LONG_BYTES = 8 * 1024 * 1024
COPIES = 3
"""Of a body that counting may make; the objects that most of these bodies hold would take ten times as much."""
CHAT = b'{"model":"auto","messages":[{"role":"user","content":"x"}]'


def fill(begin, item, end, separator=b","):
    """A body of nearly LONG_BYTES: as many of `item` as it holds."""
    number = (LONG_BYTES - len(begin) - len(end)) // (len(item) + len(separator))
    return begin + separator.join([item] * number) + end


def name_fields(begin):
    return begin + b"".join(b',"%x":1' % number for number in range(700_000)) + b"}"


HOSTILE = {
    "token lists": ("completions", fill(b'{"model":"auto","prompt":[', b"[1]", b"]}")),
    "tokens": ("completions", fill(b'{"model":"auto","prompt":[', b"1", b"]}")),
    "texts": ("completions", fill(b'{"model":"auto","prompt":[', b'""', b"]}")),
    "long numbers": ("completions", fill(b'{"model":"auto","prompt":[', b"1" * 4000, b"]}")),
    "messages": ("chat", fill(b'{"model":"auto","messages":[', b'{"role":""}', b"]}")),
    "parts": ("chat", fill(b'{"model":"auto","messages":[{"role":"user","content":[', b"{}", b"]}]}")),
    "fields": ("chat", name_fields(b'{"mod\\u0065l":"auto","messages":[{"role":"user","content":"x"}]')),
    "unread": ("chat", fill(CHAT + b',"x":[', b"[]", b"]}")),
    "inputs": ("other", fill(b'{"model":"auto","input":[', b"[1]", b"]}")),
    "objects": ("other", fill(b'{"model":"auto","messages":[', b'{"content":[{}]}', b"]}")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_long_body_of_too_many_things_is_refused_before_they_are_made(name):
    api, raw = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match="holds too much") as caught:
            parse_inquiry(api, raw)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < COPIES * len(raw)
    assert caught.value.status == 400


INNOCENT = {
    "text": (
        "chat",
        json.dumps({"model": "auto", "messages": [{"role": "user", "content": "so, [it] {is}\n" * 400_000}]}),
    ),
    "code": (
        "chat",
        json.dumps({"model": "auto", "messages": [{"role": "user", "content": 'f("\\a", [1,2]);' * 300_000}]}),
    ),
    "image": (
        "chat",
        json.dumps({"model": "auto", "messages": [{"role": "user", "content": [{"url": "0" * 8_000_000}]}]}),
    ),
    "tokens": ("completions", json.dumps({"model": "auto", "prompt": [list(range(100_000)) for _ in range(9)]})),
    "prompts": ("completions", json.dumps({"model": "auto", "prompt": ["a prompt, and\\more" * 6] * 60_000})),
    "numbers in a text": ("completions", json.dumps({"model": "auto", "prompt": "7" * 8_000_000})),
    "talk": ("chat", json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi" * 300}] * 13_000})),
    "inputs": ("other", json.dumps({"model": "auto", "input": [[7] * 10] * 60_000})),
    "escapes": ("chat", CHAT.decode() + ',"x":"' + r"\\\"" * 2_000_000 + '"}'),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_a_long_body_is_read_whatever_its_texts_hold(name):
    api, raw = INNOCENT[name][0], INNOCENT[name][1].encode()
    assert len(raw) < LONG_BYTES
    inquiry = parse_inquiry(api, raw)
    traits = InquiryTraits(inquiry.content, None, RouterConfig())
    assert (len(traits.text), len(traits.prefix)) <= (8192, 1024)
    assert inquiry.body_for("llama").count(b"llama") == 1


def refuses(raw, *, reads_numbers=True):
    try:
        check_bulk(raw.encode(), reads_numbers=reads_numbers)
    except ApiError:
        return True
    return False


@pytest.mark.parametrize(
    ("some", "many"),
    [
        ("[" + "[]," * (MAX_PARTS - 2) + "[]]", "[" + "[]," * MAX_PARTS + "[]]"),
        ("[" + '"{[",' * (MAX_PARTS - 2) + '""]', "[" + '"",' * MAX_PARTS + '""]'),
        ("[" + '"",' * (MAX_PARTS - 2) + '""]', "[" + '"",' * (MAX_PARTS // 2) + "{}," * (MAX_PARTS // 2) + "1]"),
        ("[" + "1," * (MAX_VALUES - 1) + "1]", "[" + "1," * MAX_VALUES + "1]"),
        ("[" + ("1" * MAX_DIGITS + ",") * 9999 + "1]", "[" + "1," * 99999 + "1" * (MAX_DIGITS + 1) + "]"),
    ],
    ids=["arrays", "texts", "both", "values", "digits"],
)
def test_as_much_as_is_allowed_is_read_and_more_is_not(some, many):
    assert not refuses(some)
    assert refuses(many)


def test_long_numbers_that_are_passed_over_may_be_any():
    raw = "[" + "1," * 99999 + "1" * 9999 + "]"
    assert refuses(raw)
    assert not refuses(raw, reads_numbers=False)


@pytest.mark.parametrize("raw", ["[" * 131071, '"' * 131071, "1" * 131071], ids=["arrays", "texts", "digits"])
def test_a_short_body_is_not_counted(raw):
    assert not refuses(raw)
