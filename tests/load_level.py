"""One level in this process: a conductor and its workers, talking through queues instead of pipes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

from erhpc.client.exchange import Clock, StreamingClient
from erhpc.client.selection import make_client
from erhpc.config import ArrivalConfig, LengthConfig, LoadConfig, WorkloadConfig
from erhpc.corpus.prompts import Prompt
from erhpc.load.conductor import Conductor
from erhpc.load.messages import Command
from erhpc.load.progress import Progress
from erhpc.load.worker import Worker
from erhpc.plan.levels import LoadPoint
from erhpc.plan.specs import ClientSpec
from erhpc.results.record import ClientPart
from erhpc.workload.pool import PromptPool
from erhpc.workload.traces import Trace

PROMPTS = [Prompt(f"p{number}", "math", f"What is {number} + {number}?") for number in range(40)]


def make_spec(url: str, *, load: LoadConfig | None = None, **workload: object) -> ClientSpec:
    """Short answers and a short level, unless told otherwise."""
    lengths = LengthConfig(kind="uniform", low=4, high=12, mean=8)
    times = {"warmup_s": 0.1, "warmup_max_s": 0.1, "measure_s": 0.5, "drain_s": 60.0, "output_tokens": lengths}
    config = WorkloadConfig(**(times | workload))
    return ClientSpec(
        url=url, model="auto", level=2, workload=config, load=load or LoadConfig(), seed=5, output="unused"
    )


def open_loop(kind: str = "poisson", **fields: object) -> dict[str, object]:
    """The fields of a workload whose requests come on schedule."""
    return {"arrivals": ArrivalConfig(kind=kind, **fields), "rates_per_s": [1.0]}


async def run_level(
    spec: ClientSpec,
    point: LoadPoint,
    *,
    num_workers: int = 1,
    stop: asyncio.Event | None = None,
    progress: list[Progress] | None = None,
    key: str | None = None,
    prompts: Sequence[Prompt] = PROMPTS,
    trace: Trace | None = None,
    open_client: Callable[[], AbstractAsyncContextManager[StreamingClient]] | None = None,
    clock: Clock = time.monotonic_ns,
) -> list[ClientPart]:
    """Conduct one level; returns the part of each worker, whose client is its own and speaks HTTP by default."""
    url = spec.url + "/v1/chat/completions"
    open_client = open_client or partial(make_client, url, spec.workload, spec.load, key)
    commands: list[asyncio.Queue[Command | None]] = [asyncio.Queue() for _ in range(num_workers)]
    stop, seen = stop or asyncio.Event(), [] if progress is None else progress
    conductor = Conductor(
        spec.workload,
        spec.level,
        point,
        num_workers,
        tell=lambda worker, command: commands[worker].put_nowait(command),
        on_progress=seen.append,
        clock=clock,
    )
    pool = PromptPool(prompts, spec.workload, spec.seed, None, trace.draw_lengths if trace is not None else None)

    async def work(number: int) -> ClientPart:
        own = replace(spec, worker=number, num_workers=num_workers)
        async with open_client() as client:
            worker = Worker(own, client, pool, trace, report=lambda report: conductor.hear(number, report), clock=clock)
            part = await worker.run(commands[number], stop)
        conductor.lose(number)
        return part

    conducting = asyncio.create_task(conductor.conduct())
    try:
        return await asyncio.gather(*(work(number) for number in range(num_workers)))
    finally:
        conducting.cancel()
        await asyncio.gather(conducting, return_exceptions=True)
