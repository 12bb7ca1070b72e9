"""The GPU types erhpc knows, one data file each: memory for the fit here, timing constants for the twin to read.

Shipped files lie in erhpc/plan/data/gpus/NAME.toml. Another GPU needs no code: copy such a file, change its numbers and
their sources, and give its path (ending in .toml) as cluster.gpu.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from erhpc.errors import ConfigError

GIB = 1024**3
GPU_FILES = Path(__file__).parent / "data" / "gpus"


@dataclass(frozen=True)
class Gpu:
    """One GPU type: what CUDA reports as its total memory, in bytes, and what its file says of timing."""

    name: str
    label: str
    memory_bytes: int
    """Total as CUDA reports it, a little below the label: 79.1 GiB for an "80 GB" card."""
    timing: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The file's tables `timing` and `all_reduce`, unread; erhpc.twin.hardware knows what they mean."""


def read_gpu(name: str, path: Path) -> Gpu:
    """Read a GPU file. Raises ConfigError if it cannot be read or lacks its label or memory."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cluster.gpu={name!r}: {path} is no readable GPU file ({error}). Copy one of {GPU_FILES} and change it."
        ) from error
    memory = content.get("memory")
    total_gib = memory.get("total_gib") if isinstance(memory, dict) else None
    is_number = isinstance(total_gib, int | float) and not isinstance(total_gib, bool)
    if not isinstance(total_gib, int | float) or not is_number or not (isfinite(total_gib) and total_gib > 0):
        raise ConfigError(
            f"cluster.gpu={name!r}: memory.total_gib={total_gib!r} in {path} is no memory size. "
            "Give the GiB that CUDA reports, such as 79.1."
        )
    label = content.get("label", name)
    timing = {key: content.get(key, {}) for key in ("timing", "all_reduce")}
    return Gpu(name, str(label), int(total_gib * GIB), timing)


GPUS: dict[str, Gpu] = {path.stem: read_gpu(path.stem, path) for path in sorted(GPU_FILES.glob("*.toml"))}
"""The shipped GPU types by name."""


def find_gpu(name: str) -> Gpu:
    """Look a GPU type up by its name, or read the GPU file at the path `name`.

    Raises:
        ConfigError: the type is not known, or its file is wrong; the message lists what is known.
    """
    if name in GPUS:
        return GPUS[name]
    if name.endswith(".toml"):
        path = Path(name).expanduser().absolute()  # replicas may start in another folder
        return read_gpu(str(path), path)
    raise ConfigError(
        f"cluster.gpu={name!r} is not known. Allowed: {', '.join(GPUS)}, or the path of a GPU file like those in "
        f"{GPU_FILES}, ending in .toml."
    )
