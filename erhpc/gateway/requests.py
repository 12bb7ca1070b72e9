"""What a client asks: the body of a request, read as far as routing needs it and otherwise left as it came.

It knows no HTTP and no replica; fields it does not name pass through.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from erhpc.config import AUTO_MODEL, RouterConfig
from erhpc.gateway.bulk import check_bulk
from erhpc.gateway.errors import ApiError
from erhpc.plan.protocol import CHARS_PER_TOKEN

Api = Literal["chat", "completions", "other"]

REQUEST_ID = "x-request-id"
PASSED_HEADERS = ("traceparent", "tracestate")
"""Request headers that the replica gets too, if they are ASCII: W3C trace context."""
_FIRST_ID = int.from_bytes(os.urandom(12), "big") << 32
"""Ids of this process count up from here: drawing each anew takes ten times as long."""
_numbers = itertools.count()
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
NOTHING = msgspec.Raw(b"null")
MIN_LOOKS = 100
"""So many values of a field are looked at for texts, however few characters of them are wanted."""
_MODEL = re.compile(rb'"model"[ \t\r\n]*+:[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")')
_ESCAPED_LETTER = rb"\u006"
"""How each letter of `model` begins if it is escaped."""
_PATH = re.compile(r"at `\$\.?([^`]+)`")
_FIELD = re.compile(r"field `([^`]+)`")


# Nothing here can refer to itself, and looking for cycles among millions of them would hold all other requests up.
class Part(msgspec.Struct, gc=False):
    """One part of a message's content; only texts are read."""

    text: str | None = None


