"""Makes the JSON bodies of requests; what was said in a conversation is encoded once, however often it is repeated.

It knows the two APIs of an OpenAI-compatible server, and neither prompts nor lengths.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from erhpc.config import WorkloadConfig

Speaker = Literal["system", "user", "assistant"]
_SPEAKERS = {name: f'{{"role":"{name}","content":'.encode() for name in ("system", "user", "assistant")}
_BLANK_LINE = rb"\n\n"
"""As JSON writes it."""


def encode_text(text: str) -> bytes:
    """A text as a JSON string."""
    return msgspec.json.encode(text)


class Transcript:
    """Everything said in one conversation so far, as JSON: messages (chat), or one text with blank lines between."""

    def __init__(self, api: str) -> None:
        self._is_chat = api == "chat"
        self._said: list[bytes] = []

    def add(self, speaker: Speaker, text: bytes) -> None:
        """Append what `speaker` says, given as a JSON string."""
        self._said.append(_SPEAKERS[speaker] + text + b"}" if self._is_chat else text[1:-1])

    def to_field(self) -> dict[str, msgspec.Raw]:
        """The field of a body that holds the conversation."""
        if self._is_chat:
            return {"messages": msgspec.Raw(b"[" + b",".join(self._said) + b"]")}
        return {"prompt": msgspec.Raw(b'"' + _BLANK_LINE.join(self._said) + b'"')}


def encode_body(model: str, transcript: Transcript, max_tokens: int, workload: WorkloadConfig) -> bytes:
    """JSON body of a streaming request to `workload.api`; `ignore_eos` is vLLM's extension and sent only if asked."""
    body: dict[str, Any] = {
        "model": model,
        **transcript.to_field(),
        "max_tokens": max_tokens,
        "temperature": workload.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.ignore_eos:
        body["ignore_eos"] = True
    return msgspec.json.encode(body)
