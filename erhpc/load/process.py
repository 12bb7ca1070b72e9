"""What a client process asks of its operating system and its interpreter: open files, and no pauses for garbage.

It knows nothing of requests.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from erhpc.errors import ConfigError

SPARE_FILES = 64
"""Open files besides the users' connections: libraries, logs, event loop, and connections that are being closed."""


def check_connections(users: int) -> None:
    """Raise ConfigError if `users` connections exceed the limit on open files, which jobs raise when they start."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = users + SPARE_FILES
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise ConfigError(
            f"{users} users need {needed} open files, this process may have {allowed} (ulimit -Hn). "
            f"Ask at most {allowed - SPARE_FILES} users per client, or have the limit raised."
        )


@contextmanager
def garbage_ignored() -> Iterator[None]:
    """No garbage collection meanwhile: a full collection would halt all users for tens of milliseconds."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
