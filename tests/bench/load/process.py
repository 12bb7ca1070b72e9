"""Runs one client on one core and watches what it costs: CPU time and memory of all its processes, by the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SAMPLE_S = 0.5
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

    def cpu_between_ns(self, start_ns: int, end_ns: int) -> float:
        """CPU time spent in [start, end), between samples in proportion."""
        start, end = np.interp([start_ns, end_ns], self.times_ns, self.cpu_ns)
        return float(end - start)

    def peak_rss_between_bytes(self, start_ns: int, end_ns: int) -> int:
        """Most memory held at a look within [start, end]; 0 if there was none."""
        looks = zip(self.times_ns, self.rss_bytes, strict=True)
        return max((rss_bytes for time_ns, rss_bytes in looks if start_ns <= time_ns <= end_ns), default=0)


def run_client(command: list[str], environment: Mapping[str, str], folder: Path, core: int, timeout_s: float) -> Cost:
    """Run `command` on `core` to its end; its stdout and stderr go to files of these names in `folder`.

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
        try:
            cost = _watch(process, timeout_s)
        finally:
            _end_session(process)
    if process.returncode != 0:
        raise ClientFailed(f"exit code {process.returncode} after at most {timeout_s:.0f} s: {_last_words(folder)}")
    return cost


def _watch(process: subprocess.Popen[bytes], timeout_s: float) -> Cost:
    cost, cpu_of = Cost(), {}
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        _sample(process.pid, cost, cpu_of)
        try:
            process.wait(SAMPLE_S)
        except subprocess.TimeoutExpired:
            continue
        break
    return cost


def _sample(session: int, cost: Cost, cpu_of: dict[int, int]) -> None:
    rss_bytes = 0
    for pid in processes_of(session):
        try:
            # The CPU clock of another process, all its threads: see clock_getcpuclockid(3).
            cpu_of[pid] = time.clock_gettime_ns((~pid << 3) | 2)
            rss_bytes += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError):
            continue  # it has just ended
    cost.times_ns.append(time.monotonic_ns())
    cost.cpu_ns.append(sum(cpu_of.values()))
    cost.rss_bytes.append(rss_bytes)


def processes_of(session: int) -> list[int]:
    """Ids of the processes of a session that have not ended."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:
            continue  # it has just ended
        # proc(5): the name stands in brackets and may hold anything; state, parent, group and session follow it.
        state, _, _, its_session = stat.rpartition(")")[2].split()[:4]
        if int(its_session) == session and state not in "ZX":
            found.append(int(entry.name))
    return found


def _end_session(process: subprocess.Popen[bytes]) -> None:
    while left := processes_of(process.pid):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _last_words(folder: Path) -> str:
    words = [(folder / name).read_bytes().decode(errors="replace").strip() for name in ("stdout", "stderr")]
    return " | ".join(text[-600:] for text in words if text)
