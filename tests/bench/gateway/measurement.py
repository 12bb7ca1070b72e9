"""Runs one gateway before the mock, puts it under each load, and says what that cost and how long answers took."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import msgspec
import numpy as np

from tests.bench.gateway.contestants import Contestant
from tests.bench.gateway.phases import Phase
from tests.bench.load.mock import Mock, serving
from tests.bench.load.process import Cost, ProcessTree, favour

DIRECT = "direct"
READY_S = 120.0
SETTLE_S = 15.0
LOOK_S = 0.5
LIFETIME_S = 1800.0


class GatewayFailed(Exception):
    """A gateway does not answer, or is not where it was put; the text says more."""


@dataclass(frozen=True)
class Cores:
    """Who runs where; mock and driver share a core where there are only two."""

    gateway: int
    mock: int
    driver: int


@dataclass(frozen=True)
class Row:
    """One gateway under one load once; None where it says nothing."""

    gateway: str
    phase: str
    repeat: int
    users: int
    cpu_us_per_frame: float | None
    """CPU time of all its processes by the tokens that the mock sent meanwhile; requests are in it."""
    cpu_us_per_request: float | None
    core_share: float | None
    """Of its core, how much its processes used."""
    others_share: float | None
    """Of its core, how much others used, or the machine beneath took."""
    pieces_per_frame: float | None
    """Reads of the client per token that the mock sent."""
    frames_per_s: float | None
    requests_per_s: float
    ttft_mean_ms: float | None
    ttft_p50_ms: float | None
    ttft_p90_ms: float | None
    ttft_p99_ms: float | None
    rss_mib: float | None
    """Most of all its processes together; pages that they share count in each."""
    num_processes: int
    failures: dict[str, int]


def measure(
    program: Path, contestant: Contestant | None, phases: Sequence[Phase], cores: Cores, repeat: int
) -> Iterator[Row]:
    """Each phase through one gateway, or straight to the mock.

    Raises GatewayFailed.
    """
    with contextlib.ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        mock = closing.enter_context(
            serving(program, ttft_ms=0, gap_ms=1, lifetime_s=LIFETIME_S, core=cores.mock),
        )
        url, tree = mock.url, None
        if contestant is not None:
            upstream = mock.url.removeprefix("http://")
            url, tree = closing.enter_context(running(contestant, upstream, folder, cores.gateway))
        for phase in phases:
            settle(mock)
            mock.set_pace(phase.ttft_ms, phase.gap_ms)
            begin_s = read_busy_s(cores.gateway), time.monotonic()
            found, cost = drive(url, contestant.model if contestant is not None else "mock", phase, tree)
            busy_s, length_s = read_busy_s(cores.gateway) - begin_s[0], time.monotonic() - begin_s[1]
            own_s = (cost.cpu_ns[-1] - cost.cpu_ns[0]) / 1e9 if cost.cpu_ns else 0.0
            others_share = max(busy_s - own_s, 0.0) / length_s
            yield make_row(contestant, phase, repeat, found, cost, mock, tree, others_share)
        if tree is not None:
            check_core(tree, cores.gateway)


def settle(mock: Mock) -> None:
    """Wait until nothing is under way at the mock: not every gateway stops an answer whose client has left."""
    deadline_s = time.monotonic() + SETTLE_S
    mock.reset()
    while time.monotonic() < deadline_s and not mock.truth().ended_ns.all():
        time.sleep(0.1)
    mock.reset()


def make_row(
    contestant: Contestant | None,
    phase: Phase,
    repeat: int,
    found: dict[str, Any],
    cost: Cost,
    mock: Mock,
    tree: ProcessTree | None,
    others_share: float,
) -> Row:
    """What one phase has shown."""
    cpu_us = rss_mib = num_frames = None
    start_ns, end_ns = found["start_ns"], found["end_ns"]
    if not phase.once:
        sent_ns = mock.truth().sent_ns
        num_frames = int(np.count_nonzero((sent_ns >= start_ns) & (sent_ns < end_ns)))
    if tree is not None:
        rss_mib = max(cost.rss_bytes) / 2**20
        if not phase.once:
            cpu_us = cost.cpu_between_ns(start_ns, end_ns) / 1000
    return Row(
        gateway=contestant.name if contestant is not None else DIRECT,
        phase=phase.name,
        repeat=repeat,
        users=phase.users,
        cpu_us_per_frame=divide(cpu_us, num_frames),
        cpu_us_per_request=divide(cpu_us, found["requests"]),
        core_share=divide(cpu_us, found["seconds"] * 1e6),
        others_share=others_share,
        pieces_per_frame=divide(found["pieces"], num_frames),
        frames_per_s=divide(num_frames, found["seconds"]),
        requests_per_s=found["requests"] / found["seconds"],
        ttft_mean_ms=found["ttft_mean_ms"],
        ttft_p50_ms=found["ttft_p50_ms"],
        ttft_p90_ms=found["ttft_p90_ms"],
        ttft_p99_ms=found["ttft_p99_ms"],
        rss_mib=rss_mib,
        num_processes=len(tree.find()) if tree is not None else 0,
        failures=found["failures"],
    )


def read_busy_s(core: int) -> float:
    """How long a core has been busy since the machine started, or was taken away; hundredths."""
    # proc_stat(5): user nice system idle iowait irq softirq steal
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    ticks = [int(word) for word in line.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def divide(value: float | None, by: float | None) -> float | None:
    """None if there is nothing to divide, or nothing to divide by."""
    return value / by if value is not None and by else None


@contextlib.contextmanager
def running(contestant: Contestant, upstream: str, folder: Path, core: int) -> Iterator[tuple[str, ProcessTree]]:
    """The gateway, with all it starts on one core and before whatever else runs there, until the context ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        favour(os.getpid())  # and with it whatever it starts
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            contestant.command(upstream, port, folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=prepare,
        )
    tree = ProcessTree(process.pid)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, contestant, process, folder / "log")
        yield url, tree
    finally:
        tree.kill()
        process.wait()


