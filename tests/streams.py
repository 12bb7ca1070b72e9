"""Streamed answers as bytes: frames, framings of HTTP, and requests to ask for them with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from erhpc.workload.requests import LoadRequest

EVENT_STREAM = b"Content-Type: text/event-stream\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\n" + EVENT_STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


def request_of(body: bytes = b"{}", max_tokens: int = 8, session: bytes = b"") -> LoadRequest:
    """A request with this body; its other fields tell nothing."""
    values: dict[str, Any] = {"sequence": 0, "turn": 0, "prompt_id": "p", "domain": "", "is_last_turn": True}
    values |= {"max_tokens": max_tokens, "body": body, "session": session}
    return LoadRequest(**{field.name: values[field.name] for field in fields(LoadRequest)})


def event(frame: dict[str, Any]) -> bytes:
    """One frame as an event."""
    return b"data: " + json.dumps(frame, ensure_ascii=False).encode() + b"\n\n"


def chat(text: str | None, **more: Any) -> bytes:
    """An event of a chat whose delta holds `text`."""
    return event({"id": "c-1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None} | more]})


def usage(tokens_in: int, tokens_out: int) -> bytes:
    """The event that tells how many tokens there were."""
    return event({"choices": [], "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}})


def chunk(payload: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def answer(*texts: str) -> list[bytes]:
    """A whole good response that carries one token per text: the head, and each chunk by itself."""
    events = [chat(""), *map(chat, texts), chat(None, finish_reason="length"), usage(5, len(texts)), DONE]
    return [CHUNKED_HEAD, *map(chunk, events), LAST_CHUNK]


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    """`stream` in pieces, none of them empty."""
    bounds = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:end] for start, end in pairwise(bounds)]
