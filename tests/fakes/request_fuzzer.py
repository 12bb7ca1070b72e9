"""Requests that nobody would write, drawn from a grammar of heads, framings and JSON, some bytes changed at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.streams import LAST_CHUNK, chunk

PATHS = ("/v1/chat/completions", "/v1/completions")
OTHER_PATHS = (
    "/v1/models", "/health", "/metrics", "/telemetry?window_s=5", "/telemetry?window_s=%00", "/", "*", "/v1/", "/v1//",
    "/v1/chat/completions/", "/v1/chat/completions?a=b#c", "http://a/v1/completions", "/%2e%2e/v1/models",
    "/v1/\N{SNOWMAN}", "//v1/models", "/v1/%ff", "/" + "a" * 5000, "a:80", "",
    "/v1/embeddings", "/v1/embeddings", "/v1/embeddings/x", "/v1/score", "/pooling", "/tokenize", "/status",
    "/v1/models/auto", "/replicas/a-1/drain",
)  # fmt: skip
OTHER_METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post", "P\x00ST", "TRACE", "BREW", "")
TEXTS = (
    "a sum", "", "hi", "\0", "\N{SNOWMAN}" * 50, "é" * 300, "\u202e", "0", "1e9", "null", "[]", "{}", "\"", "\\",
    "a\r\nb", "x" * 9000, "\U0010ffff", "data: [DONE]", "GET / HTTP/1.1\r\n\r\n",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.1, 1e308, -0.0)
RAW_VALUES = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-",
    b"01",
    b"\xff\xfe",
    b'"\\ud800"',
    b'"\\x"',
    b"[" * 3000 + b"]" * 3000,
    b"",
)
"""Where a value belongs: what is no JSON, or hardly."""
NAMES = (
    "authorization", "x-request-id", "x-session-id", "content-type", "accept", "accept-encoding", "cookie", "expect",
    "connection", "upgrade", "te", "trailer", "content-encoding", "x-forwarded-for", "traceparent", "tracestate",
    "host", "range", "if-none-match", "keep-alive", "x" * 300, "bad name", "x:y", "", "\N{SNOWMAN}",
    "transfer-encoding", "content-length",
)  # fmt: skip
VALUES = (
    "", "a", "close", "keep-alive", "100-continue", "gzip", "deflate", "identity", "chunked", "h2c", "websocket", "0",
    "-1", "Bearer secret", "Bearer \N{SNOWMAN}", "Basic eDp5", "application/json", "text/plain; charset=\0", "x" * 7000,
    "\t", "\x7f", "a\nb: c", "a, b;q=2", "bytes=0-", "\x80\xff", "\udc80",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A request, and whether it is certain where it ends: then it is answered, or the connection is closed."""

    data: bytes
    has_end: bool
    method: str


def draw_request(draw: random.Random, key: str) -> Drawn:
    """The next request of `draw`; most of them bear `key`."""
    body = draw_body(draw)
    is_usual = draw.random() < 0.9
    method = "POST" if is_usual or draw.random() < 0.5 else draw.choice(OTHER_METHODS)
    target = PATHS[b'"prompt"' in body] if is_usual else draw.choice(PATHS + OTHER_PATHS)
    version = "1.1" if draw.random() < 0.95 else draw.choice(("1.0", "1.2", "2.0", "0.9", "", "1.1 ", "11"))
    fields, framed, has_end = draw_framing(draw, body)
    if draw.random() < 0.9:
        fields.append(("authorization", f"Bearer {key}"))
    if draw.random() < 0.98:
        fields.append(("host", "gateway"))
    if draw.random() < 0.2:
        others = [(draw.choice(NAMES), draw.choice(VALUES)) for _ in range(draw.choice((1, 1, 2, 5, 40)))]
        has_end = has_end and not {"transfer-encoding", "content-length"} & {name for name, _ in others}
        fields += others
    draw.shuffle(fields)
    lines = "".join(f"{draw_case(draw, name)}: {value}\r\n" for name, value in fields)
    data = f"{method} {target} HTTP/{version}\r\n{lines}\r\n".encode(errors="surrogatepass") + framed
    if draw.random() < 0.08:
        return Drawn(change_bytes(draw, data), False, method)
    return Drawn(data, has_end and method != "", method)


def draw_case(draw: random.Random, name: str) -> str:
    """`name` as some client would write it."""
    return draw.choice((name, name, name.title(), name.upper()))


