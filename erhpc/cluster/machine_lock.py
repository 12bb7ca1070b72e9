"""One local run at a time: a second one would share the cores and measure the first. Slurm queues by itself."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from erhpc.plan.plan import Plan
from erhpc.results.paths import RunPaths

_POLL_S = 0.2


@contextlib.asynccontextmanager
async def hold_machine(plan: Plan, run: RunPaths) -> AsyncIterator[None]:
    """Wait until no other local run of this user holds the machine, and hold it; the kernel frees it at our end."""
    path = _lock_path(plan)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _try_lock(descriptor):  # noqa: ASYNC110 - another process frees it, no event tells
            await asyncio.sleep(_POLL_S)
        os.truncate(descriptor, 0)
        os.write(descriptor, os.fsencode(run.root))
        yield
    finally:
        os.close(descriptor)


def find_holder(plan: Plan) -> str:
    """The run that holds the machine, or held it last; "another run" if none ever did."""
    with contextlib.suppress(OSError):
        return os.fsdecode(_lock_path(plan).read_bytes()) or "another run"
    return "another run"


def _lock_path(plan: Plan) -> Path:
    return Path(plan.experiment.cluster.tmp) / f"erhpc-{os.getuid()}.lock"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
