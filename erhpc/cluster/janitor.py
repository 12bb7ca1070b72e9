"""Ends an agent's children when the agent itself is killed: nothing may hold GPUs after a run.

A tiny process per agent, run as `python -m erhpc.cluster.janitor FOLDER`. It is told over its stdin which sessions
exist, and when stdin closes, because the agent is gone, it ends those that are left. vLLM's engine processes
outlive their parent, so the parent's death alone is not enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from erhpc.cluster.process import end_session

_TERM_TIMEOUT_S = 5.0


class Janitor:
    """The agent's side: tells the janitor which sessions to end, before it removes `folder`, if the agent vanishes."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "erhpc.cluster.janitor", str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            # Its output must not keep the agent's pipes open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def watch(self, session: int) -> None:
        """End this session when the agent vanishes."""
        self._tell(f"+{session}")

    def forget(self, session: int) -> None:
        """The session has ended."""
        self._tell(f"-{session}")

    def close(self) -> None:
        """Let the janitor end whatever it still watches, and wait for it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        # A janitor that somebody killed must not cost the run anything.
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._process.stdin.fileno(), f"{line}\n".encode())


def collect_sessions(lines: IO[str]) -> set[int]:
    """Read `+session` and `-session` lines to the end; returns the sessions that are left."""
    sessions: set[int] = set()
    for line in lines:
        number = int(line[1:])
        sessions.add(number) if line[0] == "+" else sessions.discard(number)
    return sessions


async def _end_all(sessions: set[int]) -> None:
    await asyncio.gather(*(end_session(session, _TERM_TIMEOUT_S) for session in sessions), return_exceptions=True)


def main() -> None:
    """Wait for the agent to vanish, then end what it left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_end_all(collect_sessions(sys.stdin)))
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
