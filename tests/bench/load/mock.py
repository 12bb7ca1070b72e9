"""Compiles and runs the mock: one process serves many measurements, each between a reset and a look at the truth."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from tests.bench.load.process import favour
from tests.bench.load.truth import Truth, parse_truth

SOURCE = Path(__file__).with_name("mock.c")
TOKEN_TEXT = " the"
"""One token of any English tokenizer: clients that count by tokenising must find as many as were sent."""
_OPENER = build_opener(ProxyHandler({}))


class NoCompiler(Exception):
    """There is no C compiler called `cc` on this machine."""


@dataclass(frozen=True)
class Mock:
    """A running mock."""

    url: str
    process: subprocess.Popen[str]

    def set_pace(self, ttft_ms: float, gap_ms: float) -> None:
        """Pace all answers so from now on; none may be under way."""
        _ask(self.url + "/pace", data=b'{"ttft_ms": %f, "gap_ms": %f}' % (ttft_ms, gap_ms))

    def reset(self) -> None:
        """Forget the requests that have ended."""
        _ask(self.url + "/reset", data=b"")

    def truth(self) -> Truth:
        """All requests since the last reset."""
        return parse_truth(_ask(self.url + "/truth"))


def compile_mock(folder: Path) -> Path:
    """The mock's program in `folder`, compiled unless it is there already; raises NoCompiler."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = folder / f"mock-{digest}"
    if program.exists():
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler("the mock is a C program and there is no `cc`; install gcc or clang")
    folder.mkdir(parents=True, exist_ok=True)
    partial = program.with_name(f"{program.name}-{os.getpid()}")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", partial, SOURCE], check=True)
    return partial.rename(program)


@contextmanager
def serving(
    program: Path,
    *,
    ttft_ms: float,
    gap_ms: float,
    lifetime_s: float,
    core: int | None = None,
    model: str = "mock",
    options: tuple[str, ...] = (),
) -> Iterator[Mock]:
    """A mock on a free port of 127.0.0.1, pinned to `core`, until the context ends; it dies with this process.

    On a core of its own it comes before whatever else runs there, so that it is not late.
    """
    command = [program, "--ttft-ms", str(ttft_ms), "--gap-ms", str(gap_ms), "--lifetime-s", str(lifetime_s)]
    process = subprocess.Popen(
        [*command, "--model", model, "--text", TOKEN_TEXT, *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
                favour(process.pid)
            port = int(process.stdout.readline())
            yield Mock(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()


def _ask(url: str, data: bytes | None = None) -> bytes:
    with _OPENER.open(url, data=data, timeout=60) as answer:
        return answer.read()
