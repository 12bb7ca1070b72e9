"""What the users of a workload will ask: the very requests that clients draw, as lengths and the text that is routed.

It does not know where a request goes, nor how long it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

import msgspec
import numpy as np
import numpy.typing as npt
from numpy.random import PCG64, Generator, SeedSequence

from erhpc.config import AUTO_MODEL, ExperimentConfig, WorkloadConfig
from erhpc.errors import ConfigError, InputError
from erhpc.plan.levels import LoadPoint
from erhpc.plan.protocol import CHARS_PER_TOKEN
from erhpc.workload.arrivals import draw_think_time_s, plan_arrivals
from erhpc.workload.pool import PromptPool, build_pool
from erhpc.workload.requests import RequestSource
from erhpc.workload.tokenizer import read_tokenizer
from erhpc.workload.traces import Trace, read_trace

NUM_USERS, REQUESTS_PER_USER = 128, 8
"""Of a closed loop so many are drawn; simulated users ask them in turn."""
MOST_ARRIVALS = 4_000
"""Of an open loop at most the first so many count."""
MOST_ARRIVALS_AFTER = 1_000
"""So many more keep up the load until the last of those is answered."""
TEMPLATE_TOKENS = 11
"""What Llama 3's chat template adds to a prompt of one message: its header, its end and the answer's header."""
_ORDER = 2**32 - 2
"""Spawn key of the order in which the drawn requests are asked: beyond that of every user, and not the arrivals'."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Requests, one per element, in the order in which they are asked."""

    prompt_tokens: Integers
    answer_tokens: Integers
    think_s: Floats
    texts: Sequence[str]
    """What the router classifies of each."""
    users: Integers
    """Who asks; in an open loop, which conversation it is."""
    due_s: Floats | None = None
    """When each is due, seconds since the level began; None in a closed loop."""
    num_counted: int | None = None
    """How many of them count, the first ones; the others only keep up the load of an open loop. None: all."""

    def __len__(self) -> int:
        return len(self.texts)


class _Message(msgspec.Struct):
    role: str
    content: str


class _Body(msgspec.Struct):
    messages: list[_Message] = []
    prompt: str = ""


_decode = msgspec.json.Decoder(_Body).decode


