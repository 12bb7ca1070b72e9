"""Reads one streamed answer of an OpenAI-compatible server: which frames carry tokens, usage, errors, the end.

It is pure: bytes and their time of arrival come from whichever client holds the socket. Role-only and empty frames
are no tokens; reasoning and tool calls are.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from erhpc.client.events import EventSplitter, EventTooLong
from erhpc.client.exchange import Exchange
from erhpc.client.template import FrameTemplate

_DONE = b"[DONE]"
_MAX_TEMPLATES = 8
"""Templates tried for one answer: reasoning, then text; first frames bear a role. Frames may also never be alike."""
_NumTokens = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]  # the columns of the records hold no more


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _NumTokens | None = None
    completion_tokens: _NumTokens | None = None


class _Frame(msgspec.Struct, gc=False):
    # Typed decoding skips unknown fields; at 0.4 us per frame it is as cheap as searching for the keys.
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None


_decode_frame = msgspec.json.Decoder(_Frame).decode


class AnswerReader:
    """Takes the body of one answer piece by piece and writes what it says into `exchange`."""

    __slots__ = ("_events", "_exchange", "_finish_reason", "_num_templates", "_template")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events = EventSplitter()
        self._finish_reason: str | None = None
        self._template: FrameTemplate | None = None
        self._num_templates = 0

    @property
    def template(self) -> FrameTemplate | None:
        """What the next frame may be compared with instead of being read; None where it must be read."""
        return self._template if self._events.expects_event else None

    def read(self, data: bytes, arrived_ns: int) -> bool:
        """Take the piece that arrived at `arrived_ns`; True once the answer has ended, well or not."""
        try:
            events = self._events.feed(data)
        except EventTooLong as error:
            self._exchange.fail("malformed", str(error))
            return True
        num_frames = self._exchange.num_frames
        over = any(map(self._take, events))
        num_new = self._exchange.num_frames - num_frames
        if num_new:
            self._exchange.arrivals_ns.append(arrived_ns)
            self._exchange.num_coalesced += num_new > 1
        return over

    def end(self) -> None:
        """The body ended without the end of the answer: a failure, unless the last frame gave a finish reason."""
        if self._finish_reason is None and self._events.finish() != _DONE:
            self._exchange.fail("truncated", "the stream ended without [DONE] or a finish reason")

    def _take(self, event: bytes) -> bool:
        if event == _DONE:
            return True
        try:
            frame = _decode_frame(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._take_other(event, error)
        num_frames = self._exchange.num_frames
        is_over = self._take_frame(frame)
        # Frames that count tokens differ in more than the text, and after the last one none like it follows.
        if self._exchange.num_frames == num_frames + 1 and frame.usage is None and self._finish_reason is None:
            self._note_template(event)
        return is_over

    def _take_other(self, event: bytes, error: Exception) -> bool:
        """An event that is no frame: empty ones keep idle connections open, and `[DONE]` may have spaces about it."""
        text = event.strip()
        if text and text != _DONE:
            self._exchange.fail("malformed", f"a frame is not of the OpenAI protocol: {error}: {event[:200]!r}")
        return bool(text)

    def _note_template(self, event: bytes) -> None:
        if self._num_templates < _MAX_TEMPLATES and (found := FrameTemplate.from_event(event)) is not None:
            self._template = found
            self._num_templates += 1

    def _take_frame(self, frame: _Frame) -> bool:
        if frame.error is not None or frame.object == "error":
            self._exchange.fail("stream_error", _error_text(frame))
            return True
        for choice in frame.choices or ():
            self._exchange.num_frames += _carries_tokens(choice)
            self._finish_reason = choice.finish_reason or self._finish_reason
        if frame.usage is not None:
            self._exchange.tokens_in = frame.usage.prompt_tokens
            self._exchange.tokens_out = frame.usage.completion_tokens
        return False


def _carries_tokens(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls)


def _error_text(frame: _Frame) -> str:
    """The message of an error frame: `{"error": {"message": ..}}`, `{"error": ".."}` or `{"object": "error", ..}`."""
    error = frame.error
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error if error is not None else frame.message)
