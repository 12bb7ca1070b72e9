"""Runs one client on one core and watches what it costs: CPU time and memory of all its processes, by the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SAMPLE_S = 0.5
FAVOURED_NICENESS = -15
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ClientFailed(Exception):
    """The client ended badly or did not end; the text has the end of what it said."""


@dataclass
class Cost:
    """CPU time and memory of the client's processes over time."""

    times_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    """Of all processes so far, those that have ended included."""
    rss_bytes: list[int] = field(default_factory=list)
    """Of all processes together; pages that they share count in each."""
    _cpu_of: dict[int, int] = field(default_factory=dict)
    """Of each process when it was last looked at."""

    def look(self, pids: Iterable[int]) -> None:
        """Add what the processes that run now have cost up to now."""
        rss_bytes = 0
        for pid in pids:
            try:
                # The CPU clock of another process, all its threads: see clock_getcpuclockid(3).
                self._cpu_of[pid] = time.clock_gettime_ns((~pid << 3) | 2)
                rss_bytes += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
            except OSError:
                continue  # it has just ended
        self.times_ns.append(time.monotonic_ns())
        self.cpu_ns.append(sum(self._cpu_of.values()))
        self.rss_bytes.append(rss_bytes)

    def cpu_between_ns(self, start_ns: int, end_ns: int) -> float:
        """CPU time spent in [start, end), between samples in proportion."""
        start, end = np.interp([start_ns, end_ns], self.times_ns, self.cpu_ns)
        return float(end - start)

    def peak_rss_between_bytes(self, start_ns: int, end_ns: int) -> int:
        """Most memory held at a look within [start, end]; 0 if there was none."""
        looks = zip(self.times_ns, self.rss_bytes, strict=True)
        return max((rss_bytes for time_ns, rss_bytes in looks if start_ns <= time_ns <= end_ns), default=0)


def favour(pid: int) -> None:
    """Let a process come before others on its core, where this one may say so."""
    with suppress(PermissionError, ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, FAVOURED_NICENESS)
    # Where Linux groups by session, niceness counts within the session only, unless the group has one: see sched(7).
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(FAVOURED_NICENESS))


def run_client(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path,
    core: int,
    timeout_s: float,
    *,
    favoured: bool = False,
) -> Cost:
    """Run `command` on `core` to its end; its stdout and stderr go to files of these names in `folder`.

    A favoured client comes before whatever else runs on its core.

    Raises ClientFailed if it exits with another code than 0 or is still running after `timeout_s`.
    """
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        tree = ProcessTree(process.pid)
        try:
            cost = _watch(process, tree, timeout_s, favoured)
        finally:
            tree.kill()
            process.wait()
    if process.returncode != 0:
        raise ClientFailed(f"exit code {process.returncode} after at most {timeout_s:.0f} s: {_last_words(folder)}")
    return cost


class ProcessTree:
    """A process, what it started and what these started, whatever session they moved to."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._alive: set[int] = set()

    def find(self) -> set[int]:
        """Ids of those that have not ended: of the root's session, or children of one found, now or before."""
        table = dict(_read_processes())
        found = {pid for pid, (_, session) in table.items() if session == self._root or pid in self._alive}
        while more := {pid for pid, (parent, _) in table.items() if parent in found} - found:
            found |= more
        self._alive = found
        return found

    def kill(self) -> None:
        """KILL all of them until none is left."""
        while left := self.find():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _read_processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Parent and session of each process of the machine that has not ended, by its id."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:
            continue  # it has just ended
        # proc(5): the name stands in brackets and may hold anything; state, parent, group and session follow it.
        state, parent, _, session = stat.rpartition(")")[2].split()[:4]
        if state not in "ZX":
            yield int(entry.name), (int(parent), int(session))


def _watch(process: subprocess.Popen[bytes], tree: ProcessTree, timeout_s: float, favoured: bool) -> Cost:
    cost = Cost()
    known: set[int] = set()
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        pids = tree.find()
        if favoured:
            for pid in pids - known:
                favour(pid)
            known |= pids
        cost.look(pids)
        try:
            process.wait(SAMPLE_S)
        except subprocess.TimeoutExpired:
            continue
        break
    return cost


def _last_words(folder: Path) -> str:
    words = [(folder / name).read_bytes().decode(errors="replace").strip() for name in ("stdout", "stderr")]
    return " | ".join(text[-600:] for text in words if text)
