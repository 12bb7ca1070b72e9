"""The requests of one user, one after the other: prompt, answer length and the bytes of the HTTP body.

It is pure: it knows neither time nor sockets. User k asks the same things in the same order however many users
there are, however they are spread over processes, however fast the answers come and whatever they say.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import PCG64, Generator, SeedSequence

from erhpc.config import WorkloadConfig
from erhpc.corpus.prompts import Prompt
from erhpc.workload.bodies import Transcript, encode_body, encode_text
from erhpc.workload.lengths import draw_tokens
from erhpc.workload.pool import PromptPool


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request, ready to be sent."""

    sequence: int
    """Which request of its user it is, from 0."""
    prompt_id: str
    """Of the prompt whose text is asked last; the same in all turns of a recorded conversation."""
    domain: str
    max_tokens: int
    body: bytes
    turn: int = 0
    """Which request of its conversation it is, from 0."""
    is_last_turn: bool = True
    """Whether the user's next request begins another conversation."""
    session: bytes = b""
    """Value of protocol.SESSION_HEADER; none is sent if it is empty."""

    def without_body(self) -> LoadRequest:
        """What remains to be known of it once it has been sent."""
        return LoadRequest(
            self.sequence, self.prompt_id, self.domain, self.max_tokens, b"", self.turn, self.is_last_turn
        )  # fmt: skip


@dataclass(slots=True)
class _Conversation:
    """How far a conversation has come."""

    num_turns: int
    transcript: Transcript
    opening: Prompt | None = None
    """The prompt it began with; its domain and its recorded turns are those of the conversation."""
    turn: int = 0
    answer: str = ""
    """The recorded answer to the last turn; empty if there is none."""
    max_tokens: int = 0
    """Length of the answer to the last turn."""


class RequestSource:
    """The endless requests of one user of a workload, conversation after conversation.

    All are of one session, the user's number: a user stays the same person from one conversation to the next.
    A request repeats the turns before it. Their answers are the recorded ones of the prompts, else texts as long as
    the engine was asked to answer. When a recorded conversation has no more turns, other prompts of its domain go on.
    """

    def __init__(self, user: int, seed: int, model: str, workload: WorkloadConfig, pool: PromptPool) -> None:
        self._user = user
        self._session = b"%d" % user
        self._model = model
        self._workload = workload
        self._pool = pool
        # Equals SeedSequence(seed).spawn(n)[user] for every n > user.
        self._random = Generator(PCG64(SeedSequence(seed, spawn_key=(user,))))
        self._sequence = 0
        self._conversation: _Conversation | None = None

    def draw(self, lengths: tuple[int, int] | None = None) -> LoadRequest:
        """The user's next request.

        `lengths` are the tokens of prompt and answer in the row of the trace that the request replays; they count
        only for lengths of kind `trace`, for which a row is drawn if there is none here.

        Raises:
            ConfigError: a length is of kind `trace` and the pool cannot draw rows.
        """
        sequence, self._sequence = self._sequence, self._sequence + 1
        conversation = self._conversation or self._begin()
        tokens_in, tokens_out = lengths or self._draw_row()
        prompt = self._continue(conversation, sequence, tokens_in)
        max_tokens = draw_tokens(self._workload.output_tokens, self._random, tokens_out)
        body = encode_body(self._model, conversation.transcript, max_tokens, self._workload)
        turn, conversation.turn = conversation.turn, conversation.turn + 1
        conversation.max_tokens = max_tokens
        is_last = conversation.turn == conversation.num_turns
        self._conversation = None if is_last else conversation
        return LoadRequest(sequence, prompt.prompt_id, prompt.domain, max_tokens, body, turn, is_last, self._session)

    def _begin(self) -> _Conversation:
        conversation = _Conversation(draw_tokens(self._workload.turns, self._random), Transcript(self._workload.api))
        prefix = self._pool.draw_prefix(self._random)
        if prefix is not None:
            conversation.transcript.add("system", prefix)
        return conversation

    def _draw_row(self) -> tuple[int | None, int | None]:
        if "trace" in (self._workload.input_tokens.kind, self._workload.output_tokens.kind):
            return self._pool.draw_row(self._random)
        return None, None

    def _continue(self, conversation: _Conversation, sequence: int, tokens_in: int | None) -> Prompt:
        """Answer the last turn and ask the next; returns the prompt that is asked."""
        if conversation.turn:
            answer = conversation.answer or self._pool.writer.write(conversation.max_tokens, self._random)
            conversation.transcript.add("assistant", encode_text(answer))
        prompt, number = self._choose(conversation, sequence, tokens_in)
        conversation.opening = conversation.opening or prompt
        conversation.answer = prompt.answers[number] if number < len(prompt.answers) else ""
        conversation.transcript.add("user", encode_text(prompt.turns[number]))
        return prompt

    def _choose(self, conversation: _Conversation, sequence: int, tokens_in: int | None) -> tuple[Prompt, int]:
        """A prompt, and which of its turns is asked."""
        if self._workload.format == "synthetic":
            tokens = draw_tokens(self._workload.input_tokens, self._random, tokens_in)
            return Prompt(f"synthetic-{self._user}-{sequence}", "", self._pool.writer.write(tokens, self._random)), 0
        opening = conversation.opening
        if opening is None:
            return self._pool.draw_prompt(self._random), 0
        if conversation.turn <= len(opening.later):
            return opening, conversation.turn
        return self._pool.draw_prompt_of(opening.domain, self._random), 0
