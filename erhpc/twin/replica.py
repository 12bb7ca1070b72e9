"""One replica of a simulation: the decisions of `scheduler.Scheduler`, made without going through every step.

Decoding sequences advance alike, so they are held as sums (how many, their contexts, how many need a block in which
of 16 steps) and as the number of the step that yields each one's last token; a sequence costs something only when it
is admitted, when it ends and when it is preempted. From one such event to the next all steps are decodes of the same
sequences: they are jumped over at once, k of them taking k * a + b * k * (k - 1) / 2 seconds.

It decides as the Scheduler does, step for step (tests/unit/test_simulation.py holds them against each other), which
rests on two things: a sequence that got a share when it was admitted gets one in every step after, because those
before it never need more than they did then; and who is preempted is always the last in the order of admission.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import ceil, inf, sqrt
from operator import attrgetter

from erhpc.plan.memory import BLOCK_TOKENS
from erhpc.twin.decode_times import DecodeTimes
from erhpc.twin.scheduler import Limits, count_blocks
from erhpc.twin.sequence import OUT, Sequence
from erhpc.twin.step_time import Batch
from erhpc.twin.timeline import STRETCH

_ADMISSION = attrgetter("order")


class Replica:
    """A queue, running sequences and KV blocks. `due_s` says when `finish`, then `start`, must be called next."""

    # Read at every step, and CPython looks up more than 30 attributes of an object without slots in a dict.
    __slots__ = (
        "_coming", "_context", "_decodes", "_end_steps", "_end_tokens", "_ended", "_ending", "_free", "_growth_s",
        "_is_asynchronous", "_limits", "_max_num_seqs", "_max_tokens", "_needs", "_num_admitted", "_num_steps",
        "_partials", "_pending", "_running", "_scheduled", "_start_s", "_step_s", "_step_time", "_waiting",
        "_watermark_blocks", "due_s", "num_preemptions", "stretches",
    )  # fmt: skip

    def __init__(self, limits: Limits, step_time: DecodeTimes) -> None:
        self.due_s = inf
        self.num_preemptions = 0
        self.stretches = bytearray()
        """Steps done, a `STRETCH` each: when it began, its steps, seconds of the first, growth per step."""
        self._limits = limits
        self._max_num_seqs = limits.max_num_seqs
        self._max_tokens = limits.max_num_batched_tokens
        self._is_asynchronous = limits.asynchronous
        self._watermark_blocks = limits.watermark_blocks
        self._step_time = step_time
        self._coming: deque[tuple[float, Sequence]] = deque()
        """When, and which request arrives; after that, it waits from the next time `start` is called."""
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}
        self._partials: list[Sequence] = []
        """Running sequences whose prompt is not computed yet, in order of admission."""
        self._ending: dict[int, list[Sequence]] = {}
        """Decoding sequences by the step that yields their last token."""
        self._end_steps: list[int] = []
        """Heap of these steps; where all were preempted, nobody ends."""
        self._ended: list[Sequence] = []
        """Sequences whose last token is scheduled, in order of ending, then admission, until that step is finished."""
        self._num_admitted = 0
        self._free = limits.num_blocks
        self._scheduled = 0
        """Number of the last step that was scheduled."""
        # Decoding sequences that the next step continues: how many, their computed tokens, and how many need a block
        # in a step s with s % 16 = 0, 1 ...
        self._decodes = 0
        self._context = 0
        self._needs = [0] * BLOCK_TOKENS
        self._pending: tuple[float, bool, float] | None = None
        """A step scheduled ahead: seconds, whether it is pure decode, and by how much each such next one is longer."""
        self._end_tokens = 0
        # The stretch under way.
        self._start_s = 0.0
        self._num_steps = 0
        self._step_s = 0.0
        self._growth_s = 0.0

    def arrive(self, sequence: Sequence, at_s: float) -> bool:
        """Expect a request, now or later but after those before it; whether `due_s` changed."""
        self._coming.append((at_s, sequence))
        if self.due_s == inf:
            self.due_s = at_s
            return True
        return len(self._coming) == 1 and at_s < self.due_s and self._cut(at_s)

    def _cut(self, at_s: float) -> bool:
        """End the stretch with the step in which the next request arrives; whether that is an earlier one."""
        if self._num_steps <= 1 or self._waiting or len(self._running) >= self._max_num_seqs:
            return False  # the next step is the one to be admitted to, or there is no room before someone ends
        num_steps = self._count_steps(at_s - self._start_s)
        if num_steps >= self._num_steps:
            return False
        self._num_steps = num_steps
        self.due_s = self._start_s + self._elapsed_s(num_steps)
        return True

    def finish(self) -> list[Sequence]:
        """Finish the steps that end now; the sequences whose answer is complete, in order of admission."""
        num_steps = self._num_steps
        if not num_steps:
            return []
        self.stretches += STRETCH.pack(self._start_s, num_steps, self._step_s, self._growth_s)
        self._num_steps = 0
        if num_steps > 1:
            self._skip(num_steps - 1)
        if not self._is_asynchronous:
            self._retire()
        finished = self._ended
        if not finished:
            return []
        self._ended = []
        running = self._running
        for sequence in finished:
            if sequence.order != OUT:
                del running[sequence]
                self._free += -(-(sequence.prompt + sequence.answer - 1) // BLOCK_TOKENS)
        return finished

    def start(self, now_s: float) -> None:
        """Schedule, and begin the next stretch of steps. Raises ValueError if a step takes no time, or for ever."""
        coming = self._coming
        while coming and coming[0][0] <= now_s:
            self._waiting.append(coming.popleft()[1])
        first = self._pending or self._schedule()
        if first is None:
            self.due_s = coming[0][0] if coming else inf
            return
        step_s, is_plain, growth_s = first
        if not 0 < step_s < inf:
            raise ValueError(f"the model of step times gave a step of {step_s} s; a step takes time, and ends")
        if self._is_asynchronous:
            decodes, end_tokens = self._decodes, self._end_tokens
            self._pending = following = self._schedule()
            is_alike = self._decodes == decodes and self._end_tokens == end_tokens
            is_plain = is_plain and following is not None and following[1] and is_alike
        self._start_s = now_s
        self._step_s = step_s
        self._growth_s = growth_s
        if is_plain:
            self._num_steps = 1 + self._count_skippable()
            self.due_s = now_s + self._elapsed_s(self._num_steps)
            if coming and coming[0][0] < self.due_s:
                self._cut(coming[0][0])
        else:
            self._num_steps = 1
            self.due_s = now_s + step_s

    def _elapsed_s(self, num_steps: int) -> float:
        return num_steps * self._step_s + self._growth_s * (num_steps * (num_steps - 1) // 2)

    def _count_steps(self, elapsed_s: float) -> int:
        """The fewest steps of the stretch, at least one, that take so long."""
        a, b = self._step_s, self._growth_s
        # Root of a k + b k (k - 1) / 2 = elapsed; where b is next to nothing, that of a k = elapsed.
        linear = a - b / 2
        root = sqrt(linear * linear + 2 * b * elapsed_s)
        guess = 2 * elapsed_s / (linear + root) if linear + root > 0 else 1.0
        num_steps = max(ceil(guess), 1)
        # The ends of steps are compared as they are computed elsewhere: rounding must not tell them apart.
        due_s = self._start_s + elapsed_s
        while num_steps > 1 and self._start_s + self._elapsed_s(num_steps - 1) >= due_s:
            num_steps -= 1
        while self._start_s + self._elapsed_s(num_steps) < due_s:
            num_steps += 1
        return num_steps

    def _count_skippable(self) -> int:
        """How many steps after the last scheduled one continue the same decodes, nobody ending or finding no block."""
        decodes, scheduled, free = self._decodes, self._scheduled, self._free
        ending, end_steps = self._ending, self._end_steps
        while not ending[end_steps[0]]:
            del ending[heappop(end_steps)]
        # Times stay on one line up to this context; the last step that is scheduled has to, too.
        count = min(end_steps[0] - scheduled, (self._end_tokens - self._context) // decodes + 1)
        if count <= 0:
            return 0
        rounds = count // BLOCK_TOKENS
        if (rounds + 1) * decodes <= free:
            return count  # in as many steps as a block has tokens, each sequence needs one block
        rounds = min(rounds, free // decodes)
        free -= rounds * decodes
        for step in range(scheduled + 1, scheduled + 1 + min(count - rounds * BLOCK_TOKENS, BLOCK_TOKENS)):
            free -= self._needs[step % BLOCK_TOKENS]
            if free < 0:
                return rounds * BLOCK_TOKENS + step - scheduled - 1
        return count

    def _skip(self, count: int) -> None:
        """Schedule `count` steps that continue the same decodes."""
        rounds, rest = divmod(count, BLOCK_TOKENS)
        first, needs = (self._scheduled + 1) % BLOCK_TOKENS, self._needs
        self._free -= rounds * self._decodes + sum(needs[first : first + rest])
        if first + rest > BLOCK_TOKENS:
            self._free -= sum(needs[: first + rest - BLOCK_TOKENS])
        self._scheduled += count
        self._context += count * self._decodes
        if self._pending is not None:
            step_s, is_plain, growth_s = self._pending
            self._pending = (step_s + count * growth_s, is_plain, growth_s)

    def _retire(self) -> None:
        """Take those out of the decoding sums whose last token is scheduled; they keep seat and blocks until then."""
        end_steps, needs = self._end_steps, self._needs
        while end_steps and end_steps[0] <= self._scheduled:
            ending = self._ending.pop(heappop(end_steps))
            if len(ending) > 1:
                ending.sort(key=_ADMISSION)
            self._decodes -= len(ending)
            for sequence in ending:
                self._context -= sequence.prompt + sequence.answer - 1
                needs[(1 - sequence.base) % BLOCK_TOKENS] -= 1
            self._ended += ending

    def _schedule(self) -> tuple[float, bool, float] | None:
        """Schedule one step; how long it takes (see `_pending`), None if there is nothing to do."""
        if self._is_asynchronous:
            self._retire()
        step = self._scheduled + 1
        context = self._context
        preemptions = self.num_preemptions
        needed = self._needs[step % BLOCK_TOKENS]
        if self._partials or needed > self._free:
            return self._schedule_singly(step, preemptions)
        decodes = self._decodes
        self._free -= needed
        self._context = context + decodes
        if self._waiting and decodes < self._max_tokens:
            batch = Batch(decodes, context, 0, 0, 0.0, decodes)
            self._admit(step, self._max_tokens - decodes, batch)
            if batch.num_prefill_seqs:
                self._scheduled = step
                return self._step_time.step_s(batch), False, 0.0
        if not decodes:
            return None
        self._scheduled = step
        self._end_tokens, intercept_s, slope_s = self._step_time.find_piece(decodes, context)
        return intercept_s + slope_s * context, True, slope_s * decodes

    def _schedule_singly(self, step: int, preemptions: int) -> tuple[float, bool, float] | None:
        """A step that continues prompts, or in which blocks run out: in order of admission, one by one."""
        budget = self._max_tokens - self._decodes
        if self._needs[step % BLOCK_TOKENS] + self._count_partial_needs(budget) > self._free:
            self._allocate_in_order(step)
        else:
            self._free -= self._needs[step % BLOCK_TOKENS]
        partials, self._partials = self._partials, []
        decodes, context = self._decodes, self._context
        self._context += decodes
        budget = self._max_tokens - decodes
        batch = Batch(decodes, context, 0, 0, 0.0, decodes)
        for sequence in partials:
            budget -= self._compute_chunk(sequence, step, budget, batch)
        if preemptions == self.num_preemptions and budget:
            self._admit(step, budget, batch)
        if not batch.num_seqs:
            return None
        self._scheduled = step
        if not batch.num_prefill_seqs:
            _, intercept_s, slope_s = self._step_time.find_piece(decodes, context)
            return intercept_s + slope_s * context, False, 0.0
        return self._step_time.step_s(batch), False, 0.0

    def _count_partial_needs(self, budget: int) -> int:
        needed = 0
        for sequence in self._partials:
            chunk = self._limits.clip_chunk(sequence.prompt + sequence.generated - sequence.computed, budget)
            needed += max(count_blocks(sequence.computed + chunk) - sequence.blocks, 0)
            budget -= chunk
        return needed

    def _allocate_in_order(self, step: int) -> None:
        """Preempt the last admitted until those before them find their blocks.

        Blocks of decoding sequences are taken here, those of chunks when they are computed.
        """
        reserved = 0
        budget = self._max_tokens - self._decodes
        phase = (1 - step) % BLOCK_TOKENS
        # Those that need blocks: prompts, and decodes that fill one up.
        asking = [
            sequence
            for sequence in self._running
            if not sequence.last or (sequence.base % BLOCK_TOKENS == phase and sequence.last >= step)
        ]
        for sequence in asking:
            if sequence.order == OUT:
                return  # preempted, as all after it
            needed = taken_now = 1
            if not sequence.last:
                # Decodes further back take part of the budget, unless they are preempted: then nobody else is there.
                chunk = self._limits.clip_chunk(sequence.prompt + sequence.generated - sequence.computed, budget)
                budget -= chunk
                needed, taken_now = max(count_blocks(sequence.computed + chunk) - sequence.blocks, 0), 0
            while needed + reserved > self._free and sequence.order != OUT:
                self._preempt()
            if sequence.order == OUT:
                return
            self._free -= taken_now
            reserved += needed - taken_now

    def _compute_chunk(self, sequence: Sequence, step: int, budget: int, batch: Batch) -> int:
        """Compute the next chunk of a prompt as part of `batch`; its tokens."""
        length = sequence.prompt + sequence.generated
        chunk = self._limits.clip_chunk(length - sequence.computed, budget)
        needed = max(count_blocks(sequence.computed + chunk) - sequence.blocks, 0)
        self._free -= needed
        sequence.blocks += needed
        if chunk:
            batch.num_prefill_seqs += 1
            batch.num_prefill_tokens += chunk
            batch.prefill_attention += chunk * (sequence.computed + chunk / 2)
            sequence.computed += chunk
        if sequence.computed == length:
            batch.num_logit_rows += 1
            self._begin_decode(sequence, step, length)
        else:
            self._partials.append(sequence)
        return chunk

    def _admit(self, step: int, budget: int, batch: Batch) -> None:
        """Admit to `step`, of which `batch` is known so far, who waits."""
        is_any_scheduled = batch.num_decode_seqs > 0 or batch.num_prefill_seqs > 0
        limits, waiting, running, max_num_seqs = self._limits, self._waiting, self._running, self._max_num_seqs
        longest = limits.long_prefill_token_threshold or self._max_tokens
        reserves = limits.reserve_full_sequence
        while waiting and budget > 0 and len(running) < max_num_seqs:
            sequence = waiting[0]
            length = sequence.prompt + sequence.generated
            cached = limits.count_cached(sequence.cached, length) if sequence.cached else 0
            chunk = length - cached
            if chunk > budget or chunk > longest:
                chunk = limits.clip_chunk(chunk, budget)
            computed = cached + chunk
            blocks = -(-computed // BLOCK_TOKENS)
            needed = -(-length // BLOCK_TOKENS) if reserves else blocks
            if is_any_scheduled:
                needed += self._watermark_blocks
            if not chunk or needed > self._free:
                return
            running[waiting.popleft()] = None
            sequence.order = self._num_admitted
            self._num_admitted += 1
            self._free -= blocks
            budget -= chunk
            is_any_scheduled = True
            batch.num_prefill_seqs += 1
            batch.num_prefill_tokens += chunk
            batch.prefill_attention += chunk * (cached + chunk / 2)
            if computed == length:
                batch.num_logit_rows += 1
                self._begin_decode(sequence, step, length)
            else:
                sequence.computed, sequence.blocks = computed, blocks
                self._partials.append(sequence)

    def _begin_decode(self, sequence: Sequence, step: int, length: int) -> None:
        """`step` computes the last of the `length` tokens it has, and yields a token."""
        sequence.base = length - step
        sequence.begun = step
        sequence.last = last = step + sequence.answer - sequence.generated - 1
        self._decodes += 1
        self._context += length
        self._needs[(1 - sequence.base) % BLOCK_TOKENS] += 1
        together = self._ending.get(last)
        if together is None:
            self._ending[last] = [sequence]
            heappush(self._end_steps, last)
        else:
            together.append(sequence)

    def _preempt(self) -> None:
        """Preempt the last admitted; who has the last token in flight only loses seat and blocks."""
        victim, _ = self._running.popitem()
        victim.order = OUT
        self.num_preemptions += 1
        if not victim.last:
            self._free += victim.blocks
            self._partials.remove(victim)
        else:
            self._free += count_blocks(victim.base + min(self._scheduled, victim.last))
            if victim.last <= self._scheduled:
                return
            self._decodes -= 1
            self._context -= victim.base + self._scheduled
            self._needs[(1 - victim.base) % BLOCK_TOKENS] -= 1
            self._ending[victim.last].remove(victim)
            victim.spells = [*(victim.spells or ()), (victim.begun, self._scheduled)]
            victim.generated = victim.answer - (victim.last - self._scheduled)
        victim.computed = victim.blocks = victim.begun = victim.last = 0
        self._waiting.appendleft(victim)
