"""A client's connection: takes plain requests for answers itself, and leaves everything else to aiohttp.

A connection begins here. Whatever comes on it that is not a plain POST of known length to one of the routes that
experts answer (another route, a chunked body, bytes that are no HTTP) goes, with the connection and all that follows,
to aiohttp, which serves all routes: here nothing unusual has to be right.
"""

from __future__ import annotations

import asyncio
import select
import time
from typing import TYPE_CHECKING, Any

from erhpc.gateway.admission import Overloaded, Ticket, Turn
from erhpc.gateway.answers import build_error, build_head
from erhpc.gateway.desk import Forward, Visit
from erhpc.gateway.errors import ApiError, overloaded, too_slow
from erhpc.gateway.passage import Passage
from erhpc.gateway.requests import PASSED_HEADERS, REQUEST_ID, Api, choose_request_id, parse_inquiry
from erhpc.http1.requests import (
    MAX_HEAD_BYTES,
    RequestHead,
    find_request_head,
    may_become_plain,
    parse_request_head,
)
from erhpc.plan.protocol import API_PATHS, QUEUE_HEADER, SESSION_HEADER

if TYPE_CHECKING:
    from erhpc.gateway.front import Front

KEEP_ALIVE_S = 75.0
"""Idle time after which a client's connection is closed; longer than clients keep one."""
REQUEST_TIMEOUT_S = 60.0
"""Within this a request that has begun must be complete."""
MAX_AHEAD_BYTES = 64 * 1024
"""Kept of what a client sends while it is being answered."""
_APIS: dict[bytes, Api] = {path.encode(): api for api, path in API_PATHS.items()}  # type: ignore[misc]
_SESSION_FIELD = SESSION_HEADER.encode()
_PASSED_FIELDS = tuple((name.encode(), name) for name in PASSED_HEADERS)


