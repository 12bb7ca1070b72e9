"""The bytes of an emulated answer: SSE frames in the shape of vLLM's, or one JSON object.

It knows neither connection nor time. The text is a fixed cycle of words, so that the frames of an answer are
built once and a token costs no formatting.
"""

from __future__ import annotations

from typing import Any

import msgspec

from erhpc.experts.emulated_request import Ask

WORDS = (" alpha", " bravo", " charlie", " delta", " echo", " foxtrot", " golf", " hotel")
"""The text of tokens 0, 1, 2, ...; after the last word the first one follows again."""

_encode = msgspec.json.encode


class AnswerText:
    """All byte strings that one answer needs, as JSON in the shape of its API."""

    def __init__(self, ask: Ask, *, answer_id: str, created_s: int, model: str, interval: int = 1) -> None:
        """`interval`: tokens per piece of a stream, after the first token, which comes alone."""
        self._ask = ask
        self._interval = interval
        self._is_chat = ask.api == "chat"
        self._head = {"id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{answer_id}", "created": created_s}
        self._model = model

    def token_frames(self) -> tuple[bytes, ...]:
        """SSE frames of `interval` tokens that begin with token 0, 1, ... len(WORDS) - 1; they serve all later ones."""
        return tuple(self._frame([self._delta(self._words(first, self._interval))]) for first in range(len(WORDS)))

    def opening_frames(self) -> bytes:
        """The first token, after the role where it is a chat."""
        return self._role_frame() + self._frame([self._delta(self._words(0, 1))])

    def closing_frames(self) -> bytes:
        """What is left of the text with the finish reason, usage if asked for, the end mark.

        All there is, role included, if there is one token.
        """
        num_tokens = self._ask.answer_tokens
        num_sent = 1 + (num_tokens - 2) // self._interval * self._interval if num_tokens > 1 else 0
        frames = b"" if num_sent else self._role_frame()
        frames += self._frame([self._delta(self._words(num_sent, num_tokens - num_sent), self._ask.finish_reason)])
        if self._ask.include_usage:
            frames += self._frame([], usage=self._usage())
        return frames + b"data: [DONE]\n\n"

    def whole(self) -> bytes:
        """The answer to a request that does not stream."""
        text = self._words(0, self._ask.answer_tokens)
        part = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = [self._choice(part, self._ask.finish_reason)]
        return _encode(self._head | {"object": kind, "model": self._model, "choices": choices, "usage": self._usage()})

    def _words(self, first: int, number: int) -> str:
        return "".join(WORDS[index % len(WORDS)] for index in range(first, first + number))

    def _role_frame(self) -> bytes:
        if not self._is_chat:
            return b""
        return self._frame([self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def _delta(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        part = {"delta": {"content": text}} if self._is_chat else {"text": text}
        return self._choice(part, finish_reason)

    def _choice(self, part: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}

    def _frame(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        chunk = self._head | {"object": kind, "model": self._model, "choices": choices} | more
        return b"data: " + _encode(chunk) + b"\n\n"

    def _usage(self) -> dict[str, int]:
        prompt, answer = self._ask.prompt_tokens, self._ask.answer_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}
