"""Responses as bytes: what the gateway says on connections that it serves itself, and the end of what replicas say."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from erhpc.gateway.errors import ApiError

_USAGE = re.compile(rb'"(prompt|completion|input|output)_tokens"\s*:\s*(\d{1,9})')
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class _Date:
    """The date header, written anew each second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = ""

    def line(self) -> str:
        """`date: ...` of now, with its line end."""
        second = int(time.time())
        if second != self._second:
            self._second, self._line = second, f"date: {formatdate(second, usegmt=True)}\r\n"
        return self._line


_date = _Date()


def build_head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and fields of a response, without the empty line that ends them."""
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n{_date.line()}{fields}".encode("latin-1")


def build_error(error: ApiError, headers: Mapping[str, str]) -> bytes:
    """The whole response that says `error`."""
    body = error.body
    own = {"content-type": "application/json", "content-length": str(len(body))}
    return build_head(error.status, {**error.headers, **headers, **own}) + b"\r\n" + body


def find_usage(tail: bytes) -> tuple[int, int] | None:
    """Prompt and completion tokens, if the end of an answer tells them: the last object `usage` counts."""
    begin = tail.rfind(b'"usage"')
    if begin < 0:
        return None
    found: dict[bytes, bytes] = dict(_USAGE.findall(tail, begin))
    num_prompt = found.get(b"prompt", found.get(b"input"))  # the other names are those of responses and messages
    if num_prompt is None:
        return None
    return int(num_prompt), int(found.get(b"completion", found.get(b"output", b"0")))
