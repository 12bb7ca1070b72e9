"""An expert that costs next to nothing and tells the truth: each token is the time at which it was sent.

It answers like an OpenAI-compatible server, at a set pace, so that a client can be measured against it: what the
client reports minus what the tokens say is the client's own error. Tokens hold CLOCK_MONOTONIC nanoseconds, so the
client must run on the same machine. It reads no JSON, checks no key and knows no model.

It writes to the socket itself where nothing waits in the transport's buffer: uvloop gathers writes until the end of
the loop's turn, and a stamp taken before would be early by that turn.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from typing import cast

from erhpc.plan.protocol import EMULATED_OWNER

STAMP_DIGITS = 19
"""As many as an int64 has, so that every frame of a kind has the same length."""
DEFAULT_MAX_TOKENS = 16
MAX_HEAD_BYTES = 65_536
CHARS_PER_TOKEN = 4
MODEL = "null"

_MAX_TOKENS = re.compile(rb'(?<!\\)"max_(?:completion_)?tokens"\s*:\s*(\d+)')
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _frame(json: bytes) -> bytes:
    return b"data: " + json + b"\n\n"


@dataclass(frozen=True, slots=True)
class _Frames:
    """The parts of an answer of one API that are the same for every token."""

    before: bytes
    """Chunk header and frame up to the stamp."""
    after: bytes
    """The rest of frame and chunk."""
    first: bytes
    """What precedes the first token: the role; nothing for completions."""

    @classmethod
    def around(cls, opening: bytes, closing: bytes, first: bytes = b"") -> _Frames:
        """Frames whose JSON is `opening`, the token (a space and the stamp), `closing`."""
        before, after = b"data: " + opening + b" ", closing + b"\n\n"
        header = b"%x\r\n" % (len(before) + STAMP_DIGITS + len(after))
        return cls(before=header + before, after=after + b"\r\n", first=first)


_FRAMES = {
    b"/v1/chat/completions": _Frames.around(
        b'{"id":"null","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"',
        b'"},"finish_reason":null}]}',
        _chunk(_frame(b'{"id":"null","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}')),
    ),
    b"/v1/completions": _Frames.around(
        b'{"id":"null","object":"text_completion","choices":[{"index":0,"text":"',
        b'","finish_reason":null}]}',
    ),
}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PAGES = {
    b"/v1/models": b'{"object":"list","data":[{"id":"%b","object":"model","owned_by":"%bnull"}]}'
    % (MODEL.encode(), EMULATED_OWNER.encode()),
    b"/health": b"{}",
}


def _page(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    return head + body


def _refusal(status: bytes, message: bytes) -> bytes:
    return _page(status, b'{"error":{"message":"%b"}}' % message)


@dataclass(frozen=True, slots=True, kw_only=True)
class NullPace:
    """When tokens are sent: the first `ttft_s` after the request came, the others at multiples of `gap_s` after it."""

    ttft_s: float = 0.1
    gap_s: float = 0.02


class NullExpert(asyncio.Protocol):
    """One connection; requests are answered one after the other, in the order they came."""

    def __init__(self, pace: NullPace) -> None:
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._answering = False
        self._paused = False
        self._closes = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection's ends; its socket does not block and sends at once (TCP_NODELAY)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._socket = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was left to send."""
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """Hold tokens back while the client does not read."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on; what became due meanwhile is sent at once."""
        self._paused = False
        if self._answering:
            self._wait_until_due()

    def data_received(self, data: bytes) -> None:
        """Take the bytes of requests, however they were cut."""
        self._received += data
        self._answer_next()

    def _answer_next(self) -> None:
        while not self._answering and not self._transport.is_closing():
            request = self._take_request()
            if request is None:
                return
            self._answer(*request)

    def _take_request(self) -> tuple[bytes, bytes, bytes] | None:
        """Method, path and body of the next complete request, None if there is none yet."""
        head_bytes = self._received.find(b"\r\n\r\n") + 4
        if head_bytes < 4:
            if len(self._received) > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", b"the head of a request is too long")
            return None
        head = bytes(self._received[: head_bytes - 2])
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or _CHUNKED.search(head):
            self._refuse(b"400 Bad Request", b"only HTTP/1.1 requests with a Content-Length are understood")
            return None
        length = _LENGTH.search(head)
        end = head_bytes + (int(length[1]) if length else 0)
        if len(self._received) < end:
            return None
        body = bytes(self._received[head_bytes:end])
        del self._received[:end]
        self._closes = _CLOSES.search(head) is not None or parts[2] == b"HTTP/1.0"
        return parts[0], parts[1].split(b"?", 1)[0], body

    def _refuse(self, status: bytes, message: bytes) -> None:
        self._transport.write(_refusal(status, message))
        self._transport.close()

    def _answer(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"POST" and path in _FRAMES:
            self._begin_stream(_FRAMES[path], body)
            return
        if method == b"GET" and path in _PAGES:
            self._write(_page(b"200 OK", _PAGES[path]))
        else:
            self._write(_refusal(b"404 Not Found", b"no such route"))
        self._close_if_asked()

    def _begin_stream(self, frames: _Frames, body: bytes) -> None:
        asked = _MAX_TOKENS.search(body)
        self._num_tokens = int(asked[1]) if asked else DEFAULT_MAX_TOKENS
        self._num_sent = 0
        self._prompt_tokens = max(1, len(body) // CHARS_PER_TOKEN)
        self._frames = frames
        self._due_s = self._loop.time() + self._pace.ttft_s
        self._answering = True
        self._write(_STREAM_HEAD + frames.first)
        self._wait_until_due()

    def _wait_until_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due_s, self._send_token)

    def _send_token(self) -> None:
        """Send the next token and wait for its successor's deadline; the hot path."""
        if self._paused or self._transport.is_closing():
            return
        if self._num_sent < self._num_tokens:
            frames = self._frames
            self._write(b"%b%019d%b" % (frames.before, time.monotonic_ns(), frames.after))
            self._num_sent += 1
        if self._num_sent < self._num_tokens:
            self._due_s += self._pace.gap_s
            self._timer = self._loop.call_at(self._due_s, self._send_token)
        else:
            self._end_stream()

    def _end_stream(self) -> None:
        usage = (self._prompt_tokens, self._num_sent, self._prompt_tokens + self._num_sent)
        self._write(
            _chunk(_frame(b'{"id":"null","choices":[{"index":0,"delta":{},"text":"","finish_reason":"length"}]}'))
            + _chunk(
                _frame(
                    b'{"id":"null","choices":[],"usage":'
                    b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}' % usage
                )
            )
            + _chunk(_frame(b"[DONE]"))
            + b"0\r\n\r\n"
        )
        self._answering = False
        self._close_if_asked()
        self._loop.call_soon(self._answer_next)

    def _close_if_asked(self) -> None:
        if self._closes:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        """Hand `data` to the kernel now, if nothing waits before it."""
        if self._transport.is_closing():
            return
        if not self._transport.get_write_buffer_size():
            try:
                written = os.write(self._socket, data)
            except BlockingIOError:
                written = 0
            except OSError:  # the client has left
                self._transport.abort()
                return
            if written == len(data):
                return
            data = data[written:]
        self._transport.write(data)


async def serve_null_expert(pace: NullPace, port: int = 0) -> asyncio.Server:
    """Listen on the loopback; port 0 lets the system choose one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: NullExpert(pace), "127.0.0.1", port, backlog=4096)