class AskedSource:
    """Draws what is asked in the levels of an experiment, from its files and its seed.

    Raises:
        InputError: prompts, trace or tokenizer cannot be read.
        ConfigError: conversations in an open loop, which are not simulated.
    """

    def __init__(self, experiment: ExperimentConfig, *, engine: str) -> None:
        workload = experiment.workload
        self._longest_prompt_tokens = experiment.longest_prompt_tokens
        if workload.arrivals.is_open and workload.turns.longest_tokens > 1:
            raise ConfigError(
                "conversations in an open loop are not predicted: set workload.turns.mean=1 or "
                "workload.arrivals.kind=closed, or leave the prediction out: predict.enabled=false."
            )
        self._workload, self._seed = workload, experiment.seed
        self._text_of, self._text_limit = experiment.router.text, experiment.router.text_limit_chars
        self._longest = min(expert.max_model_len for expert in experiment.experts.values())
        self._trace: Trace | None = None
        if workload.trace is not None:
            self._trace = read_trace(workload.trace, workload.trace_format)
        draw_lengths = None if self._trace is None else self._trace.draw_lengths
        self._pool: PromptPool = build_pool(workload, experiment.seed, draw_lengths)
        self._count = _choose_counting(workload)
        self._template_tokens = TEMPLATE_TOKENS if engine == "vllm" and workload.api == "chat" else 0
        self._closed: dict[str, Asked] = {}
        self.is_cut = False
        """Whether a level drawn so far has more arrivals than MOST_ARRIVALS."""
        self.num_left_out = 0
        """Requests drawn so far that an expert would refuse: prompt and answer are longer than max_model_len."""

    def draw(self, point: LoadPoint, level: int = 0) -> Asked:
        """What is asked at level `level`. Raises InputError if no request fits the experts."""
        workload = self._workload.at_level(level, self._longest_prompt_tokens)
        if workload.arrivals.is_open:
            return self._draw_open(workload, point)
        alike = repr(workload.input_tokens)
        if alike not in self._closed:
            self._closed[alike] = self._draw_closed(workload)
        return self._closed[alike]

    def _draw_closed(self, workload: WorkloadConfig) -> Asked:
        sources = [self._make_source(workload, user) for user in range(NUM_USERS)]
        drawn = [(user, self._read(source)) for _ in range(REQUESTS_PER_USER) for user, source in enumerate(sources)]
        # However few requests a level sends, they are of all turns of a conversation.
        order = Generator(PCG64(SeedSequence(self._seed, spawn_key=(_ORDER,))))
        drawn = [drawn[index] for index in order.permutation(len(drawn))]
        thinking = [draw_think_time_s(workload.think_time, order) for _ in drawn]
        return self._collect([user for user, _ in drawn], [row for _, row in drawn], thinking, None)

    def _draw_open(self, workload: WorkloadConfig, point: LoadPoint) -> Asked:
        planned = plan_arrivals(workload, point.rate_per_s, self._seed, self._trace)
        end_s = workload.warmup_s + workload.measure_s
        drained_s = end_s + workload.drain_s
        arrivals = list(
            islice(takewhile(lambda arrival: arrival.due_s < drained_s, planned), MOST_ARRIVALS + MOST_ARRIVALS_AFTER)
        )
        num_due = sum(arrival.due_s < end_s for arrival in arrivals)
        num_counted = min(num_due, MOST_ARRIVALS)
        self.is_cut = self.is_cut or num_due > MOST_ARRIVALS
        del arrivals[num_counted + MOST_ARRIVALS_AFTER :]
        rows = []
        for arrival in arrivals:
            known = arrival.tokens_in is not None and arrival.tokens_out is not None
            lengths = (arrival.tokens_in or 0, arrival.tokens_out or 0) if known else None
            rows.append(self._read(self._make_source(workload, arrival.number), lengths))
        numbers = [arrival.number for arrival in arrivals]
        due_s = [arrival.due_s for arrival in arrivals]
        return self._collect(numbers, rows, [0.0] * len(rows), due_s, num_counted)

    def _make_source(self, workload: WorkloadConfig, user: int) -> RequestSource:
        return RequestSource(user, self._seed, AUTO_MODEL, workload, self._pool)

    def _read(self, source: RequestSource, lengths: tuple[int, int] | None = None) -> tuple[int, int, str]:
        """Tokens of a request's prompt and answer, and the text that is routed."""
        request = source.draw(lengths)
        body = _decode(request.body)
        said = [message.content for message in body.messages] or [body.prompt]
        asked = said if self._text_of == "all" or not body.messages else said[-1:]
        tokens = self._count("\n".join(said)) + self._template_tokens
        return tokens, request.max_tokens, "\n".join(asked)[: self._text_limit]

    def _collect(
        self,
        users: list[int],
        rows: list[tuple[int, int, str]],
        think_s: list[float],
        due_s: list[float] | None,
        num_counted: int | None = None,
    ) -> Asked:
        """Those of `rows` that fit the experts; the first `num_counted` count, all if it is None."""
        if num_counted is None:
            num_counted = len(rows)
        fitting = [index for index, row in enumerate(rows) if row[0] + row[1] <= self._longest]
        num_fitting = sum(index < num_counted for index in fitting)
        if not num_fitting:
            problem = (
                f"all {num_counted} are longer than max_model_len={self._longest}" if num_counted else "none is due"
            )
            raise InputError(
                f"There is no request to predict: {problem}. Shorten workload.output_tokens or the prompts, lengthen "
                "workload.measure_s, or raise max_model_len of the experts."
            )
        self.num_left_out += num_counted - num_fitting
        return Asked(
            prompt_tokens=np.array([rows[index][0] for index in fitting]),
            answer_tokens=np.array([rows[index][1] for index in fitting]),
            think_s=np.array([think_s[index] for index in fitting]),
            texts=[rows[index][2] for index in fitting],
            users=np.array([users[index] for index in fitting]),
            due_s=None if due_s is None else np.array([due_s[index] for index in fitting]),
            num_counted=None if due_s is None else num_fitting,
        )


def _choose_counting(workload: WorkloadConfig) -> Callable[[str], int]:
    """How many tokens a text has: by the workload's tokenizer, else as emulated experts count."""
    if workload.tokenizer is not None:
        return read_tokenizer(workload.tokenizer).count
    return lambda text: max(1, round(len(text) / CHARS_PER_TOKEN))
