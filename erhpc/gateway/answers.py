"""Responses of the gateway as bytes, for connections that it serves itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from erhpc.gateway.errors import ApiError

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
    own = {"content-type": "application/json; charset=utf-8", "content-length": str(len(body))}
    return build_head(error.status, {**error.headers, **headers, **own}) + b"\r\n" + body