class Message(msgspec.Struct, gc=False):
    """One turn of a chat."""

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The words of the turn; empty if it has none."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class ChatBody(msgspec.Struct):
    """Body of /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    user: msgspec.Raw = NOTHING
    """Whatever it is passes through, unread; a text that is not empty names a session."""

    def routed_text(self, which: str, limit_chars: int) -> str:
        """The text that is classified: the last user turn, or (also if there is none) all turns as far as the limit."""
        if which == "last_user":
            for message in reversed(self.messages):
                if message.role == "user":
                    return message.text
        return join_turns(self.messages, limit_chars)

    def prefix(self, limit_chars: int) -> str:
        """How the chat begins: up to the first user turn, which later turns repeat; at most `limit_chars`."""
        first_user = next((n for n, message in enumerate(self.messages) if message.role == "user"), len(self.messages))
        return join_turns(self.messages[: first_user + 1], limit_chars)[:limit_chars]


class CompletionBody(msgspec.Struct):
    """Body of /v1/completions; prompts may also be given as token numbers, which cannot be classified."""

    model: str
    prompt: str | list[str | int | list[int]]
    stream: bool | None = None
    user: msgspec.Raw = NOTHING
    """Whatever it is passes through, unread; a text that is not empty names a session."""

    def routed_text(self, which: str, limit_chars: int) -> str:
        """The text that is classified: all prompts as far as the limit, empty if they are token numbers."""
        if isinstance(self.prompt, str):
            return self.prompt
        # Each brings one character at least, the line end.
        return "\n".join(prompt for prompt in self.prompt[:limit_chars] if isinstance(prompt, str))

    def prefix(self, limit_chars: int) -> str:
        """How the first prompt begins; of token numbers, as many as are worth `limit_chars`."""
        if isinstance(self.prompt, str):
            return self.prompt[:limit_chars]
        first = self.prompt[0] if self.prompt else ""
        if isinstance(first, str):
            return first[:limit_chars]
        tokens = self.prompt if isinstance(first, int) else first
        return " ".join(map(str, tokens[: -(-limit_chars // CHARS_PER_TOKEN)]))


class OtherBody(msgspec.Struct):
    """Body of any other route that a replica may answer: texts are looked for where OpenAI and vLLM have them."""

    model: str = AUTO_MODEL
    input: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    messages: msgspec.Raw = NOTHING
    query: msgspec.Raw = NOTHING
    user: msgspec.Raw = NOTHING

    def routed_text(self, which: str, limit_chars: int) -> str:
        """The text that is classified: the first of the fields that holds one, as far as the limit."""
        for field in (self.input, self.prompt, self.messages, self.query):
            if text := "\n".join(_find_texts(msgspec.json.decode(field), iter(range(limit_chars + MIN_LOOKS)))):
                return text[:limit_chars]
        return ""

    def prefix(self, limit_chars: int) -> str:
        """How that text begins."""
        return self.routed_text("all", limit_chars)


def _find_texts(value: Any, looks: Iterator[int], depth: int = 6) -> Iterator[str]:
    """The texts in a field: itself, those of a list, those that messages and their parts have; not too deep.

    Each value that is looked at takes one of `looks`; without any left there are no more texts.
    """
    if next(looks, None) is None:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth:
        for item in value:
            yield from _find_texts(item, looks, depth - 1)
    elif isinstance(value, dict) and depth:
        yield from _find_texts(value.get("content", value.get("text")), looks, depth - 1)


Content = ChatBody | CompletionBody | OtherBody
_DECODERS: dict[Api, msgspec.json.Decoder[Any]] = {
    "chat": msgspec.json.Decoder(ChatBody),
    "completions": msgspec.json.Decoder(CompletionBody),
    "other": msgspec.json.Decoder(OtherBody),
}
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


# These are made for every request, and a frozen dataclass takes three times as long to make.
@dataclass(slots=True)
class Inquiry:
    """A request that was found well-formed: its bytes and what routing reads of them."""

    raw: bytes
    content: Content

    @property
    def model(self) -> str:
        """The model asked for."""
        return self.content.model

    def body_for(self, model: str) -> bytes:
        """The body with the model name replaced; every other value stays byte for byte, in its order."""
        raw, name = self.raw, msgspec.json.encode(model)
        if model == self.content.model:
            return raw
        # These name a model: where there is one place for the name, and no other way to write it, it is there.
        is_named = isinstance(self.content, ChatBody | CompletionBody)
        if is_named and raw.count(b'"model"') == 1 and _ESCAPED_LETTER not in raw and (found := _MODEL.search(raw)):
            return raw[: found.start(1)] + name + raw[found.end(1) :]
        fields = _FIELDS.decode(self.raw)
        fields["model"] = msgspec.Raw(name)
        return msgspec.json.encode(fields)


@dataclass(slots=True)
class InquiryTraits:
    """What of an inquiry may decide where it goes; implements `erhpc.routing.rules.Traits`."""

    content: Content
    session_header: str | None
    """Value of protocol.SESSION_HEADER, None if it was not sent."""
    config: RouterConfig

    @property
    def text(self) -> str:
        """The text that is classified (see RouterConfig.text), cut after `text_limit_chars`."""
        limit_chars = self.config.text_limit_chars
        return self.content.routed_text(self.config.text, limit_chars)[:limit_chars]

    @property
    def prefix(self) -> str:
        """How the prompt begins, cut after `prefix_limit_chars`."""
        return self.content.prefix(self.config.prefix_limit_chars)

    @property
    def session(self) -> str | None:
        """Whose request it is: the header if it was sent and is not empty, else the field `user`."""
        if self.session_header:
            return self.session_header
        user = memoryview(self.content.user)
        return msgspec.json.decode(user, type=str) if bytes(user[:1]) == b'"' else None


def parse_inquiry(api: Api, raw: bytes) -> Inquiry:
    """Read the body of a request.

    Raises ApiError 400 if it is no JSON, a field is missing or of a wrong type, or there is too much in it.
    """
    check_bulk(raw, reads_numbers=api != "chat")
    try:
        raw.decode()  # msgspec does not look into the strings of fields it skips
        return Inquiry(raw, _DECODERS[api].decode(raw))
    except msgspec.ValidationError as error:
        raise ApiError(400, f"The body is not valid: {error}.", param=_find_field(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is no JSON: {error}.") from error
    except RecursionError as error:
        raise ApiError(400, "The body is nested too deeply.") from error


def join_turns(messages: Iterable[Message], limit_chars: int) -> str:
    """The words of `messages`, one after the other, until there are `limit_chars` or some more."""
    texts, num_chars = [], 0
    for message in messages:
        texts.append(message.text)
        num_chars += len(texts[-1]) + 1
        if num_chars > limit_chars:
            break
    return "\n".join(texts)


def choose_request_id(given: str | None) -> str:
    """The client's request id if it is up to 128 letters, digits and `._:-`, else a new one."""
    return given if given and _SANE_ID.fullmatch(given) else f"{_FIRST_ID + next(_numbers):032x}"


def _find_field(message: str) -> str | None:
    """The place msgspec names, e.g. messages[0].role; None: the whole body."""
    found = (_PATH.search(message), _FIELD.search(message))
    return ".".join(match[1] for match in found if match) or None
