"""The state of a run as rank 0 publishes it: one small JSON file, replaced as a whole, written by nobody else.

Viewers (launch, `python -m erhpc.status`) only read it; they may be on another node of a shared file system.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from erhpc.results.atomic import write_atomically

RunState = Literal["submitted", "starting", "waiting", "loading", "running", "finished", "failed", "interrupted"]
FINAL_STATES: tuple[RunState, ...] = ("finished", "failed", "interrupted")


@dataclass(kw_only=True)
class ReplicaStatus:
    """One replica: loading, ready, failed or gone, and how long its loading took."""

    state: str = "planned"
    node: str = ""
    load_s: float | None = None


@dataclass(kw_only=True)
class LevelResult:
    """The few numbers of a finished level that a live view shows."""

    level: int
    users: int | None = None
    rate_per_s: float | None = None
    requests_ok: int
    requests_failed: int
    output_tokens_per_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    valid: bool
    invalid_reasons: list[str]


@dataclass(kw_only=True)
class RunStatus:
    """Everything a viewer needs; `error` is the first line that explains a failure."""

    experiment: str
    engine: str
    num_levels: int
    state: RunState = "submitted"
    detail: str = ""
    error: str | None = None
    replicas: dict[str, ReplicaStatus] = field(default_factory=dict)
    progress: dict[str, Any] | None = None
    levels: list[LevelResult] = field(default_factory=list)
    updated_utc: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in FINAL_STATES


class StatusFile:
    """Writes a RunStatus whenever it is told to."""

    def __init__(self, path: Path, status: RunStatus) -> None:
        self.path = path
        self.status = status

    def publish(self) -> None:
        """Replace the file with the status as it is now; a file system that refuses must not end the run."""
        self.status.updated_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError):
            write_atomically(self.path, msgspec.json.format(msgspec.json.encode(self.status)))


def read_status(path: Path) -> RunStatus | None:
    """The published status, None before there is one, or while the file system does not show it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunStatus)
    except OSError:
        return None