class Caller(asyncio.Protocol):
    """One client's connection: one request after the other."""

    __slots__ = (
        "_buffer",
        "_expert_ticket",
        "_front",
        "_head",
        "_is_full",
        "_is_paused",
        "_parked",
        "_passage",
        "_since_s",
        "_skip_bytes",
        "_ticket",
        "_transport",
        "_visit",
        "_waited_ns",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self._buffer = bytearray()
        """What came and has not been taken."""
        self._head: RequestHead | None = None
        """Of the request whose body is coming in."""
        self._ticket: Ticket | None = None
        """Its place, or that of the request being answered."""
        self._visit: Visit | None = None
        self._waited_ns = 0
        """How long the request has waited for its turn."""
        self._parked: Forward | None = None
        """A request that waits for room at its expert."""
        self._expert_ticket: Ticket | None = None
        self._skip_bytes = 0
        """Of the body of a request that was turned away, which may still come."""
        self._passage: Passage | None = None
        self._since_s: float | None = None
        """Since when nothing has changed, as far as `check_times` knows."""
        self._is_paused = False
        """Whether nothing more is read from the client for now."""
        self._is_full = False
        """Whether the client has yet to read much of what was written."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._passage is not None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport: asyncio.Transport = transport
        self._front.callers.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._front.callers.discard(self)
        passage, self._passage = self._passage, None
        if passage is not None:
            passage.cancel()
            self._front.note_end()
        elif self._head is not None or self._parked is not None:
            self._front.desk.note_leave()
            self._head = self._parked = None
        self._give_place_up()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not (self._buffer or self._head or self._skip_bytes):
            self._since_s = None  # a request begins
        self._buffer += data
        if self._skip_bytes:
            self._skip()
        if self._passage is None and not self._is_waiting:
            self._front.reads.do(self._read)
        elif len(self._buffer) > MAX_AHEAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_full = True
        if self._passage is not None:
            self._passage.pause()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_full = False
        if self._passage is not None:
            self._passage.resume()

    def write(self, data: bytes) -> None:
        """See `passage.Caller`."""
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def sink(self) -> int | None:
        """See `passage.Caller`: a transport closes its socket after it has told `connection_lost`."""
        return find_sink(self._transport)

    def end(self, *, keeps_alive: bool) -> None:
        """See `passage.Caller`."""
        self._passage, self._since_s = None, None
        self._give_place_up()
        self._front.note_end()
        if not keeps_alive:
            self._transport.close()
        else:
            self._resume()
        if self._buffer:
            # Not from here: requests that are ready one behind the other would nest.
            asyncio.get_running_loop().call_soon(self._read)

    def close(self) -> None:
        """End the connection and the request on it; a refusal that was written is still sent."""
        if self._passage is None:
            self._transport.close()
        else:
            self._transport.abort()

    def check_times(self, now_s: float) -> None:
        """Close a connection that is idle, or slow to send a request, for too long, or that the client has closed."""
        if self._is_paused and has_left(self._transport):
            self.close()
            return
        if self._passage is not None:
            self._passage.check_silence(now_s)
        elif self._since_s is None or self._is_waiting:
            self._since_s = now_s
        elif (self._buffer or self._head) and now_s - self._since_s > REQUEST_TIMEOUT_S:
            self._give_up()
        elif now_s - self._since_s > KEEP_ALIVE_S:
            self._transport.close()

    def _read(self) -> None:
        """Take the requests that have come, as far as they can be answered."""
        while self._buffer and self._passage is None and not self._transport.is_closing():
            if self._head is None and not self._read_head():
                return
            head = self._head
            if head is None or self._is_waiting or len(self._buffer) < head.length_bytes:
                return
            body = bytes(self._buffer[: head.length_bytes])
            del self._buffer[: head.length_bytes]
            self._head, self._since_s = None, None
            self._answer(head, body)
            if self._buffer and self._passage is None and not self._is_waiting:
                # A refusal takes little, but thousands that came at once would hold all others up.
                if not self._is_paused:
                    self._is_paused = True
                    self._transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._read_on)
                return

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._resume()
            self._read()

    def _read_head(self) -> bool:
        """Take the head of a request; False if it is not complete, or aiohttp has the connection now."""
        end = find_request_head(self._buffer)
        if not end:
            if len(self._buffer) > MAX_HEAD_BYTES or not may_become_plain(self._buffer):
                self._hand_over()
            return False
        head = parse_request_head(bytes(self._buffer[:end])) if end <= MAX_HEAD_BYTES else None
        if head is None or not self._is_mine(head):
            self._hand_over()
            return False
        del self._buffer[:end]
        self._head, self._since_s, self._waited_ns = head, None, 0
        desk = self._front.desk
        try:
            self._visit = desk.receive(head.target.decode(), head.fields.get(b"authorization", b""))
            self._ticket = desk.admission.ask(self._take_turn, time.monotonic())
        except Overloaded:
            self._turn_away(head, overloaded())
        except ApiError as error:
            self._turn_away(head, error)
        return self._head is not None

    @property
    def _is_waiting(self) -> bool:
        return self._parked is not None or (self._ticket is not None and self._ticket.turn is Turn.WAITING)

    def _take_turn(self) -> None:
        """The request that has waited has got its place, or will not get one."""
        ticket = self._ticket
        if ticket is None or self._head is None:
            return
        if ticket.turn is Turn.EXPIRED:
            self._turn_away(self._head, overloaded())
            return
        self._note_wait(ticket)
        self._resume()
        # Not from here: whoever gives a place up is in the middle of something else.
        asyncio.get_running_loop().call_soon(self._read)

    def _note_wait(self, ticket: Ticket) -> None:
        self._waited_ns += round((time.monotonic() - ticket.asked_s) * 1e9)

    def _turn_away(self, head: RequestHead, error: ApiError) -> None:
        """Answer with an error, and skip the body, which may be under way."""
        self._refuse(error, choose_request_id(head.get(b"x-request-id")))
        self._head, self._skip_bytes = None, head.length_bytes
        self._resume()
        self._skip()
        asyncio.get_running_loop().call_soon(self._read)

    def _refuse(self, error: ApiError, request_id: str) -> None:
        self._front.desk.note_refusal(error)
        self.write(build_error(error, {REQUEST_ID: request_id}))
        self._give_place_up()

    def _give_up(self) -> None:
        """Answer 408, and read no more."""
        error, given = too_slow(REQUEST_TIMEOUT_S), self._head.get(b"x-request-id") if self._head else None
        self._front.desk.note_refusal(error)
        self.write(build_error(error, {REQUEST_ID: choose_request_id(given), "connection": "close"}))
        self._give_place_up()
        self._head = None
        self._buffer.clear()
        self._transport.close()

    def _skip(self) -> None:
        skipped = min(len(self._buffer), self._skip_bytes)
        del self._buffer[:skipped]
        self._skip_bytes -= skipped

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _give_place_up(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.leave()
        ticket, self._expert_ticket = self._expert_ticket, None
        if ticket is not None:
            ticket.leave()
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.end()

    def _is_mine(self, head: RequestHead) -> bool:
        return head.method == b"POST" and head.target in _APIS and 0 < head.length_bytes <= self._front.max_body_bytes

    def _hand_over(self) -> None:
        protocol = self._front.make_fallback()
        self._front.callers.discard(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if self._is_full:
            protocol.pause_writing()
        protocol.data_received(bytes(self._buffer))
        self._buffer.clear()

    def _answer(self, head: RequestHead, body: bytes) -> None:
        desk, request_id, began_ns = (
            self._front.desk,
            choose_request_id(head.get(b"x-request-id")),
            time.perf_counter_ns(),
        )
        fields = head.fields
        passed = tuple(
            [(name, fields[field].decode()) for field, name in _PASSED_FIELDS if fields.get(field, b"\xff").isascii()]
        )
        try:
            inquiry = parse_inquiry(_APIS[head.target], body)
            path, session = head.target.decode(), head.get(_SESSION_FIELD)
            forward = desk.decide(path, inquiry, request_id, session_header=session, passed_headers=passed)
            queue = desk.find_queue(forward)
            ticket = queue.ask(self._take_expert_turn, time.monotonic()) if queue is not None else None
        except Overloaded:
            self._refuse(overloaded(), request_id)
            return
        except ApiError as error:
            self._refuse(error, request_id)
            return
        self._expert_ticket = ticket
        if ticket is not None and ticket.turn is Turn.WAITING:
            self._parked = forward
        else:
            self._pass_on(forward, began_ns)

    def _take_expert_turn(self) -> None:
        """The request that has waited for its expert may go there, or has waited too long."""
        # Not from here: whoever gives a place up is in the middle of something else.
        asyncio.get_running_loop().call_soon(self._leave_queue)

    def _leave_queue(self) -> None:
        forward, self._parked = self._parked, None
        ticket = self._expert_ticket
        if forward is None or ticket is None:
            return
        began_ns = time.perf_counter_ns()
        self._note_wait(ticket)
        self._resume()
        try:
            if ticket.turn is Turn.EXPIRED:
                raise overloaded()
            self._front.desk.choose_again(forward)
        except ApiError as error:
            self._refuse(error, forward.request_id)
            self._read()
            return
        self._pass_on(forward, began_ns)
        if self._passage is None:
            self._read()

    def _pass_on(self, forward: Forward, began_ns: int) -> None:
        front = self._front
        if self._waited_ns:
            front.desk.metrics.queue.add(self._waited_ns)
            forward.reply_headers[QUEUE_HEADER] = f"{self._waited_ns / 1e3:.1f}"
        if front.desk.redirects:
            headers = front.desk.redirect(forward, front.key, time.time())
            self.write(build_head(307, {**headers, "content-length": "0"}) + b"\r\n")
            self._give_place_up()
            return
        self._passage = Passage(self, front.desk, forward, front.pools, front.key, began_ns)
        if self._is_full:
            self._passage.pause()
        self._passage.start()


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its end; nobody is told while nothing is read."""
    poll = select.poll()
    poll.register(find_socket(transport), select.POLLRDHUP)
    return bool(poll.poll(0))


def find_sink(transport: asyncio.Transport) -> int | None:
    """The socket that bytes may be written to past the transport; None: some wait before them, or it encrypts them."""
    if transport.get_write_buffer_size() or transport.get_extra_info("sslcontext") is not None:
        return None
    return find_socket(transport)


def find_socket(transport: asyncio.Transport) -> int:
    """The descriptor of its socket."""
    descriptor: int = transport.get_extra_info("socket").fileno()
    return descriptor
