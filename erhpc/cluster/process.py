"""One child process with everything it starts: a session of its own, a log, a stop with proof.

It knows nothing of plans, experts or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from erhpc.errors import ProcessError

_POLL_S = 0.02
_KILL_TIMEOUT_S = 10.0
_LINE_LIMIT_BYTES = 1 << 20


def find_session_members(session: int) -> list[int]:
    """Process ids that belong to a session and are not mere zombies, read from /proc."""
    members = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = Path(entry.path, "stat").read_bytes()
            # The command name stands in parentheses and may hold any byte; state, parent, group, session follow it.
            state, _, _, owner = stat.rpartition(b")")[2].split()[:4]
            if int(owner) == session and state not in (b"Z", b"X"):
                members.append(int(entry.name))
    return members


async def end_session(session: int, timeout_s: float) -> bool:
    """TERM every process of a session, KILL what is left after `timeout_s`; True when KILL was needed.

    Raises:
        ProcessError: processes are still there after KILL (stuck in the kernel).
    """
    if await _signal_until_gone(session, signal.SIGTERM, timeout_s):
        return False
    if await _signal_until_gone(session, signal.SIGKILL, _KILL_TIMEOUT_S):
        return True
    raise ProcessError(
        f"processes {find_session_members(session)} outlived SIGKILL by {_KILL_TIMEOUT_S:.0f} s. "
        "They hang in the kernel; tell the administrators of this node."
    )


async def _signal_until_gone(session: int, number: signal.Signals, timeout_s: float) -> bool:
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    signalled: set[int] = set()
    while members := find_session_members(session):
        # One signal each is enough, but a process that forks meanwhile leaves newcomers behind.
        for pid in set(members) - signalled:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        signalled.update(members)
        if asyncio.get_running_loop().time() >= deadline_s:
            return False
        await asyncio.sleep(_POLL_S)
    return True


class ChildProcess:
    """A running command in a session of its own; `pid` is also the session's id."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, reader: asyncio.Task[None] | None) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._reader = reader

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        on_line: Callable[[bytes], None] | None = None,
    ) -> ChildProcess:
        """Start a command whose output goes to `log`.

        With `on_line`, each line of its stdout goes there instead, and `write_line` reaches its stdin.

        Raises:
            ProcessError: the command cannot be executed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL if on_line is None else asyncio.subprocess.PIPE,
                    stdout=output if on_line is None else asyncio.subprocess.PIPE,
                    stderr=output,
                    env=dict(environment),
                    start_new_session=True,
                    limit=_LINE_LIMIT_BYTES,
                )
            except OSError as error:
                raise ProcessError(f"{name}: cannot execute {argv[0]!r}: {error.strerror}.") from error
        reader = None
        if on_line is not None and process.stdout is not None:
            reader = asyncio.create_task(_pump(process.stdout, on_line))
        return cls(name, process, reader)

    @property
    def is_alive(self) -> bool:
        """Whether the command itself (not its children) still runs."""
        return self._process.returncode is None

    def write_line(self, line: bytes) -> None:
        """Write a line, its end included, to the stdin of a command that has one; nothing if it has ended."""
        if self._process.stdin is not None and self.is_alive and not self._process.stdin.is_closing():
            self._process.stdin.write(line)

    async def wait(self) -> int:
        """Wait for the command to end by itself; returns its exit code (negative: a signal)."""
        code = await self._process.wait()
        if self._reader is not None:
            await self._reader
        return code

    async def stop(self, timeout_s: float) -> bool:
        """End the command and everything in its session, with proof; True when KILL was needed.

        Raises:
            ProcessError: processes outlived SIGKILL.
        """
        killed = await end_session(self.pid, timeout_s)
        await self.wait()
        return killed


async def _pump(stream: asyncio.StreamReader, on_line: Callable[[bytes], None]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            # Too long a line, which the stream has dropped; nobody reading on would block the command.
            continue
        if not line:
            return
        on_line(line.rstrip(b"\n"))
