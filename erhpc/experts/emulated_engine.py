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
from math import ceil

from erhpc.results.telemetry import TimedValues
from erhpc.twin.scheduler import Request, Scheduler
from erhpc.twin.step_time import StepTime

_KEEP_STEPS = 60_000
"""Steps whose lateness is kept: ten minutes at 10 ms."""


@dataclass(slots=True, eq=False)
class Answer:
    """A request in the engine, where its tokens go, and the end of it."""

    request: Request
    token_frames: tuple[bytes, ...] = ()
    """What is written for token i: token_frames[i % len]; empty: nothing. The last token is the owner's to write."""
    opening: bytes = b""
    """Written together with the first token."""
    transport: asyncio.Transport | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last token has come."""


class Engine:
    """Runs the steps of one replica and hands each new token to its answer."""

    def __init__(
        self, scheduler: Scheduler, step_time: StepTime, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.scheduler = scheduler
        self.num_generated_tokens = 0
        self._step_time = step_time
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._work = asyncio.Event()
        self._lateness_s = TimedValues(_KEEP_STEPS)

    def submit(self, answer: Answer) -> None:
        """Queue an answer; its first token comes with the step that completes its prompt."""
        self.scheduler.add(answer.request)
        self._answers[answer.request.request_id] = answer
        self._work.set()

    def abort(self, answer: Answer) -> None:
        """Forget an answer and free what it holds; no error if it is complete."""
        if self._answers.pop(answer.request.request_id, None) is not None:
            self.scheduler.abort(answer.request.request_id)

    def lateness_p99_s(self, window_s: float) -> float:
        """How late steps ended in the last `window_s` seconds, 99th percentile, in seconds."""
        return self._lateness_s.quantile(0.99, self._clock() - window_s)

    async def run(self) -> None:
        """Run steps for ever; wait, without a step, while there are no requests."""
        while True:
            self._work.clear()
            if not self.scheduler.has_requests:
                await self._work.wait()
            await self._run_steps()

    async def _run_steps(self) -> None:
        deadline_s = self._clock()
        while self.scheduler.has_requests:
            deadline_s += self._step_time.step_s(self.scheduler.schedule().batch)
            await self._sleep_until(deadline_s)
            now_s = self._clock()
            self._lateness_s.add(now_s, now_s - deadline_s)
            self._hand_out(self.scheduler.finish_step())

    async def _sleep_until(self, deadline_s: float) -> None:
        """Yield at least once; never return early, although the timers of event loops round to milliseconds."""
        delay_s = deadline_s - self._clock()
        while True:
            await asyncio.sleep(ceil(max(delay_s, 0) * 1000) / 1000)
            delay_s = deadline_s - self._clock()
            if delay_s <= 0:
                return

    def _hand_out(self, progressed: list[Request]) -> None:
        self.num_generated_tokens += len(progressed)
        for request in progressed:
            answer = self._answers[request.request_id]
            if request.is_finished:
                del self._answers[request.request_id]
                answer.done.set()
            elif answer.token_frames:
                _write_token(answer, request.generated_tokens - 1)


def _write_token(answer: Answer, index: int) -> None:
    """Straight to the socket's transport: a task wake-up per token would cost several times the write.

    A reader that stalls makes the transport buffer the rest of its answer; max_model_len bounds that.
    """
    transport = answer.transport
    if transport is None or transport.is_closing():
        return
    frame = answer.token_frames[index % len(answer.token_frames)]
    transport.write(frame if index else answer.opening + frame)
