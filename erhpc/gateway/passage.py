"""One request on its way: to a replica, and the answer back, byte for byte as it came.

Nothing is done per token but a look for the end of the body and a write. Who the client is (`Caller`) and which
replica answers is decided elsewhere; here is what happens between the two, and the one end that each request has.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Mapping
from typing import Protocol

from erhpc.gateway.answers import build_error, build_head, find_usage
from erhpc.gateway.desk import Desk, Flight, Forward
from erhpc.gateway.errors import Outcome, ReplicaError, broken, silent, unreachable
from erhpc.gateway.relay import EVENT_STREAM, MAX_WHOLE_BYTES, PASSED_HEADERS, judge_status
from erhpc.gateway.retries import is_retried
from erhpc.gateway.upstream import Upstream, UpstreamPool
from erhpc.http1.framing import ChunkedFraming
from erhpc.http1.head import ResponseHead

_PASSED = tuple((name.lower(), name.encode()) for name in PASSED_HEADERS)
_LAST_CHUNK = b"0\r\n\r\n"


class Caller(Protocol):
    """The client's end of a passage."""

    def write(self, data: bytes) -> None:
        """Send bytes of the response; nothing happens if the client has left."""

    @property
    def sink(self) -> int | None:
        """The client's socket, which takes bytes of the response as well until the passage ends.

        None if something still waits to be sent on it, or is encrypted on the way.
        """

    def end(self, *, keeps_alive: bool) -> None:
        """The response is complete."""


