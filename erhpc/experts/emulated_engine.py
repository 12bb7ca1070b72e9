"""The step loop of an emulated expert: lets the twin's scheduler and step times happen in real time.

It knows no HTTP: an answer is a request plus somewhere to write its tokens. Deadlines are absolute: the next one
is the previous one plus the step's time, so a late wake-up shifts one step and never the rate; a loop that fell
behind runs its steps back to back until it has caught up, and leaves none out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from erhpc.experts.emulated_faults import Faults
from erhpc.experts.emulated_metrics import EngineMetrics
from erhpc.results.telemetry import TICK_S, Lookback, TimedValues
from erhpc.twin.scheduler import Request, Scheduler, Step
from erhpc.twin.serving import Serving

_KEEP_STEPS = 60_000
"""Steps whose lateness is kept: ten minutes at 10 ms."""
_LONGEST_SLEEP_S = 3600.0


@dataclass(slots=True, eq=False)
class Answer:
    """A request in the engine, where its tokens go, and the end of it. Times are the engine's clock, in seconds."""

    request: Request
    arrived_s: float
    max_tokens: int
    finish_reason: Literal["stop", "length"]
    opening: bytes = b""
    """What is written for the first token; empty: nothing is written at all."""
    token_frames: tuple[bytes, ...] = ()
    """What is written for tokens i to i + interval - 1: token_frames[i % len]. The last piece is the owner's."""
    interval: int = 1
    """Tokens per piece, but for the first and the last one."""
    transport: asyncio.Transport | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last token has come."""
    queued_s: float = 0.0
    begun_s: float = 0.0
    """When the first step that computes some of it began; 0: not yet."""
    first_s: float = 0.0
    last_s: float = 0.0


class Engine:
    """Runs the steps of one replica and hands each new token to its answer."""

    def __init__(
        self,
        serving: Serving,
        faults: Faults,
        *,
        speedup: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Time passes `speedup` times as fast for steps and faults as it does on the clock."""
        self.scheduler = Scheduler(serving.limits)
        self.metrics = EngineMetrics(serving.limits.max_model_len)
        self.loaded_at_s = float("inf")
        """When it was, or will be, ready; faults count from there."""
        self._step_time = serving.step_time
        self._faults = faults
        self._speedup = speedup
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._work = asyncio.Event()
        self._lateness_s = TimedValues(_KEEP_STEPS)

    @property
    def age_s(self) -> float:
        """Emulated seconds since it was loaded."""
        return self._age_at(self._clock())

    def submit(self, answer: Answer) -> None:
        """Queue an answer; its first token comes with the step that completes its prompt."""
        self.scheduler.add(answer.request)
        answer.queued_s = self._clock()
        self._answers[answer.request.request_id] = answer
        self._work.set()

    def abort(self, answer: Answer) -> None:
        """Forget an answer and free what it holds; no error if it is complete."""
        if self._answers.pop(answer.request.request_id, None) is not None:
            self.scheduler.abort(answer.request.request_id)
            self.metrics.finished["abort"] += 1
            self._work.set()

    def cut(self) -> None:
        """Break off all connections that tokens are written to."""
        for answer in self._answers.values():
            if answer.transport is not None:
                answer.transport.abort()

    def lateness_p99_s(self, lookback: Lookback) -> float:
        """How late steps ended in the time that `lookback` says, 99th percentile, in seconds."""
        return self._lateness_s.quantile(0.99, *lookback.span_s(self._clock()))

    async def run(self) -> None:
        """Run steps for ever; wait, without a step, while there is nothing to do."""
        while True:
            self._work.clear()
            step = self.scheduler.schedule()
            if step.shares:
                await self._run_steps(step)
            else:
                await self._work.wait()

    async def _run_steps(self, step: Step) -> None:
        """Run `step` and all that follow without a pause."""
        scheduler, asynchronous = self.scheduler, self.scheduler.limits.asynchronous
        start_s = self._clock()
        while step.shares:
            if step.batch.num_prefill_seqs:
                self._note_begun(step, start_s)
            self.metrics.step_tokens.add(step.batch.num_tokens)
            end_s = self._end_of_step(start_s, step)
            # An asynchronous scheduler decides on the next step while this one runs (see erhpc.twin.replica).
            following = scheduler.schedule() if asynchronous else None
            await sleep_until(end_s, self._clock)
            now_s = self._clock()
            self._lateness_s.add(now_s, now_s - end_s)
            self._hand_out(scheduler.finish_step(), now_s)
            start_s = end_s
            step = following if following is not None and following.shares else scheduler.schedule()

    def _age_at(self, at_s: float) -> float:
        return (at_s - self.loaded_at_s) * self._speedup

    def _end_of_step(self, start_s: float, step: Step) -> float:
        age_s = self._age_at(start_s)
        end_s = start_s + self._step_time.step_s(step.batch) * self._faults.slowdown(age_s) / self._speedup
        postponed_s = self._faults.postpone(age_end_s := self._age_at(end_s))
        return end_s if postponed_s == age_end_s else self.loaded_at_s + postponed_s / self._speedup

    def _note_begun(self, step: Step, start_s: float) -> None:
        for share in step.shares:
            if not share.is_decode:
                answer = self._answers.get(share.request.request_id)
                if answer is not None and not answer.begun_s:
                    answer.begun_s = max(start_s, answer.queued_s)

    def _hand_out(self, progressed: list[Request], now_s: float) -> None:
        self.metrics.num_generated_tokens += len(progressed)
        answers, count_gap = self._answers, self.metrics.gap_s.add
        for request in progressed:
            answer = answers[request.request_id]
            number = request.generated_tokens
            if number == 1:
                answer.first_s = now_s
                self.metrics.first_token_s.add(now_s - answer.arrived_s)
                self.metrics.num_prompt_tokens += request.prompt_tokens
            else:
                count_gap(now_s - answer.last_s)
            answer.last_s = now_s
            if number >= request.answer_tokens:
                self._finish(answer)
            elif answer.opening and (number == 1 or (number - 1) % answer.interval == 0):
                _write_piece(answer, number)

    def _finish(self, answer: Answer) -> None:
        request = answer.request
        del self._answers[request.request_id]
        self.metrics.count_finished(
            answer.finish_reason,
            prompt_tokens=request.prompt_tokens,
            answer_tokens=request.answer_tokens,
            max_tokens=answer.max_tokens,
            times_s=(answer.arrived_s, answer.queued_s, answer.begun_s, answer.first_s, answer.last_s),
        )
        answer.done.set()


async def sleep_until(deadline_s: float, clock: Callable[[], float]) -> None:
    """Yield at least once, and return within half a tick of the deadline, or later; inf: never."""
    delay_s = deadline_s - clock()
    while True:
        await asyncio.sleep(min(max(delay_s, 0.0), _LONGEST_SLEEP_S))
        delay_s = deadline_s - clock()
        if delay_s <= TICK_S / 2:
            return


def _write_piece(answer: Answer, number: int) -> None:
    """Straight to the socket's transport: a task wake-up per token would cost several times the write.

    A reader that stalls makes the transport buffer the rest of its answer; max_model_len bounds that.
    """
    transport = answer.transport
    if transport is None or transport.is_closing():
        return
    frames = answer.token_frames
    transport.write(answer.opening if number == 1 else frames[(number - answer.interval) % len(frames)])
