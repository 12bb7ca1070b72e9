"""Scripted traces, one per rule of vLLM V1's scheduler; every decision of every step is written down and checked.

A trace is one event per line, in order:

    add a 150/20        request a of 150 prompt and 20 answer tokens arrives; 150/20~64: 64 of them are in the cache
    step a=64 b=1*      what the next step computes, in order of scheduling; * marks who gets a token from it
    ... -b              ... and who is preempted by it, in this order
    ... | c b           ... and who waits after it, the next one first; no bar: nobody waits
    ... (5)             ... and how many blocks are free after it was scheduled; nothing: not checked
    finish a b          the oldest step in flight ends, and these get a token (asynchronous scheduling only;
                        otherwise a step ends at once)

`-` for a step means that nothing is scheduled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from erhpc.twin.scheduler import Limits, Request, Scheduler, count_kv_tokens

RULES = {
    "running requests come first, in the order in which they were admitted, and share one budget": (
        {},
        """
        add a 10/9
        step a=10*
        add b 100/9
        step a=1* b=63
        add c 5/9
        step a=1* b=37* c=5*
        step a=1* b=1* c=1*
        """,
    ),
    "a prompt longer than the budget is computed in chunks and yields its first token with the last": (
        {},
        """
        add a 150/2
        step a=64
        step a=64
        step a=22*
        step a=1*
        step -
        """,
    ),
    "several prompts are computed together while the budget lasts": (
        {},
        """
        add a 20/9
        add b 20/9
        add c 40/9
        step a=20* b=20* c=24
        step a=1* b=1* c=16*
        """,
    ),
    "a threshold bounds the chunk of each long prompt, and others are admitted beside it": (
        {"long_prefill_token_threshold": 24},
        """
        add a 60/9
        add b 30/9
        add c 30/9
        step a=24 b=24 c=16
        step a=24 b=6* c=14*
        step a=12* b=1* c=1*
        """,
    ),
    "without chunked prefill a prompt waits until the budget holds it whole": (
        {"chunked_prefill": False, "max_num_batched_tokens": 128, "max_model_len": 128},
        """
        add a 100/9
        add b 60/9
        add c 4/9
        step a=100* | b c
        step a=1* b=60* c=4*
        """,
    ),
    "no more than max_num_seqs run, and the rest wait in order": (
        {"max_num_seqs": 2},
        """
        add a 4/2
        add b 4/3
        add c 4/2
        add d 4/2
        step a=4* b=4* | c d
        step a=1* b=1* | c d
        step b=1* c=4* | d
        step c=1* d=4*
        """,
    ),
    "when blocks run out the last admitted is preempted, nobody is admitted, and it computes all again": (
        {"num_gpu_blocks": 5, "max_model_len": 64},
        """
        add a 16/40
        add b 16/40
        add c 16/2
        step a=16* b=16* c=16* (1)
        step a=1* b=1* -c | c (0)
        """
        + 15 * "step a=1* b=1* | c (0)\n"
        + """
        step a=1* -b | b c (1)
        step a=1* | b c (1)
        """,
    ),
    "a preempted request keeps its tokens: its next prompt is as long as prompt and answer so far": (
        {"num_gpu_blocks": 5, "max_model_len": 64},
        """
        add a 16/20
        add b 16/40
        step a=16* b=16* (2)
        """
        + 16 * "step a=1* b=1* (0)\n"
        + """
        step a=1* -b | b (1)
        step a=1* | b (1)
        step a=1* | b (1)
        step b=33* (1)
        step b=1*
        """,
    ),
    "a request that finds no block and is itself the last admitted is preempted itself": (
        {"num_gpu_blocks": 4, "max_model_len": 48},
        """
        add a 17/9
        add b 15/9
        step a=17* b=15* (0)
        step a=1* b=1* (0)
        step a=1* -b | b (1)
        step a=1* | b (1)
        """,
    ),
    "as many are preempted as one chunk needs, the last admitted first": (
        {"num_gpu_blocks": 7, "max_model_len": 96, "long_prefill_token_threshold": 32, "reserve_full_sequence": False},
        """
        add a 90/6
        add b 8/9
        add c 8/9
        step a=32 b=8* c=8* (2)
        step a=32 b=1* c=1* (0)
        step a=26* -c -b | b c (0)
        """,
    ),
    "nobody overtakes the head of the queue that does not fit, and nobody is preempted for it": (
        {"num_gpu_blocks": 17, "max_num_batched_tokens": 512},
        """
        add a 200/20
        add b 100/20
        add c 4/2
        step a=200* | b c (3)
        step a=1* | b c (3)
        """,
    ),
    "the whole sequence must fit where it is reserved, but only the chunk's blocks are taken": (
        {"num_gpu_blocks": 12, "max_model_len": 128},
        """
        add a 100/9
        add b 80/9
        step a=64 | b (7)
        step a=36* | b (4)
        """,
    ),
    "where it is not reserved, the first chunk must fit": (
        {"num_gpu_blocks": 12, "reserve_full_sequence": False, "max_model_len": 128},
        """
        add a 100/9
        add b 80/9
        step a=64 | b (7)
        step a=36* b=28 (2)
        step a=1* -b | b (4)
        """,
    ),
    "admissions leave the watermark free while others run, and not when nothing does": (
        {"num_gpu_blocks": 20, "watermark": 0.2, "max_num_batched_tokens": 512},
        """
        add a 250/2
        add b 4/9
        step a=250* | b (3)
        step a=1* | b (3)
        step b=4* (18)
        """,
    ),
    "the prefix cache spares whole blocks, never the last token": (
        {},
        """
        add a 40/9~39
        step a=8* (29)
        add b 48/9~48
        step a=1* b=16*
        add c 33/9~1000
        step a=1* b=1* c=1*
        """,
    ),
    "a preempted request finds its cached prefix again": (
        {"num_gpu_blocks": 5, "max_model_len": 64},
        """
        add a 16/20
        add b 16/40~16
        step a=16* b=16* (2)
        """
        + 16 * "step a=1* b=1* (0)\n"
        + """
        step a=1* -b | b (1)
        step a=1* | b (1)
        step a=1* | b (1)
        step b=17* (1)
        step b=1*
        """,
    ),
    "seats and blocks of a finished request serve the next step": (
        {"max_num_seqs": 1, "num_gpu_blocks": 17},
        """
        add a 200/1
        add b 200/1
        step a=64 | b
        step a=64 | b
        step a=64 | b
        step a=8* | b
        step b=64
        """,
    ),
    "asynchronous: no extra step is scheduled after the one that yields the last token": (
        {"asynchronous": True},
        """
        add a 4/3
        step a=4*
        step a=1*
        finish a
        step a=1*
        finish a
        step -
        finish a
        step -
        """,
    ),
    "asynchronous: a seat is free only when the step with the last token is finished": (
        {"asynchronous": True, "max_num_seqs": 1},
        """
        add a 4/2
        add b 4/2
        step a=4* | b
        step a=1* | b
        finish a
        step - | b
        finish a
        step b=4*
        """,
    ),
    "asynchronous: who is preempted still gets the token of the step in flight": (
        {"asynchronous": True, "num_gpu_blocks": 5, "max_model_len": 64},
        """
        add a 16/40
        add b 16/40
        step a=16* b=16* (2)
        """
        + 16 * "step a=1* b=1* (0)\nfinish a b\n"
        + """
        step a=1* -b | b (1)
        finish a b
        step a=1* | b (1)
        finish a
        """,
    ),
    "asynchronous: who is preempted with the last token in flight is finished and never computed again": (
        {"asynchronous": True, "num_gpu_blocks": 5, "max_model_len": 64},
        """
        add a 16/40
        add b 16/17
        step a=16* b=16* (2)
        """
        + 16 * "step a=1* b=1* (0)\nfinish a b\n"
        + """
        step a=1* -b | b (1)
        finish a b
        step a=1* (1)
        """,
    ),
}


def limits_of(options: dict[str, object]) -> Limits:
    chosen = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256, "num_gpu_blocks": 33} | options
    num_gpu_blocks = chosen.pop("num_gpu_blocks")
    return Limits(kv_capacity_tokens=count_kv_tokens(num_gpu_blocks), **chosen)


class Player:
    """Plays the lines of a trace and says what the scheduler made of each, in the words of the trace."""

    def __init__(self, limits: Limits) -> None:
        self._scheduler = Scheduler(limits)
        self._requests: dict[str, Request] = {}

    def play(self, line: str) -> str:
        verb, _, rest = line.partition(" ")
        return {"add": self._add, "step": self._step, "finish": self._finish}[verb](rest)

    def _add(self, rest: str) -> str:
        name, prompt, answer, cached = re.fullmatch(r"(\w+) (\d+)/(\d+)(?:~(\d+))?", rest).groups()
        self._requests[name] = Request(name, int(prompt), int(answer), cached_tokens=int(cached or 0))
        self._scheduler.add(self._requests[name])
        return f"add {rest}"

    def _step(self, rest: str) -> str:
        before = {name: request.num_preemptions for name, request in self._requests.items()}
        shares = self._scheduler.schedule().shares
        words = [f"{share.request.request_id}={share.tokens}{'*' * share.yields}" for share in shares] or ["-"]
        queue, free = self._scheduler.waiting_ids, self._scheduler.num_free_blocks
        preempted = [name for name, request in self._requests.items() if request.num_preemptions > before[name]]
        # Whoever is preempted goes to the head of the queue, so the last one there went first.
        words += [f"-{name}" for name in sorted(preempted, key=queue.index, reverse=True)]
        words += ["|", *queue] if queue else []
        words += [f"({free})"] if "(" in rest else []
        if shares and not self._scheduler.limits.asynchronous:
            self._scheduler.finish_step()
        return " ".join(["step", *words])

    def _finish(self, rest: str) -> str:
        return " ".join(["finish", *(request.request_id for request in self._scheduler.finish_step())])


def lines_of(trace: str) -> Iterator[str]:
    return (line.strip() for line in trace.splitlines() if line.strip())


@pytest.mark.parametrize("rule", RULES)
def test_the_scheduler_decides_as_vllm_does(rule):
    options, trace = RULES[rule]
    player = Player(limits_of(options))

    played = [player.play(line) for line in lines_of(trace)]

    assert played == list(lines_of(trace))
