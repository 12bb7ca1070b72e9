"""Which requests of one replica compute how many tokens in the next step: vLLM V1's rules in simple form.

It knows neither time nor text: a request is a number of prompt tokens and a number of answer tokens. Rules (from
vLLM's documentation and scheduler): running requests first, in order of admission; one budget of tokens per step,
which long prompts fill in chunks; a waiting request is admitted, strictly first come first served, when its whole
sequence fits the free KV blocks; when a running request finds no block, the one admitted last gives up its blocks
and computes everything again later. Left out: prefix caching, priorities, speculation.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from erhpc.errors import ConfigError, require_range
from erhpc.plan.memory import BLOCK_TOKENS
from erhpc.twin.step_time import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a step of one replica. Raises ConfigError when one sequence of full length could never fit."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_capacity_tokens: int

    def __post_init__(self) -> None:
        require_range("max_num_seqs", self.max_num_seqs, 1)
        require_range("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs)
        if _blocks(self.max_model_len) > self.num_blocks:
            raise ConfigError(
                f"max_model_len={self.max_model_len} does not fit a KV cache of {self.kv_capacity_tokens} tokens. "
                "Lower expert.max_model_len, or give the replica more GPUs."
            )

    @property
    def num_blocks(self) -> int:
        """Whole KV blocks of the replica."""
        return self.kv_capacity_tokens // BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way through the engine. Only the scheduler changes it."""

    request_id: str
    prompt_tokens: int
    answer_tokens: int
    """How many tokens the answer will have."""
    generated_tokens: int = 0
    computed_tokens: int = 0
    num_blocks: int = 0
    is_running: bool = False

    @property
    def length_tokens(self) -> int:
        """Prompt plus what has been generated."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete."""
        return self.generated_tokens >= self.answer_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """One step: which request computes how many tokens, and the sums that decide how long it takes."""

    shares: list[tuple[Request, int]]
    batch: Batch


class Scheduler:
    """The queue, the running requests and the KV blocks of one replica."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_preemptions = 0
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._requests: dict[str, Request] = {}
        self._free_blocks = limits.num_blocks
        self._shares: list[tuple[Request, int]] = []

    @property
    def has_requests(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._requests)

    @property
    def num_running(self) -> int:
        """Admitted requests."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1."""
        return 1 - self._free_blocks / self.limits.num_blocks

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue. Raises ValueError if it is empty, too long or known already."""
        if min(request.prompt_tokens, request.answer_tokens) < 1:
            raise ValueError(f"request {request.request_id} needs at least one prompt token and one answer token")
        if request.prompt_tokens + request.answer_tokens > self.limits.max_model_len:
            raise ValueError(f"request {request.request_id} is longer than {self.limits.max_model_len} tokens")
        if request.request_id in self._requests:
            raise ValueError(f"request {request.request_id} was added before")
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Forget a request, in the middle of a step too; an unknown or finished one is no error."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        if request.is_running:
            self._running.remove(request)
            self._release(request)
        else:
            self._waiting.remove(request)

    def schedule(self) -> Step:
        """The next step. `finish_step` must follow before the next call."""
        self._shares = []
        preemptions_before = self.num_preemptions
        budget = self._schedule_running(self.limits.max_num_batched_tokens)
        if self.num_preemptions == preemptions_before:
            self._admit_waiting(budget)
        return Step(self._shares, _batch(self._shares))

    def finish_step(self) -> list[Request]:
        """Count the step as computed; the requests that got a token from it, finished ones among them."""
        progressed = [request for request, tokens in self._shares if _advance(request, tokens)]
        finished = [request for request in progressed if request.is_finished]
        for request in finished:
            del self._requests[request.request_id]
            self._release(request)
        if finished:
            self._running = [request for request in self._running if request.is_running]
        self._shares = []
        return progressed

    def _schedule_running(self, budget: int) -> int:
        """Give every running request its share, the first admitted first; what is left of the budget."""
        index = 0
        while index < len(self._running) and budget > 0:
            request = self._running[index]
            tokens = min(request.length_tokens - request.computed_tokens, budget)
            if self._make_room(request, request.computed_tokens + tokens):
                self._shares.append((request, tokens))
                budget -= tokens
            index += 1
        return budget

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Grow a running request to `tokens`, at the cost of the last admitted; False if that was itself."""
        while not self._grow(request, tokens):
            victim = self._running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _grow(self, request: Request, tokens: int) -> bool:
        missing = _blocks(tokens) - request.num_blocks
        if missing > self._free_blocks:
            return False
        if missing > 0:
            request.num_blocks += missing
            self._free_blocks -= missing
        return True

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.computed_tokens = 0
        self.num_preemptions += 1
        self._waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self._free_blocks += request.num_blocks
        request.num_blocks = 0
        request.is_running = False

    def _admit_waiting(self, budget: int) -> None:
        while self._waiting and budget > 0 and len(self._running) < self.limits.max_num_seqs:
            request = self._waiting[0]
            if not self._grow(request, request.length_tokens):
                return
            request.is_running = True
            self._running.append(self._waiting.popleft())
            tokens = min(request.length_tokens, budget)
            self._shares.append((request, tokens))
            budget -= tokens


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _advance(request: Request, tokens: int) -> bool:
    """Count `tokens` as computed; whether that yields a token. Nothing happens to a request aborted meanwhile."""
    if not request.is_running:
        return False
    request.computed_tokens += tokens
    if request.computed_tokens < request.prompt_tokens + request.generated_tokens:
        return False
    request.generated_tokens += 1
    return True


def _batch(shares: list[tuple[Request, int]]) -> Batch:
    """The sums of a step. A share of one token after a complete sequence is a decode, all else is prefill."""
    decodes = context = prefills = prefill_tokens = rows = 0
    attention = 0.0
    for request, tokens in shares:
        computed = request.computed_tokens
        completes = computed + tokens == request.prompt_tokens + request.generated_tokens
        rows += completes
        if completes and tokens == 1 and request.generated_tokens:
            decodes += 1
            context += computed
        else:
            prefills += 1
            prefill_tokens += tokens
            attention += tokens * (computed + tokens / 2)
    return Batch(decodes, context, prefills, prefill_tokens, attention, rows)
