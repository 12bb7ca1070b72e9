"""Reads prompts from the shipped corpus, JSONL, ShareGPT files and datasets on disk into one plain type.

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
from erhpc.corpus.dataset import DATASET_EXPECTED, Row, find_split, read_rows
from erhpc.corpus.turns import CONVERSATION_KEYS, first_value, read_turns
from erhpc.errors import InputError, require_choice

JSONL_EXPECTED = 'one JSON object per line, {"prompt": "How ...?"}, with optional "id" and "domain"'
SHAREGPT_EXPECTED = 'a JSON list of {"id": "1", "conversations": [{"from": "human", "value": "How ...?"}, ...]}'
EXPECTED = {"jsonl": JSONL_EXPECTED, "sharegpt": SHAREGPT_EXPECTED, "dataset": DATASET_EXPECTED}
"""Each format prompts may have, and how an error describes it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text a user could send, and how the conversation went on if it was recorded."""

    prompt_id: str
    domain: str
    """What the prompt is about, as labelled by its author; empty if it has no label."""
    text: str
    """What the human says first."""
    later: tuple[str, ...] = ()
    """What the human says in the turns after it."""
    answers: tuple[str, ...] = ()
    """What was answered to each turn; "" or missing where no answer was recorded."""

    @property
    def turns(self) -> tuple[str, ...]:
        """Everything the human says; a plain prompt is a conversation of one turn."""
        return (self.text, *self.later)


def read_prompts(
    source: str,
    format: str = "jsonl",  # noqa: A002 - the word of conf/workload
    *,
    prompt_column: str = "prompt",
    domain_column: str = "domain",
) -> list[Prompt]:
    """Read all prompts of `source`, in file order.

    `source` is `demo` for the shipped corpus, whose format is known, else a path.

    - `jsonl`: an object per line with `prompt` and optionally `id` and `domain`; a missing id becomes the line number.
    - `sharegpt`: a list of conversations, each of which gives a prompt with its recorded turns and answers;
      conversations in which no human speaks are skipped.
    - `dataset`: the split of a folder that `erhpc.corpus.dataset.find_split` chooses. `prompt_column` holds texts,
      lists of what the human says, or lists of turns as in ShareGPT and chat files; rows without a text are skipped.
      A missing column `id` becomes the row number, a missing `domain_column` no domain.

    Raises:
        ConfigError: the format is unknown.
        InputError: the file is missing, malformed, or has no prompt or no such column.
    """
    require_choice("prompts format", format, tuple(EXPECTED))
    if source == DEMO_CORPUS:
        return list(_parse_jsonl(_read_demo(), source))
    if format == "dataset":
        prompts = list(_read_dataset(source, prompt_column, domain_column))
    else:
        parse = _parse_sharegpt if format == "sharegpt" else _parse_jsonl
        prompts = list(parse(_read_file(source), source))
    if not prompts:
        raise InputError(f"{source} has no prompt. Expected: {EXPECTED[format]}.")
    return prompts


def hash_source(source: str) -> str:
    """SHA-256 of the file behind a source, or of the files that are read of a dataset; InputError if it is missing."""
    if source == DEMO_CORPUS:
        return hashlib.sha256(_read_demo()).hexdigest()
    if not Path(source).is_dir():
        return hashlib.sha256(_read_file(source)).hexdigest()
    digest = hashlib.sha256()
    for path in find_split(source).files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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
        turns = _find_turns(entry, f"{source}, entry {number}")
        yield from _to_prompt(_label(entry.get("id"), number), _label(entry.get("domain"), ""), turns)


def _find_turns(entry: Any, place: str) -> list[Any]:
    if not isinstance(entry, dict):
        raise _malformed(place, f"{_kind(entry)} instead of an object", SHAREGPT_EXPECTED)
    turns = first_value(entry, CONVERSATION_KEYS)
    if not isinstance(turns, list):
        raise _malformed(place, f"no list of turns under {' or '.join(CONVERSATION_KEYS)}", SHAREGPT_EXPECTED)
    return turns


def _to_prompt(prompt_id: str, domain: str, turns: list[Any]) -> Iterator[Prompt]:
    """The prompt of a recorded conversation; none if no human speaks in it."""
    texts, answers = read_turns(turns)
    if texts:
        recorded = tuple(answers) if any(answers) else ()
        yield Prompt(prompt_id, domain, texts[0], tuple(texts[1:]), recorded)


def _read_dataset(source: str, prompt_column: str, domain_column: str) -> Iterator[Prompt]:
    rows = read_rows(find_split(source).files, prompt_column, domain_column)
    for number, row in enumerate(rows, start=1):
        turns = _turns_of(row, f"{source}, row {number}, column {prompt_column!r}")
        yield from _to_prompt(_label(row.given_id, number), _label(row.domain, ""), turns)


def _turns_of(row: Row, place: str) -> list[Any]:
    """The turns of a row, however its column holds them."""
    value = row.value
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    # A sequence of features is saved as one list per feature.
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        raise _malformed(place, f"{_kind(value)} instead of a text or turns", "texts, or lists of turns")
    return [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in value]


def _decode(raw: bytes, place: str, expected: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    # msgspec reports bytes that are no UTF-8 with Python's own error.
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(place, f"no JSON in UTF-8 ({error})", expected) from error


def _label(given: Any, default: object) -> str:
    return str(default if given is None else given)


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "missing or null"}
    return kinds.get(type(value), "a number")


def _malformed(place: str, problem: str, expected: str) -> InputError:
    return InputError(f"{place}: {problem}. Expected: {expected}.")