class Passage:
    """Relays one request; `cancel` when the client leaves, `check_silence` now and then.

    `began_ns` is when the request was complete, by the performance counter.
    """

    __slots__ = (
        "_began_ns",
        "_caller",
        "_connecting",
        "_desk",
        "_flight",
        "_forward",
        "_has_written",
        "_head",
        "_is_open_ended",
        "_is_over",
        "_is_paused",
        "_is_reused",
        "_kept",
        "_kept_bytes",
        "_key",
        "_limits",
        "_pools",
        "_silent_since_s",
        "_streams",
        "_upstream",
    )

    def __init__(
        self,
        caller: Caller,
        desk: Desk,
        forward: Forward,
        pools: Mapping[str, UpstreamPool],
        key: str | None,
        began_ns: int,
    ) -> None:
        self._caller = caller
        self._desk = desk
        self._forward = forward
        self._pools = pools
        self._key = key
        self._began_ns = began_ns
        self._limits = desk.spec.limits
        self._flight: Flight = desk.begin(forward)
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._head = b""
        """Of the response to the client, until it has been written."""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._streams = False
        self._is_open_ended = False
        self._has_written = self._is_over = self._is_paused = self._is_reused = False
        self._silent_since_s: float | None = None

    def start(self) -> None:
        """Send the request to the replica."""
        upstream = self._pools[self._forward.replica.name].take()
        if upstream is not None:
            self._is_reused = True
            self._ask(upstream)
        else:
            self._open()

    def _open(self) -> None:
        self._is_reused, self._silent_since_s = False, None
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def cancel(self) -> None:
        """The client has left: stop the replica's work at once."""
        self._close()

    def pause(self) -> None:
        """The client reads slowly: read nothing more from the replica for now."""
        self._is_paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._is_paused = False
        if self._upstream is not None:
            self._upstream.resume()

    def check_silence(self, now_s: float) -> None:
        """Give the replica up if nothing has come for idle_timeout_s, or no connection within connect_timeout_s.

        Called twice a second or so.
        """
        upstream, limits = self._upstream, self._limits
        hears = upstream is not None and upstream.hears()
        if hears:
            self._forward.replica.note_heard(round(now_s * 1e9))
        is_connecting = self._connecting is not None
        if hears or self._silent_since_s is None or (self._is_paused and not is_connecting):
            self._silent_since_s = now_s
            return
        waited_s, name = now_s - self._silent_since_s, self._forward.replica.name
        if is_connecting and waited_s >= limits.connect_timeout_s:
            self._give_up_connecting()
            self._fail(unreachable(name, TimeoutError(), None))
        elif not is_connecting and waited_s >= limits.idle_timeout_s and not self._is_over:
            self._fail(silent(name, limits.idle_timeout_s))

    def begin(self, head: ResponseHead) -> None:
        """See `Listener.begin`."""
        status = head.status
        self._desk.note_status(self._forward, status)
        if is_retried(status, says_when="retry-after" in head.fields) and self._try_elsewhere(Outcome.REJECTED):
            return
        self._flight.outcome = judge_status(status)
        self._streams = head.content_type == EVENT_STREAM
        self._is_open_ended = head.framing == "close"
        self._head = build_head(status, self._forward.reply_headers) + _pass_fields_on(head)

    def take(self, data: bytes, *, is_over: bool) -> None:
        """See `Listener.take`."""
        tail = b""
        if is_over:
            # Before writing, which may fill the client's buffers: the connection is another's now and must not pause.
            upstream, self._upstream = self._upstream, None
            tail = upstream.tail if upstream is not None else b""
        if self._has_written:
            self._caller.write(data)
        elif self._streams or is_over or self._kept_bytes + len(data) > MAX_WHOLE_BYTES:
            # Not from the head on: vLLM sends it before the prompt is read, and what follows is the replica's time.
            came_ns = time.perf_counter_ns()
            self._has_written = self._flight.has_begun = True
            whole = b"".join((*self._kept, data))
            self._caller.write(self._head + whole)
            if self._streams:
                self._desk.metrics.first_write.add(time.perf_counter_ns() - came_ns)
            tail = tail and whole
        else:
            self._flight.has_begun = True
            self._kept.append(data)
            self._kept_bytes += len(data)
        if is_over:
            self._note_usage(tail)
            self._finish(keeps_alive=not self._is_open_ended)

    @property
    def sink(self) -> int | None:
        """See `Listener.sink`."""
        return self._caller.sink if self._streams and self._has_written else None

    def _note_usage(self, tail: bytes) -> None:
        """Count the tokens if the end of the answer tells them."""
        if (usage := find_usage(tail)) is not None:
            self._desk.note_tokens(self._forward, *usage)

    def _try_elsewhere(self, outcome: Outcome) -> bool:
        """Ask another replica, if nothing has been passed on and there is one."""
        if self._has_written or self._is_over or not self._desk.retry(self._forward, outcome):
            return False
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        self._flight.move(self._forward.replica)
        self._kept.clear()
        self._kept_bytes = 0
        self.start()
        return True

    def break_off(self, reason: str) -> None:
        """See `Listener.break_off`."""
        upstream = self._upstream
        if self._is_reused and upstream is not None and not upstream.has_begun:
            # The replica had closed the kept connection before it saw the request, or died of it: once more, no more.
            self._upstream = None
            self._open()
            return
        self._fail(broken(self._forward.replica.name))

    async def _connect(self) -> None:
        try:
            upstream = await self._pools[self._forward.replica.name].connect()
        except OSError as error:
            self._connecting = None
            self._fail(unreachable(self._forward.replica.name, error, error.errno))
            return
        self._connecting = None
        self._ask(upstream)

    def _give_up_connecting(self) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()

    def _ask(self, upstream: Upstream) -> None:
        self._upstream, self._silent_since_s = upstream, None
        if self._is_paused:
            upstream.pause()
        upstream.ask(self, self._build_request())
        if self._began_ns:
            self._desk.metrics.forward.add(time.perf_counter_ns() - self._began_ns)
            self._began_ns = 0  # what is sent again elsewhere was sent on already

    def _build_request(self) -> bytes:
        forward = self._forward
        pool = self._pools[forward.replica.name]
        authorization = f"authorization: Bearer {self._key}\r\n" if self._key else ""
        passed = "".join([f"{name}: {value}\r\n" for name, value in forward.passed_headers])
        head = (
            f"POST {pool.path}{forward.path} HTTP/1.1\r\nhost: {pool.host_header}\r\n"
            f"content-type: application/json\r\n{authorization}x-request-id: {forward.request_id}\r\n"
            f"{passed}content-length: {len(forward.body)}\r\n\r\n"
        )
        return head.encode("latin-1") + forward.body

    def _fail(self, error: ReplicaError) -> None:
        """Tell the client that there is no answer, or no more of it."""
        self._desk.note_failure(self._forward, error)
        if error.outcome is not Outcome.SILENT and self._try_elsewhere(error.outcome):
            return
        self._flight.outcome = error.outcome
        upstream = self._upstream
        framing = upstream.framing if upstream is not None else None
        if upstream is not None:
            upstream.abort()
        self._upstream = None
        if not self._has_written:
            self._caller.write(build_error(error, self._forward.reply_headers))
            self._finish(keeps_alive=True)
            return
        ending = framing.complete() if isinstance(framing, ChunkedFraming) else None
        if ending is not None and self._streams:
            # An event that was cut in the middle is closed first, or the error would become part of it.
            event = b"\n\n" + error.event
            self._caller.write(ending + b"%x\r\n%b\r\n" % (len(event), event) + _LAST_CHUNK)
        elif self._is_open_ended and self._streams:
            self._caller.write(b"\n\n" + error.event)
        self._finish(keeps_alive=ending is not None and self._streams)

    def _finish(self, *, keeps_alive: bool) -> None:
        self._close()
        self._caller.end(keeps_alive=keeps_alive)

    def _close(self) -> None:
        """The one place where a passage ends, however it ends."""
        if self._is_over:
            return
        self._is_over = True
        self._give_up_connecting()
        if self._upstream is not None:
            self._upstream.abort()
            self._flight.outcome = Outcome.CANCELLED
        self._flight.end()


@functools.lru_cache(maxsize=64)  # `parse_head` gives the same object for the same bytes
def _pass_fields_on(head: ResponseHead) -> bytes:
    """The fields of a replica's answer that reach the client, and the empty line after them."""
    fields = head.fields
    lines = [b"%b: %b\r\n" % (name, fields[key].encode("latin-1")) for key, name in _PASSED if key in fields]
    if head.framing == "chunked":
        lines.append(b"transfer-encoding: chunked\r\n")
    elif head.framing == "length":
        lines.append(b"content-length: %d\r\n" % head.length_bytes)
    else:
        lines.append(b"connection: close\r\n")
    return b"".join(lines) + b"\r\n"
