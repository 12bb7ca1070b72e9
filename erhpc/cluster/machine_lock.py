"""One local run at a time: a second one would share the cores and measure the first. Slurm queues by itself."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from erhpc.plan.plan import Plan

_POLL_S = 0.2


@contextlib.asynccontextmanager
async def hold_machine(plan: Plan) -> AsyncIterator[None]:
    """Wait until no other local run of this user holds the machine, and hold it; the kernel frees it at our end."""
    path = Path(plan.experiment.cluster.tmp) / f"erhpc-{os.getuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _try_lock(descriptor):  # noqa: ASYNC110 - another process frees it, no event tells
            await asyncio.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
