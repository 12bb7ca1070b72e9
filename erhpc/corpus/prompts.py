"""Reads prompts from the shipped corpus, from JSONL and from ShareGPT files into one plain type.

It does not know what the prompts are for (fitting, load, a tokenizer) and draws no samples from them.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from erhpc.config import DEMO_CORPUS
from erhpc.errors import InputError, require_choice

JSONL_EXPECTED = 'one JSON object per line, {"prompt": "How ...?"}, with optional "id" and "domain"'
SHAREGPT_EXPECTED = 'a JSON list of {"id": "1", "conversations": [{"from": "human", "value": "How ...?"}, ...]}'
EXPECTED = {"jsonl": JSONL_EXPECTED, "sharegpt": SHAREGPT_EXPECTED}
"""Each format a prompts file may have, and how an error describes it."""

CONVERSATION_KEYS = ("conversations", "conversation", "messages")
"""ShareGPT's keys first, the OpenAI chat format's last; so too below."""
SPEAKER_KEYS = ("from", "role")
CONTENT_KEYS = ("value", "content")
HUMAN_SPEAKERS = ("human", "user")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text a user could send."""

    prompt_id: str
    domain: str
    """What the prompt is about, as labelled by its author; empty if it has no label."""
    text: str


def read_prompts(source: str, format: str = "jsonl") -> list[Prompt]:  # noqa: A002 - the word of conf/workload
    """Read all prompts of `source`, in file order.

    `source` is `demo` for the shipped corpus, whose format is known, else a path. Format `jsonl`: an object per
    line with `prompt` and optionally `id` and `domain`; a missing id becomes the line number. Format `sharegpt`: a
    list of conversations, each of which gives its first human turn; conversations without one are skipped.

    Raises:
        ConfigError: the format is unknown.
        InputError: the file is missing, malformed, or has no prompt.
    """
    require_choice("prompts format", format, tuple(EXPECTED))
    if source == DEMO_CORPUS:
        return list(_parse_jsonl(_read_demo(), source))
    parse = _parse_sharegpt if format == "sharegpt" else _parse_jsonl
    prompts = list(parse(_read_file(source), source))
    if not prompts:
        raise InputError(f"{source} has no prompt. Expected: {EXPECTED[format]}.")
    return prompts


def hash_source(source: str) -> str:
    """SHA-256 of the file behind a source; InputError if it is missing."""
    return hashlib.sha256(_read_demo() if source == DEMO_CORPUS else _read_file(source)).hexdigest()


def demo_text() -> str:
    """Join the texts of the shipped corpus by newlines: what the synthetic tokenizer is trained on."""
    return "\n".join(prompt.text for prompt in read_prompts(DEMO_CORPUS))


def _read_demo() -> bytes:
    return resources.files("erhpc.corpus").joinpath("demo.jsonl").read_bytes()


def _read_file(source: str) -> bytes:
    try:
        return Path(source).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(
            f"The prompts file {source} (looked for at {Path(source).absolute()}) cannot be read: {error.strerror}. "
            f"Give the path of a readable file, or {DEMO_CORPUS} for the prompts erhpc ships."
        ) from error


def _parse_jsonl(raw: bytes, source: str) -> Iterator[Prompt]:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield _parse_line(line, number, f"{source}, line {number}")


def _parse_line(line: bytes, number: int, place: str) -> Prompt:
    value = _decode(line, place, JSONL_EXPECTED)
    if not isinstance(value, dict):
        raise _malformed(place, f"{_kind(value)} instead of an object", JSONL_EXPECTED)
    text = value.get("prompt")
    if not isinstance(text, str):
        raise _malformed(place, f"field `prompt` is {_kind(text)} instead of a string", JSONL_EXPECTED)
    if not text.strip():
        raise _malformed(place, "field `prompt` is empty", JSONL_EXPECTED)
    return Prompt(_label(value.get("id"), number), _label(value.get("domain"), ""), text)


def _parse_sharegpt(raw: bytes, source: str) -> Iterator[Prompt]:
    entries = _decode(raw, source, SHAREGPT_EXPECTED)
    if not isinstance(entries, list):
        raise _malformed(source, f"{_kind(entries)} instead of a list", SHAREGPT_EXPECTED)
    for number, entry in enumerate(entries, start=1):
        text = _find_human_turn(_find_turns(entry, f"{source}, entry {number}"))
        if text:
            yield Prompt(_label(entry.get("id"), number), _label(entry.get("domain"), ""), text)


def _find_turns(entry: Any, place: str) -> list[Any]:
    if not isinstance(entry, dict):
        raise _malformed(place, f"{_kind(entry)} instead of an object", SHAREGPT_EXPECTED)
    turns = _first_value(entry, CONVERSATION_KEYS)
    if not isinstance(turns, list):
        raise _malformed(place, f"no list of turns under {' or '.join(CONVERSATION_KEYS)}", SHAREGPT_EXPECTED)
    return turns


def _find_human_turn(turns: list[Any]) -> str:
    """Text of the first turn in which a human says something; empty if there is none."""
    for turn in turns:
        if isinstance(turn, dict) and _first_value(turn, SPEAKER_KEYS) in HUMAN_SPEAKERS:
            text = _first_value(turn, CONTENT_KEYS)
            if isinstance(text, str) and text.strip():
                return text
    return ""


def _decode(raw: bytes, place: str, expected: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    # msgspec reports bytes that are no UTF-8 with Python's own error.
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(place, f"no JSON in UTF-8 ({error})", expected) from error


def _first_value(mapping: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((mapping[key] for key in keys if key in mapping), None)


def _label(given: Any, default: object) -> str:
    return str(default if given is None else given)


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "missing or null"}
    return kinds.get(type(value), "a number")


def _malformed(place: str, problem: str, expected: str) -> InputError:
    return InputError(f"{place}: {problem}. Expected: {expected}.")
