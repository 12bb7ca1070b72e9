"""What a request body asks of an emulated expert: how many tokens in, how many out, in which form.

It knows no HTTP connection and no scheduler. Text counts as one token per four characters; a prompt of token ids
counts exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

import msgspec

from erhpc.errors import ErhpcError
from erhpc.plan.protocol import CHARS_PER_TOKEN

Api = Literal["chat", "completions"]

_COMPLETIONS_MAX_TOKENS = 16
"""Default of the OpenAI completions API."""
_NATURAL_MEDIAN_TOKENS = 200
_NATURAL_LOG_SIGMA = 0.8
"""Length of an answer that nothing cuts: log-normal, an assumption in the range of public chat traces."""


class RefusedRequest(ErhpcError):
    """A request that is answered with an error: HTTP status, kind and message in OpenAI's words."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A valid request, reduced to what the emulation needs."""

    api: Api
    prompt_tokens: int
    answer_tokens: int
    max_tokens: int
    """Most tokens that the answer may have."""
    prompt: str | list[int]
    """The prompt as one text, or as token ids."""
    finish_reason: Literal["stop", "length"]
    stream: bool
    include_usage: bool


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    seed: int | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _ChatBody(_Body, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None


class _CompletionsBody(_Body, kw_only=True):
    prompt: str | list[Any]


_CHAT_DECODER = msgspec.json.Decoder(_ChatBody)
_COMPLETIONS_DECODER = msgspec.json.Decoder(_CompletionsBody)


class Served(Protocol):
    """What the replica serves, as far as a request can contradict it."""

    @property
    def model(self) -> str:
        """Name of the model, and the one in answers."""
        ...

    @property
    def aliases(self) -> Sequence[str]:
        """Other names that a request may use."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer, in tokens."""
        ...


def parse_ask(api: Api, raw: bytes, served: Served) -> Ask:
    """What `raw`, the JSON body of a request to `api`, asks for.

    Raises RefusedRequest: 400 for a body that is malformed, asks for more than one answer or does not fit
    max_model_len; 404 for a model that is not served.
    """
    body = _decode(api, raw)
    _check_model(body.model, (served.model, *served.aliases))
    if body.n not in (None, 1):
        raise _bad_request(f"n={body.n} is not supported. Allowed: 1.")
    text_or_ids = _prompt(body)
    prompt_tokens = _count_tokens(text_or_ids)
    max_tokens = _max_tokens(body, prompt_tokens, served.max_model_len)
    answer_tokens = max_tokens
    if not body.ignore_eos:
        answer_tokens = min(max_tokens, natural_length(Random(f"{body.seed}:{text_or_ids}")))
    return Ask(
        api=api,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        max_tokens=max_tokens,
        prompt=text_or_ids,
        finish_reason="length" if answer_tokens == max_tokens else "stop",
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def natural_length(randomness: Random) -> int:
    """Tokens of an answer that ends by itself."""
    return max(1, round(_NATURAL_MEDIAN_TOKENS * randomness.lognormvariate(0, _NATURAL_LOG_SIGMA)))


def _decode(api: Api, raw: bytes) -> _ChatBody | _CompletionsBody:
    try:
        return _CHAT_DECODER.decode(raw) if api == "chat" else _COMPLETIONS_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad_request(f"The request body is not valid: {error}.") from error


def _check_model(asked: str | None, served: Sequence[str]) -> None:
    if asked is not None and asked not in served:
        allowed = ", ".join(map(repr, served))
        raise RefusedRequest(404, "NotFoundError", f"The model {asked!r} is not served here. Allowed: {allowed}.")


def _prompt(body: _ChatBody | _CompletionsBody) -> str | list[int]:
    """The prompt as one text, or as token ids."""
    if isinstance(body, _ChatBody):
        return "\n".join(_message_text(message) for message in body.messages)
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) or all(type(token) is int for token in prompt):
        return prompt
    raise _bad_request("prompt holds several prompts or no tokens. Allowed: one text, or one list of token ids.")


def _message_text(message: _Message) -> str:
    if isinstance(message.content, list):
        return "".join(str(part.get("text", "")) for part in message.content)
    return message.content or ""


def _count_tokens(text_or_ids: str | list[int]) -> int:
    if isinstance(text_or_ids, list):
        return max(1, len(text_or_ids))
    return max(1, round(len(text_or_ids) / CHARS_PER_TOKEN))


def _max_tokens(body: _ChatBody | _CompletionsBody, prompt_tokens: int, max_model_len: int) -> int:
    room = max_model_len - prompt_tokens
    asked = body.max_tokens
    if isinstance(body, _ChatBody):
        asked = next((limit for limit in (body.max_completion_tokens, asked) if limit is not None), max(room, 1))
    elif asked is None:
        asked = _COMPLETIONS_MAX_TOKENS
    if asked < 1:
        raise _bad_request(f"max_tokens={asked} is out of range. Allowed: at least 1.")
    if asked > room:
        raise _bad_request(
            f"The prompt has {prompt_tokens} tokens and max_tokens is {asked}: together more than the model's maximum "
            f"context length of {max_model_len} tokens. Shorten the prompt or lower max_tokens."
        )
    return asked


def _bad_request(message: str) -> RefusedRequest:
    return RefusedRequest(400, "BadRequestError", message)
