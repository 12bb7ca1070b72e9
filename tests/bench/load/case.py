"""What a client is asked to do and what it reports: the words that the clients and the bench share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.load.truth import Latencies

PROMPT_TOKENS = 32


class Unavailable(Exception):
    """A client cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Case:
    """One measurement: `users` in a closed loop ask for `tokens` each time, `requests` in all or for `seconds`."""

    url: str
    model: str
    """Served name."""
    model_directory: Path
    """A tokenizer for those who need one."""
    users: int
    tokens: int
    seconds: float
    requests: int
    """As many as the users finish in that time if nothing is late."""
    folder: Path
    """Empty; for whatever the client reads and writes."""


@dataclass(frozen=True)
class Report:
    """What a client says of a case."""

    ttft: Latencies
    gap: Latencies
    tokens_per_s: float | None
    requests: int
    """How many finished requests these are about."""
    window_ns: tuple[int, int] | None = None
    """CLOCK_MONOTONIC times between which the requests counted were sent; None: the whole run."""
    is_steady: bool = False
    """The window holds neither ramp nor drain."""


class Client(Protocol):
    """A load generator that the bench can run."""

    name: str

    def prepare(self) -> None:
        """Install what it needs; raises Unavailable."""

    def command(self, case: Case) -> list[str]:
        """The command line, after writing into the case's folder what it reads."""

    def read_report(self, case: Case) -> Report:
        """What it wrote into the case's folder; its stdout is in `stdout` there."""
