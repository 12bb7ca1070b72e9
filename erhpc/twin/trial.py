"""One published measurement repeated on a step time: what its load would have measured, in closed form or by events.

Small on purpose: it serves the validation of step times, with the rules of old engines too (prompts before decodes),
which the simulation of a run has no use for. Every sequence reserves its whole length in the KV cache; nothing is
preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import floor
from random import Random
from statistics import median

from erhpc.errors import ConfigError, require_range
from erhpc.twin.step_time import Batch, Roofline

STARVED_SEQS = 32
"""Below so many sequences in the KV cache, its size (activation buffers, policy) decides, which no source gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine of a trial: step times and the limits of its scheduler."""

    step_time: Roofline
    mixes_prefill: bool
    request_s: float
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial measures: medians over requests in seconds, and output tokens per second."""

    ttft_s: float
    tpot_s: float
    out_tok_s: float


def run_static_batch(engine: Engine, num_seqs: int, input_tokens: int, output_tokens: int) -> Outcome:
    """All sequences start together and are equally long; what does not fit the KV cache comes as a next wave.

    Raises ConfigError for counts below 1.
    """
    _require_counts(num_seqs=num_seqs, input_tokens=input_tokens, output_tokens=output_tokens)
    fitting = max(1, min(num_seqs, engine.kv_capacity_tokens // (input_tokens + output_tokens)))
    per_step = max(1, min(fitting, engine.max_num_batched_tokens // input_tokens))
    prefill_s = sum(
        engine.step_time.step_s(_prefill_batch(min(per_step, fitting - first), input_tokens))
        for first in range(0, fitting, per_step)
    )
    lines = engine.step_time.decode_lines(fitting)
    decode_s = lines.run_s(fitting * (input_tokens + 1), output_tokens - 1)
    waves = num_seqs / fitting
    total_s = waves * (prefill_s + decode_s)
    return Outcome(prefill_s, decode_s / max(output_tokens - 1, 1), num_seqs * output_tokens / total_s)


def run_at_maximum(engine: Engine, input_tokens: int, output_tokens: int) -> Outcome:
    """More requests than fit wait at all times: a steady state of as many sequences as KV cache and engine hold.

    Raises ConfigError for counts below 1.
    """
    _require_counts(input_tokens=input_tokens, output_tokens=output_tokens)
    num_seqs = min(engine.max_num_seqs, engine.kv_capacity_tokens // (input_tokens + output_tokens))
    num_seqs = max(1, num_seqs)
    context = num_seqs * (input_tokens + output_tokens // 2)
    prompts = num_seqs / output_tokens
    whole = floor(prompts)
    step_s = sum(
        share * engine.step_time.step_s(_prefill_batch(count, input_tokens, num_seqs, context))
        for count, share in ((whole, 1 - (prompts - whole)), (whole + 1, prompts - whole))
    )
    return Outcome(float(engine.request_s), step_s, num_seqs / step_s)


def run_requests(
    engine: Engine, lengths: Sequence[tuple[int, int]], *, arrivals_s: Sequence[float] | None = None, users: int = 1
) -> Outcome:
    """Requests of (input, output) tokens at given arrival times, or back to back from a number of users.

    Raises ConfigError for no requests, counts below 1, or arrivals that are not one per request and in order.
    """
    _require_counts(users=users, num_requests=len(lengths), tokens=min(map(min, lengths), default=0))
    if arrivals_s is not None and not (len(arrivals_s) == len(lengths) and list(arrivals_s) == sorted(arrivals_s)):
        raise ConfigError(f"{len(arrivals_s)} arrivals for {len(lengths)} requests: give one per request, in order.")
    replay = _Replay(engine, lengths, arrivals_s, users)
    replay.run()
    ttfts = [first - arrival for arrival, first, _ in replay.times]
    tpots = [
        (last - first) / max(output - 1, 1) for (_, first, last), (_, output) in zip(replay.times, lengths, strict=True)
    ]
    return Outcome(engine.request_s + median(ttfts), median(tpots), sum(output for _, output in lengths) / replay.now_s)


def draw_chat_lengths(count: int, rng: Random) -> list[tuple[int, int]]:
    """Lengths like AccelMark's ShareGPT prompts: inputs of 256 tokens on average, outputs of 347, cut at 512."""
    return [
        (rng.randint(50, 462), 512 if rng.random() < 0.32 else rng.randint(30, 511)) for _ in range(count)
    ]  # fmt: skip


def draw_arrivals_s(count: int, rate_per_s: float, rng: Random) -> list[float]:
    """Arrival times of a Poisson process. Raises ConfigError for a rate that is not above 0."""
    require_range("rate_per_s", rate_per_s, 1e-9, 1e9)
    arrivals: list[float] = []
    now_s = 0.0
    for _ in range(count):
        now_s += rng.expovariate(rate_per_s)
        arrivals.append(now_s)
    return arrivals


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        require_range(name, count, 1)


def _prefill_batch(num_prompts: int, input_tokens: int, num_decode_seqs: int = 0, context: int = 0) -> Batch:
    return Batch(
        num_decode_seqs,
        context,
        num_prompts,
        num_prompts * input_tokens,
        num_prompts * input_tokens**2 / 2,
        num_decode_seqs + num_prompts,
    )


@dataclass(slots=True)
class _Prompt:
    """A prompt of which `computed` tokens are done."""

    request: int
    remaining: int
    computed: int = 0


@dataclass(slots=True)
class _Step:
    """Prompts that share a step."""

    budget: int
    num_seqs: int = 0
    num_tokens: int = 0
    attention: float = 0.0
    completed: list[int] = field(default_factory=list)

    def take(self, prompt: _Prompt) -> bool:
        """Compute as much of a prompt as the budget allows; whether that completes it."""
        tokens = min(prompt.remaining, self.budget)
        self.num_seqs += 1
        self.num_tokens += tokens
        self.attention += tokens * (prompt.computed + tokens / 2)
        self.budget -= tokens
        prompt.remaining -= tokens
        prompt.computed += tokens
        if not prompt.remaining:
            self.completed.append(prompt.request)
        return not prompt.remaining


class _Replay:
    """The events of one trial: steps with prompts one by one, runs of decodes at once."""

    def __init__(
        self, engine: Engine, lengths: Sequence[tuple[int, int]], arrivals_s: Sequence[float] | None, users: int
    ) -> None:
        self._engine = engine
        self._lengths = lengths
        self._arrivals_s = arrivals_s
        self._users = users
        self._next = 0
        self._waiting: deque[int] = deque()
        self._partial: deque[_Prompt] = deque()
        self._finishes: list[tuple[int, int]] = []
        self._step = 0
        self._num_decodes = 0
        self._context = 0
        self._reserved = 0
        self.now_s = 0.0
        self.times: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * len(lengths)

    def run(self) -> None:
        """Play all requests to their end."""
        while True:
            self._arrive()
            if self._waiting or self._partial or self._num_decodes:
                if not self._step_with_prompts():
                    self._decode()
            elif self._next < len(self._lengths) and self._arrivals_s is not None:
                self.now_s = self._arrivals_s[self._next]
            else:
                return

    def _arrive(self) -> None:
        while self._next < len(self._lengths):
            if self._arrivals_s is None:
                if len(self._waiting) + len(self._partial) + self._num_decodes >= self._users:
                    return
                arrival_s = self.now_s
            else:
                arrival_s = self._arrivals_s[self._next]
                if arrival_s > self.now_s:
                    return
            self.times[self._next] = (arrival_s, 0.0, 0.0)
            self._waiting.append(self._next)
            self._next += 1

    def _step_with_prompts(self) -> bool:
        """One step with every prompt that may share it; False if there is none."""
        engine = self._engine
        mixes = engine.mixes_prefill
        step = _Step(engine.max_num_batched_tokens - (self._num_decodes if mixes else 0))
        while self._partial and step.budget > 0 and step.take(self._partial[0]):
            self._partial.popleft()
        while self._waiting and step.budget > 0 and self._has_room(step):
            prompt = _Prompt(self._waiting[0], self._lengths[self._waiting[0]][0])
            if not mixes and prompt.remaining > step.budget and step.num_seqs:
                break
            self._reserved += sum(self._lengths[self._waiting.popleft()])
            if not step.take(prompt):
                self._partial.append(prompt)
        if not step.num_seqs:
            return False
        decodes = self._num_decodes if mixes else 0
        batch = Batch(decodes, self._context if mixes else 0, step.num_seqs, step.num_tokens, step.attention,
                      decodes + len(step.completed))  # fmt: skip
        self.now_s += engine.step_time.step_s(batch)
        if mixes:
            self._step += 1
            self._context += decodes
            self._finish()
        for request in step.completed:
            self._start_decoding(request)
        return True

    def _has_room(self, step: _Step) -> bool:
        engine = self._engine
        running = self._num_decodes + len(step.completed) + len(self._partial)
        needed = self._reserved + sum(self._lengths[self._waiting[0]])
        return running < engine.max_num_seqs and (needed <= engine.kv_capacity_tokens or not running)

    def _start_decoding(self, request: int) -> None:
        arrival_s = self.times[request][0]
        self.times[request] = (arrival_s, self.now_s, self.now_s)
        inputs, outputs = self._lengths[request]
        if outputs > 1:
            self._num_decodes += 1
            self._context += inputs
            heappush(self._finishes, (self._step + outputs - 1, request))
        else:
            self._reserved -= inputs + outputs

    def _decode(self) -> None:
        """Decode until a sequence ends or a request arrives."""
        lines = self._engine.step_time.decode_lines(self._num_decodes)
        steps = self._finishes[0][0] - self._step
        lasts_s = lines.run_s(self._context, steps)
        if self._arrivals_s is not None and self._next < len(self._lengths):
            until_s = self._arrivals_s[self._next] - self.now_s
            if lasts_s > until_s:
                steps = min(steps, lines.count_steps(self._context, until_s) + 1)
                lasts_s = lines.run_s(self._context, steps)
        self.now_s += lasts_s
        self._step += steps
        self._context += steps * self._num_decodes
        self._finish()

    def _finish(self) -> None:
        while self._finishes and self._finishes[0][0] <= self._step:
            _, request = heappop(self._finishes)
            inputs, outputs = self._lengths[request]
            self._num_decodes -= 1
            self._context -= inputs + outputs - 1
            self._reserved -= inputs + outputs
            arrival_s, first_s, _ = self.times[request]
            self.times[request] = (arrival_s, first_s, self.now_s)
