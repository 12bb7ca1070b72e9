"""Where a result comes from: versions, git commit, host, processor, memory and GPUs, as plain data for manifest.json.

It records no environment variable, argument or key. What cannot be found out is null: a missing tool never stops a
run.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import erhpc
from erhpc.results.atomic import write_atomically
from erhpc.results.record import SCHEMA_VERSION

CHECKOUT = Path(erhpc.__file__).resolve().parent.parent
"""The folder that holds the package: the git checkout, unless erhpc was installed elsewhere."""
COMMAND_TIMEOUT_S = 10.0
"""Patience for git and nvidia-smi; both can hang on a sick file system or driver."""
GPU_QUERIES = ("index", "name", "uuid", "memory.total", "driver_version", "pci.bus_id")


def collect_provenance(checkout: Path = CHECKOUT) -> dict[str, Any]:
    """Everything about this process's software and this host's hardware that a result depends on.

    Memory is in bytes, GPU memory in MiB as nvidia-smi reports it, time is UTC in ISO 8601.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "collected_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "erhpc": erhpc.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": find_package_versions(),
        "git": describe_checkout(checkout),
        "host": describe_host(),
        "gpus": find_gpus(),
    }


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest` as indented JSON, whole or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def add_to_manifest(path: Path, **entries: Any) -> None:
    """Set top-level entries of an existing manifest, atomically."""
    write_manifest(path, msgspec.json.decode(path.read_bytes()) | entries)


def find_package_versions(distribution: str = "erhpc") -> dict[str, str | None]:
    """Installed version of every package that `distribution` requires (extras left out); null if not installed."""
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements if "extra ==" not in text]
    return {name: _find_version(name) for name in sorted(names)}


def describe_checkout(folder: Path) -> dict[str, Any] | None:
    """Commit of the git checkout at `folder` and whether files differ from it; None if it is no checkout."""
    top = _ask("git", "-C", str(folder), "rev-parse", "--show-toplevel")
    # Within somebody else's checkout (say, a virtual environment inside one) that commit says nothing of erhpc.
    if top is None or Path(top).resolve() != folder.resolve():
        return None
    commit = _ask("git", "-C", str(folder), "rev-parse", "HEAD")
    # A lock taken for a mere look would make a commit that runs at the same time fail.
    changes = _ask("git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def describe_host() -> dict[str, Any]:
    """Name, processor, the CPUs this process may use, and memory of this host."""
    return {
        "name": platform.node(),
        "cpu_model": find_cpu_model(_read_text(Path("/proc/cpuinfo"))),
        "cpu_count": os.cpu_count(),
        "cpu_affinity": sorted(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def find_cpu_model(cpuinfo: str) -> str | None:
    """Model name in the text of /proc/cpuinfo; None where the processor states none (as on ARM)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found[1].strip() if found else None


def find_gpus() -> list[dict[str, str]]:
    """GPUs of this host by nvidia-smi; none where there is no nvidia-smi or no driver."""
    answer = _ask("nvidia-smi", f"--query-gpu={','.join(GPU_QUERIES)}", "--format=csv,noheader,nounits")
    return parse_gpus(answer or "", GPU_QUERIES)


def parse_gpus(text: str, queries: Sequence[str]) -> list[dict[str, str]]:
    """One dictionary per line of nvidia-smi's CSV; lines that do not have one value per query are no GPUs."""
    rows = [[value.strip() for value in line.split(",")] for line in text.splitlines()]
    return [dict(zip(queries, row, strict=True)) for row in rows if len(row) == len(queries)]


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _ask(*command: str) -> str | None:
    """What a command printed; None if it is missing, failed or took too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