def wait_until_ready(url: str, contestant: Contestant, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until an answer comes, or the client is sent on to one. Raises GatewayFailed if none does."""
    body = {"model": contestant.model, "messages": [{"role": "user", "content": "loop"}], "max_tokens": 1}
    opener, deadline_s = build_opener(ProxyHandler({})), time.monotonic() + READY_S
    question = Request(f"{url}/v1/chat/completions", msgspec.json.encode(body | {"stream": True}))
    question.add_header("content-type", "application/json")
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with opener.open(question, timeout=5) as answer:
                answer.read()
            return
        except HTTPError as error:
            with error:
                if error.code == 307:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise GatewayFailed(f"{contestant.name} does not answer: {log.read_text(errors='replace')[-800:]}")


def check_core(tree: ProcessTree, core: int) -> None:
    """Raises GatewayFailed if a thread of the gateway has left its core."""
    for pid in tree.find():
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                if (cores := os.sched_getaffinity(int(task.name))) != {core}:
                    raise GatewayFailed(f"thread {task.name} of process {pid} may run on {cores}, not on {core} only")


def drive(url: str, model: str, phase: Phase, tree: ProcessTree | None) -> tuple[dict[str, Any], Cost]:
    """Run the driver; what it found, and what the gateway cost meanwhile."""
    command = [sys.executable, "-m", "tests.bench.gateway.driver", url, "--model", model, "--users", str(phase.users)]
    command += ["--tokens", str(phase.tokens), "--seconds", str(phase.seconds), "--ramp-s", str(phase.ramp_s)]
    cost = Cost()
    with subprocess.Popen(
        [*command, *(["--once"] if phase.once else [])],
        stdout=subprocess.PIPE,
        start_new_session=True,
        # The kernel stamps a read by its last segment: a driver that waits for its core would see late first tokens.
        preexec_fn=lambda: favour(os.getpid()),
    ) as driver:
        while True:
            if tree is not None:
                cost.look(tree.find())
            try:
                output, _ = driver.communicate(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            if tree is not None:
                cost.look(tree.find())
            return json.loads(output), cost
