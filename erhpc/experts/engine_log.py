"""Finds the line of an engine's log that says why it failed, among hundreds that only pass the failure on.

This module is pure: it knows the shape of vLLM's and Python's log lines, not where a log lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PROCESS = re.compile(r"^\([\w-]+(?: [\w-]+)* pid=\d+\) ?")
"""Which of vLLM's processes wrote the line: `(EngineCore pid=7927) `."""
_LEVEL = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:.]+ \[[^\]]+\] ?")
_RANK = re.compile(r"^\[rank\d+\]: ?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)(?:: (?P<message>.*))?$")
_USAGE_ERROR = re.compile(r"^\S+: error: \S")
"""How argparse refuses a flag."""
_SYMPTOM = re.compile(
    r"see (root cause above|stack trace for root cause)|^(asyncio\.exceptions\.)?CancelledError|^KeyboardInterrupt"
    r"|^SystemExit",
    re.IGNORECASE,
)
"""Errors of a process that only noticed that another one failed, or was told to stop."""
_VALIDATION = re.compile(r"\d+ validation errors? for ")
"""pydantic names the faulty class in the exception's line, and the fault in a line below."""
_PYDANTIC_TAIL = re.compile(r" ?\[type=\w+, input_value=.*$")


@dataclass(frozen=True)
class _Line:
    level: str | None
    text: str


def first_error(log: str) -> str | None:
    """Return the line a person needs from a failed engine's log: its earliest error that is no mere symptom.

    Without one: its first symptom, its first line of level ERROR, or its last line. None for an empty log.
    """
    lines = [_strip_prefixes(line) for line in log.splitlines() if line.strip()]
    errors = list(_find_errors(lines))
    causes = (error for error in errors if not _SYMPTOM.search(error))
    logged = (line.text.strip() for line in lines if line.level in ("ERROR", "CRITICAL") and line.text.strip())
    last = (line.text.strip() for line in reversed(lines) if line.text.strip())
    return _first(causes) or _first(errors) or _first(logged) or _first(last)


def _strip_prefixes(line: str) -> _Line:
    text = _PROCESS.sub("", _ANSI.sub("", line))
    level = _LEVEL.match(text)
    if level:
        text = text[level.end() :]
    return _Line(level[1] if level else None, _RANK.sub("", text).rstrip())


def _find_errors(lines: list[_Line]) -> Iterator[str]:
    for index, line in enumerate(lines):
        # An exception that was logged as a warning was also dealt with.
        if line.level not in (None, "ERROR", "CRITICAL"):
            continue
        exception = _EXCEPTION.match(line.text)
        if exception and _VALIDATION.match(exception["message"] or ""):
            yield _read_validation_error(line.text, lines[index + 1 :])
        elif exception or _USAGE_ERROR.match(line.text):
            yield line.text


def _read_validation_error(heading: str, below: list[_Line]) -> str:
    fault = below[0].text.strip() if below else ""
    if not fault.startswith("Value error, "):
        return f"{heading} {fault}".strip()
    return "ValueError: " + _PYDANTIC_TAIL.sub("", fault.removeprefix("Value error, "))


def _first(texts: Iterable[str]) -> str | None:
    return next(iter(texts), None)
