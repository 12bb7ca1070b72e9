"""What gateways cost and add, side by side on the same mock upstream.

    python -m tests.bench.gateway --gateways fast,nginx,sglang --repeats 3

The gateway has one core, the mock and the driver share the other. The mock alone (`direct`) is measured beside them:
its times are what a gateway adds to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import msgspec

from tests.bench.gateway.contestants import Contestant, contestants
from tests.bench.load.case import Unavailable
from tests.bench.load.environments import cache_folder
from tests.bench.load.mock import NoCompiler, compile_mock, serving
from tests.bench.load.process import ProcessTree

READY_S = 60.0
DIRECT = "direct"


@dataclass(frozen=True)
class Phase:
    """One kind of load."""

    name: str
    users: int
    tokens: int
    ttft_ms: float
    gap_ms: float
    ramp_s: float = 0.0
    seconds: float = 6.0
    once: bool = False


PHASES = (
    Phase("frames", users=1000, tokens=64, ttft_ms=50, gap_ms=50, ramp_s=4, seconds=8),
    Phase("requests", users=64, tokens=1, ttft_ms=0, gap_ms=1, ramp_s=1, seconds=5),
    Phase("one user", users=1, tokens=8, ttft_ms=50, gap_ms=5, seconds=4),
    Phase("100 users", users=100, tokens=20, ttft_ms=50, gap_ms=50, ramp_s=1, seconds=5),
    Phase("1,000 at once", users=1000, tokens=8, ttft_ms=50, gap_ms=50, once=True),
)


@dataclass(frozen=True)
class Row:
    """One gateway in one phase once."""

    gateway: str
    phase: str
    cpu_us_per_piece: float | None
    cpu_us_per_request: float | None
    requests_per_s: float
    ttft_mean_ms: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    rss_mib: float
    failures: dict[str, int]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if nothing could be measured."""
    options = parse(arguments)
    gateway_core, other_core = choose_cores()
    try:
        program = compile_mock(cache_folder())
    except NoCompiler as error:
        print(error)
        return 1
    chosen = dict(available(contestants(fitted_artefact()), options.gateways))
    rows: list[Row] = []
    print(
        f"gateway on core {gateway_core}; mock and driver on core {other_core}; load average {os.getloadavg()[0]:.1f}"
    )
    for repeat in range(options.repeats):
        names = [DIRECT, *chosen]
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            for phase in PHASES:
                if options.phases and phase.name not in options.phases:
                    continue
                given = phase if options.seconds is None else replace(phase, seconds=options.seconds)
                row = measure(program, chosen.get(name), given, gateway_core, other_core)
                rows.append(row)
                print(
                    f"{row.gateway:22} {phase.name:14} repeat {repeat}: {msgspec.json.encode(row).decode()}", flush=True
                )
    print(tables(rows))
    if options.output:
        options.output.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    return 0 if rows else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway", description=__doc__.splitlines()[0])
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--gateways", type=words, default=["plain", "fast", "classify", "nginx", "sglang", "vllm"])
    parser.add_argument("--phases", type=words, help="of: " + ", ".join(phase.name for phase in PHASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="length of every phase that has one")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def choose_cores() -> tuple[int, int]:
    """The gateway's core, and that of everything else, this process included."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[-1]})
    return allowed[0], allowed[-1]


def fitted_artefact() -> Path:
    """A classifier of eight clusters, fitted on the corpus that erhpc ships."""
    folder = cache_folder() / "router"
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "erhpc.fit", "clusters=8", f"output={folder}"], check=True)
    return folder


def available(found: dict[str, Contestant], names: Sequence[str]) -> Iterator[tuple[str, Contestant]]:
    """Those that are or can be installed; says why the others are not."""
    for name in names:
        try:
            found[name].prepare()
        except Unavailable as reason:
            print(f"skipped: {found[name].name}: {reason}")
            continue
        yield name, found[name]


def measure(program: Path, contestant: Contestant | None, phase: Phase, gateway_core: int, other_core: int) -> Row:
    """One phase through one gateway, or straight to the mock."""
    with contextlib.ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        mock = closing.enter_context(
            serving(program, ttft_ms=phase.ttft_ms, gap_ms=phase.gap_ms, lifetime_s=120, core=other_core)
        )
        url, tree = mock.url, None
        if contestant is not None:
            url, tree = closing.enter_context(
                running(contestant, mock.url.removeprefix("http://"), folder, gateway_core)
            )
        model = contestant.model if contestant is not None else "mock"
        found, samples = drive(url, model, phase, tree)
    cpu_us = cpu_between_us(samples, found["start_ns"], found["end_ns"]) if samples and not phase.once else None
    return Row(
        gateway=contestant.name if contestant is not None else DIRECT,
        phase=phase.name,
        cpu_us_per_piece=cpu_us / found["pieces"] if cpu_us and found["pieces"] else None,
        cpu_us_per_request=cpu_us / found["requests"] if cpu_us and found["requests"] else None,
        requests_per_s=found["requests"] / found["seconds"],
        ttft_mean_ms=found["ttft_mean_ms"],
        ttft_p50_ms=found["ttft_p50_ms"],
        ttft_p99_ms=found["ttft_p99_ms"],
        rss_mib=max((sample[2] for sample in samples), default=0) / 2**20,
        failures=found["failures"],
    )


@contextlib.contextmanager
def running(contestant: Contestant, upstream: str, folder: Path, core: int) -> Iterator[tuple[str, ProcessTree]]:
    """The gateway on its core until the context ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            contestant.command(upstream, port, folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
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
    """Ask until an answer comes."""
    body = {"model": contestant.model, "messages": [{"role": "user", "content": "loop"}], "max_tokens": 1}
    opener, deadline_s = build_opener(ProxyHandler({})), time.monotonic() + READY_S
    question = Request(f"{url}/v1/chat/completions", msgspec.json.encode(body | {"stream": True}))
    question.add_header("content-type", "application/json")
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            opener.open(question, timeout=5).read()
            return
        time.sleep(0.2)
    raise RuntimeError(f"{contestant.name} does not answer: {log.read_text(errors='replace')[-800:]}")


Sample = tuple[int, int, int]


def drive(url: str, model: str, phase: Phase, tree: ProcessTree | None) -> tuple[dict[str, Any], list[Sample]]:
    """Run the driver; what it found, and time, CPU time and memory of the gateway meanwhile."""
    command = [sys.executable, "-m", "tests.bench.gateway.driver", url, "--model", model, "--users", str(phase.users)]
    command += ["--tokens", str(phase.tokens), "--seconds", str(phase.seconds), "--ramp-s", str(phase.ramp_s)]
    samples: list[Sample] = []
    with subprocess.Popen([*command, *(["--once"] if phase.once else [])], stdout=subprocess.PIPE) as driver:
        while True:
            if tree is not None:
                samples.append(sample(tree))
            try:
                output, _ = driver.communicate(timeout=0.25)
            except subprocess.TimeoutExpired:
                continue
            return json.loads(output), samples


def sample(tree: ProcessTree) -> Sample:
    """Time, CPU time and memory of all processes of the gateway."""
    cpu_ns = rss_bytes = 0
    for pid in tree.find():
        with contextlib.suppress(OSError):
            # The CPU clock of another process, all its threads: see clock_getcpuclockid(3).
            cpu_ns += time.clock_gettime_ns((~pid << 3) | 2)
            rss_bytes += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return time.monotonic_ns(), cpu_ns, rss_bytes


def cpu_between_us(samples: Sequence[Sample], start_ns: int, end_ns: int) -> float:
    """CPU time between two times, between samples in proportion, microseconds."""
    import numpy as np

    times_ns, cpu_ns, _ = zip(*samples, strict=True)
    start, end = np.interp([start_ns, end_ns], times_ns, cpu_ns)
    return float(end - start) / 1000


COLUMNS = (
    ("us CPU per frame", "frames", "cpu_us_per_piece"),
    ("p99 first byte, ms", "frames", "ttft_p99_ms"),
    ("us CPU per request", "requests", "cpu_us_per_request"),
    ("requests/s", "requests", "requests_per_s"),
    ("TTFT p50, 1 user", "one user", "ttft_p50_ms"),
    ("p50, 100", "100 users", "ttft_p50_ms"),
    ("p99, 100", "100 users", "ttft_p99_ms"),
    ("p50, 1,000 at once", "1,000 at once", "ttft_p50_ms"),
    ("p99, 1,000 at once", "1,000 at once", "ttft_p99_ms"),
    ("RSS MiB", "frames", "rss_mib"),
)


def tables(rows: Sequence[Row]) -> str:
    """A line per gateway: medians, and the least and most of all repeats."""
    lines = [f"{'':22}" + "".join(f"{title:>26}" for title, _, _ in COLUMNS)]
    for gateway in dict.fromkeys(row.gateway for row in rows):
        cells = []
        for _, phase, name in COLUMNS:
            values = [getattr(row, name) for row in rows if (row.gateway, row.phase) == (gateway, phase)]
            cells.append(cell([value for value in values if value is not None]))
        lines.append(f"{gateway:22}" + "".join(f"{text:>26}" for text in cells))
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """Median (least..most)."""
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 1
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