def draw_framing(draw: random.Random, body: bytes) -> tuple[list[tuple[str, str]], bytes, bool]:
    """The fields that tell where `body` ends, the body in its framing, and whether the two agree."""
    length = ("content-length", str(len(body)))
    kind = draw.random()
    if kind < 0.8:
        return [length], body, True
    if kind < 0.87:
        places = sorted(draw.randrange(len(body) + 1) for _ in range(3))
        pieces = [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]
        framed = b"".join(chunk(piece) for piece in pieces if piece) + LAST_CHUNK
        return [("transfer-encoding", "chunked")], framed, True
    if kind < 0.9:
        framed = change_bytes(draw, chunk(body) + LAST_CHUNK)
        return (
            [("transfer-encoding", draw.choice(("chunked", "gzip, chunked", "chunked, gzip", "\tchunked")))],
            framed,
            False,
        )
    if kind < 0.94:
        wrong = draw.choice((0, 1, len(body) - 1, len(body) + 1, len(body) + 100, 10**7, 10**9, 2**64, -1))
        return [("content-length", str(wrong))], body, False
    if kind < 0.97:
        twice = (
            "content-length",
            draw.choice((str(len(body)), "0", "+1", "0x1", "1 1", "", "1,1", "\N{SUPERSCRIPT TWO}")),
        )
        return [length, twice], body, False
    return draw.choice(([length, ("transfer-encoding", "chunked")], [])), body, False


def draw_body(draw: random.Random) -> bytes:
    """JSON as a client sends it, or nearly."""
    shape: dict[str, Any] = {
        "model": draw.choice(("auto", "auto", "auto", "auto", "auto", "auto", "a", "a", "law", ""))
    }
    if draw.random() < 0.6:
        shape["messages"] = [draw_message(draw) for _ in range(draw.choice((1, 1, 1, 1, 1, 2, 2, 30, 0)))]
    else:
        shape["prompt"] = draw.choice(
            (draw.choice(TEXTS), [draw.choice(TEXTS)], [1, 2, 3], [[1, 2], [3]], [], draw_value(draw))
        )
    if draw.random() < 0.3:
        shape["stream"] = draw.random() < 0.5
    for name in ("stream", "user", "input", "query", "temperature", "tools", "\N{SNOWMAN}", "model ", "a" * 200):
        if draw.random() < 0.1:
            shape[name] = draw_value(draw)
    if draw.random() < 0.05:
        del shape[draw.choice(list(shape))]
    if draw.random() < 0.1:
        shape[draw.choice(list(shape) or ["model"])] = draw_value(draw)
    data = json.dumps(shape, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    if draw.random() < 0.05:
        data = data[:-1] + b', "x": ' + draw.choice(RAW_VALUES) + b"}"
    return change_bytes(draw, data) if draw.random() < 0.05 else data


def draw_message(draw: random.Random) -> Any:
    """One turn of a chat, or nearly."""
    parts = [{"type": "text", "text": draw.choice(TEXTS)}, {"type": "image_url", "image_url": {"url": "data:"}}]
    content = draw.choice((draw.choice(TEXTS), draw.choice(TEXTS), parts, None))
    message: Any = {"role": draw.choice(("user", "user", "system", "assistant", "")), "content": content}
    if draw.random() < 0.05:
        message[draw.choice(("role", "content", "name"))] = draw_value(draw)
    return message if draw.random() < 0.99 else draw_value(draw)


def draw_value(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON."""
    leaf: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(TEXTS),
    )
    node: tuple[Callable[[], Any], ...] = (
        lambda: [draw_value(draw, depth + 1) for _ in range(draw.randrange(4))],
        lambda: {draw.choice(TEXTS): draw_value(draw, depth + 1) for _ in range(draw.randrange(4))},
    )
    return draw.choice(leaf + node if depth < 3 else leaf)()


def change_bytes(draw: random.Random, data: bytes) -> bytes:
    """`data` with some bytes changed, left out, put in or cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(changed) + 1)
        what = draw.randrange(5)
        if what == 0:
            changed[place : place + 1] = bytes([draw.randrange(256)])
        elif what == 1:
            del changed[place : place + draw.choice((1, 2, 20))]
        elif what == 2:
            changed[place:place] = draw.choice(
                (b"\r\n", b"\n", b"\0", b" ", b":", b"\r\n\r\n", b"{", b"0\r\n\r\n", b"\xff")
            )
        elif what == 3:
            changed[place:place] = changed[max(place - 30, 0) : place]
        else:
            del changed[place + 200 :]
    return bytes(changed)
