"""The requests of one user, one after the other: prompt, answer length and the bytes of the HTTP body.

It is pure: it knows neither time nor sockets. User k asks the same things in the same order however many users
there are, however they are spread over processes, and however fast the answers come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from numpy.random import PCG64, Generator, SeedSequence

from erhpc.config import WorkloadConfig
from erhpc.corpus.prompts import Prompt
from erhpc.errors import InputError
from erhpc.load.lengths import draw_tokens
from erhpc.load.texts import write_text


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request, ready to be sent."""

    sequence: int
    """Which request of its user it is, from 0."""
    prompt_id: str
    domain: str
    max_tokens: int
    body: bytes


class RequestSource:
    """The endless requests of one user of a workload; `prompts` may be empty only if the format is synthetic."""

    def __init__(self, user: int, seed: int, model: str, workload: WorkloadConfig, prompts: Sequence[Prompt]) -> None:
        self._user = user
        self._model = model
        self._workload = workload
        self._prompts = prompts
        # Equals SeedSequence(seed).spawn(n)[user] for every n > user.
        self._random = Generator(PCG64(SeedSequence(seed, spawn_key=(user,))))
        self._sequence = 0

    def draw(self) -> LoadRequest:
        """The user's next request."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        prompt = self._draw_prompt(sequence)
        max_tokens = draw_tokens(self._workload.output_tokens, self._random)
        body = encode_body(self._model, prompt.text, max_tokens, self._workload)
        return LoadRequest(sequence, prompt.prompt_id, prompt.domain, max_tokens, body)

    def _draw_prompt(self, sequence: int) -> Prompt:
        if self._workload.format == "synthetic":
            text = write_text(draw_tokens(self._workload.input_tokens, self._random), self._random)
            return Prompt(f"synthetic-{self._user}-{sequence}", "", text)
        return self._prompts[int(self._random.integers(len(self._prompts)))]


def encode_body(model: str, text: str, max_tokens: int, workload: WorkloadConfig) -> bytes:
    """JSON body of a streaming request to `workload.api`; `ignore_eos` is vLLM's extension and sent only if asked."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    body = {
        "model": model,
        **(asked if workload.api == "chat" else {"prompt": text}),
        "max_tokens": max_tokens,
        "temperature": workload.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.ignore_eos:
        body["ignore_eos"] = True
    return msgspec.json.encode(body)


def choose_prompts(prompts: Sequence[Prompt], domains: Sequence[str]) -> list[Prompt]:
    """The prompts of `domains`, all if it names none. Raises InputError if a domain has no prompt."""
    known = sorted({prompt.domain for prompt in prompts})
    missing = [domain for domain in domains if domain not in known]
    if missing:
        raise InputError(
            f"No prompt is of domain {', '.join(missing)}. The prompts have: {', '.join(known) or 'none'}. "
            "Choose domains among them, or none to use every prompt."
        )
    return [prompt for prompt in prompts if not domains or prompt.domain in domains]
