"""Tells who says what in a recorded conversation, in ShareGPT's words and in those of the OpenAI chat format.

It knows neither files nor prompts: turns come as plain Python values and leave as texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONVERSATION_KEYS = ("conversations", "conversation", "messages")
"""ShareGPT's keys first, the OpenAI chat format's last; so too below."""
SPEAKER_KEYS = ("from", "role")
CONTENT_KEYS = ("value", "content")
HUMAN_SPEAKERS = ("human", "user")
ANSWERING_SPEAKERS = ("gpt", "chatgpt", "bard", "bing", "model", "assistant")


def read_turns(turns: Sequence[Any]) -> tuple[list[str], list[str]]:
    """What the human said, turn by turn, and what was answered to each turn ("" where no answer was recorded).

    Several answers in a row are one, joined by a blank line. Everything else is skipped: system messages, answers
    before the first human turn, blank texts, parts that are no text.
    """
    texts: list[str] = []
    answers: list[str] = []
    for turn in turns:
        speaker, content = _read_turn(turn)
        if speaker in HUMAN_SPEAKERS and content:
            texts.append(content)
            answers.append("")
        elif speaker in ANSWERING_SPEAKERS and content and texts:
            answers[-1] = f"{answers[-1]}\n\n{content}" if answers[-1] else content
    return texts, answers


def first_value(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first of `keys` that the mapping has, else None."""
    return next((mapping[key] for key in keys if key in mapping), None)


def _read_turn(turn: Any) -> tuple[Any, str]:
    """Who speaks and what; "" if it is no text."""
    if not isinstance(turn, Mapping):
        return None, ""
    content = first_value(turn, CONTENT_KEYS)
    return first_value(turn, SPEAKER_KEYS), content if isinstance(content, str) and content.strip() else ""
