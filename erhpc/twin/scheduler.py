"""Which requests of one replica compute how many tokens in the next step: the rules of vLLM V1's scheduler.

It knows neither time nor text: a request is a number of prompt tokens and a number of answer tokens. There are no
phases: each step brings requests closer to having all their tokens computed, and one that gets there yields a token.
The rules, as read in vLLM's `v1/core/sched/scheduler.py` and `v1/core/kv_cache_manager.py`:

1. Running requests first, in the order in which they were admitted, from one budget of tokens per step; a prompt
   longer than what is left of the budget is computed in chunks.
2. When a running request finds no KV block, the one admitted last gives up its blocks and goes to the head of the
   queue, to compute everything again later; repeated until there is room, or the request itself had to go.
3. Waiting requests are admitted only in a step that preempted nobody, first come first served: where the first one
   finds no room (seats, blocks), nobody overtakes it.
4. What the prefix cache holds is not computed: whole blocks only, and never the last token.
5. Seats and blocks of a finished request are free once its step is finished, for the next schedule.
6. With asynchronous scheduling, the next step is scheduled before the last one is finished, with placeholders for
   the tokens it will yield. It costs a request that its last token comes in no extra step.

Left out: priorities, speculation, sharing of cached blocks (each hit counts as blocks of its own).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from erhpc.errors import ConfigError, require_range
from erhpc.plan.memory import BLOCK_TOKENS, NULL_BLOCKS
from erhpc.twin.step_time import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a step of one replica, by vLLM's names. Raises ConfigError when a request could wait for ever."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_capacity_tokens: int
    """What sequences may fill: the null block is not part of it (see `count_kv_tokens`)."""
    long_prefill_token_threshold: int = 0
    """Longest chunk of a prompt; 0: as long as the budget."""
    chunked_prefill: bool = True
    """False: a prompt waits until the budget holds it whole."""
    reserve_full_sequence: bool = True
    """Admit only what fits the free blocks whole, as vLLM does from about 0.19 on; before, its first chunk had to."""
    watermark: float = 0.0
    """Share of all blocks that an admission leaves free while others run."""
    asynchronous: bool = False
    """Schedule a step before the one before it is finished (vLLM's --async-scheduling)."""

    def __post_init__(self) -> None:
        require_range("max_num_seqs", self.max_num_seqs, 1)
        require_range("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs)
        require_range("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        require_range("watermark", self.watermark, 0, 1)
        if count_blocks(self.max_model_len) > self.num_blocks:
            raise ConfigError(
                f"max_model_len={self.max_model_len} does not fit a KV cache of {self.kv_capacity_tokens} tokens. "
                "Lower expert.max_model_len, or give the replica more GPUs."
            )
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is below max_model_len={self.max_model_len}: "
                "without chunked prefill such a prompt would wait for ever. Raise it, or allow chunked prefill."
            )

    @property
    def num_blocks(self) -> int:
        """Whole KV blocks that sequences may fill."""
        return self.kv_capacity_tokens // BLOCK_TOKENS

    @property
    def watermark_blocks(self) -> int:
        """Blocks that an admission leaves free while others run; vLLM takes the share of all, the null block too."""
        return int(self.watermark * (self.num_blocks + NULL_BLOCKS))

    def find_problem(self, prompt_tokens: int, answer_tokens: int) -> str | None:
        """Why such a request can't be answered, to be read after its name; None if it can."""
        if min(prompt_tokens, answer_tokens) < 1:
            return "needs at least one prompt token and one answer token"
        if prompt_tokens + answer_tokens > self.max_model_len:
            return f"of {prompt_tokens} + {answer_tokens} tokens is longer than max_model_len={self.max_model_len}"
        return None

    def count_cached(self, cached_tokens: int, length_tokens: int) -> int:
        """Tokens of a sequence that the prefix cache spares it: whole blocks, never the last token."""
        return min(cached_tokens, length_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS

    def clip_chunk(self, missing_tokens: int, budget: int) -> int:
        """How many of the missing tokens a step computes, 0 for a prompt that may not be cut and does not fit."""
        if 0 < self.long_prefill_token_threshold < missing_tokens:
            missing_tokens = self.long_prefill_token_threshold
        if missing_tokens > budget:
            return budget if self.chunked_prefill else 0
        return missing_tokens


def count_blocks(tokens: int) -> int:
    """KV blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def count_kv_tokens(num_gpu_blocks: int) -> int:
    """Tokens that sequences may fill, given what vLLM prints as the number of GPU blocks: one stays empty."""
    return (num_gpu_blocks - NULL_BLOCKS) * BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way through the engine. Only the scheduler changes it."""

    request_id: str
    prompt_tokens: int
    answer_tokens: int
    """How many tokens the answer will have."""
    cached_tokens: int = 0
    """Leading tokens that the prefix cache holds whenever the request is admitted."""
    generated_tokens: int = 0
    pending_tokens: int = 0
    """Tokens that steps not yet finished will yield: vLLM's placeholders."""
    computed_tokens: int = 0
    """Tokens with a KV entry, those of scheduled steps included."""
    has_caught_up: bool = False
    """Whether all its tokens have been computed since it was last admitted, so that each step yields one."""
    num_blocks: int = 0
    num_preemptions: int = 0
    is_running: bool = False

    @property
    def length_tokens(self) -> int:
        """Prompt plus what has been generated."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete."""
        return self.generated_tokens >= self.answer_tokens


class Share(NamedTuple):
    """What one request computes in a step."""

    request: Request
    tokens: int
    computed_tokens: int
    """Tokens it had computed before."""
    is_decode: bool
    """Whether it computes the newest token only, all before having been computed since it was admitted."""
    yields: bool
    """Whether it gets a token from the step."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: who computes what, and the sums that decide how long it takes. Without shares there is none."""

    shares: list[Share]
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
        self._in_flight: deque[list[Share]] = deque()

    @property
    def has_requests(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._requests)

    @property
    def num_in_flight(self) -> int:
        """Steps that are scheduled and not finished."""
        return len(self._in_flight)

    @property
    def num_running(self) -> int:
        """Admitted requests."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._waiting)

    @property
    def waiting_ids(self) -> list[str]:
        """The requests in the queue, the next one first."""
        return [request.request_id for request in self._waiting]

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no sequence holds."""
        return self._free_blocks

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1."""
        return 1 - self._free_blocks / self.limits.num_blocks

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue. Raises ValueError if it is empty, too long or known already."""
        problem = self.limits.find_problem(request.prompt_tokens, request.answer_tokens)
        if problem is not None:
            raise ValueError(f"request {request.request_id} {problem}")
        if request.request_id in self._requests:
            raise ValueError(f"request {request.request_id} was added before")
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Forget a request, in the middle of a step too; an unknown or finished one is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request)

    def schedule(self) -> Step:
        """The next step; one with shares is to be finished by `finish_step`.

        Raises:
            RuntimeError: a step is not finished yet; with asynchronous scheduling, two.
        """
        if len(self._in_flight) > self.limits.asynchronous:
            raise RuntimeError("schedule before finish_step")
        shares: list[Share] = []
        preemptions_before = self.num_preemptions
        budget = self._schedule_running(shares)
        if self.num_preemptions == preemptions_before:
            self._admit_waiting(shares, budget)
        if shares:
            self._in_flight.append(shares)
        return Step(shares, _sum_up(shares))

    def finish_step(self) -> list[Request]:
        """Finish the oldest step in flight; the requests that got a token from it, finished ones among them."""
        progressed = [
            share.request for share in self._in_flight.popleft() if share.yields and self._is_known(share.request)
        ]
        for request in progressed:
            request.generated_tokens += 1
            request.pending_tokens -= 1
            if request.is_finished:
                self._forget(request)
        return progressed

    def _schedule_running(self, shares: list[Share]) -> int:
        """Give every running request its share, the first admitted first; what is left of the budget."""
        budget = self.limits.max_num_batched_tokens
        index = 0
        while index < len(self._running) and budget > 0:
            request = self._running[index]
            index += 1
            if request.computed_tokens >= request.prompt_tokens + request.answer_tokens - 1:
                continue  # a step in flight yields its last token
            missing = request.length_tokens + request.pending_tokens - request.computed_tokens
            tokens = self.limits.clip_chunk(missing, budget)
            if not tokens:
                continue
            if not self._make_room(request, request.computed_tokens + tokens):
                break
            shares.append(_take_share(request, tokens))
            budget -= tokens
        return budget

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Grow a running request to `tokens`, at the cost of the last admitted; False if that was itself."""
        while count_blocks(tokens) - request.num_blocks > self._free_blocks:
            victim = self._running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        self._grow(request, tokens)
        return True

    def _admit_waiting(self, shares: list[Share], budget: int) -> None:
        limits = self.limits
        while self._waiting and budget > 0 and len(self._running) < limits.max_num_seqs:
            request = self._waiting[0]
            length = request.length_tokens
            cached = limits.count_cached(request.cached_tokens, length)
            tokens = limits.clip_chunk(length - cached, budget)
            needed = count_blocks(length if limits.reserve_full_sequence else cached + tokens)
            kept_free = limits.watermark_blocks if shares else 0
            if not tokens or needed + kept_free > self._free_blocks:
                return
            self._running.append(self._waiting.popleft())
            request.is_running = True
            request.computed_tokens = cached
            self._grow(request, cached + tokens)
            shares.append(_take_share(request, tokens))
            budget -= tokens

    def _is_known(self, request: Request) -> bool:
        return self._requests.get(request.request_id) is request

    def _grow(self, request: Request, tokens: int) -> None:
        missing = max(count_blocks(tokens) - request.num_blocks, 0)
        request.num_blocks += missing
        self._free_blocks -= missing

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self._free_blocks += request.num_blocks
        request.num_blocks = 0
        request.computed_tokens = 0
        request.has_caught_up = False
        request.is_running = False

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        # Asynchronously scheduled, a request may get its last token after it was preempted.
        (self._running if request.is_running else self._waiting).remove(request)
        self._release(request)


def _take_share(request: Request, tokens: int) -> Share:
    """Count `tokens` as computed."""
    computed = request.computed_tokens
    is_decode = request.has_caught_up
    yields = computed + tokens == request.length_tokens + request.pending_tokens
    request.computed_tokens += tokens
    request.pending_tokens += yields
    request.has_caught_up = yields
    return Share(request, tokens, computed, is_decode, yields)


def _sum_up(shares: list[Share]) -> Batch:
    decodes = context = prefills = prefill_tokens = rows = 0
    attention = 0.0
    for share in shares:
        rows += share.yields
        if share.is_decode:
            decodes += 1
            context += share.computed_tokens
        else:
            prefills += 1
            prefill_tokens += share.tokens
            attention += share.tokens * (share.computed_tokens + share.tokens / 2)
    return Batch(decodes, context, prefills, prefill_tokens, attention, rows)
