"""The GPU types erhpc knows, as data: memory for the fit. Timing constants belong to the twin."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.errors import ConfigError

GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """One GPU type: what CUDA reports as its total memory, in bytes."""

    name: str
    label: str
    memory_bytes: int


# Totals as CUDA reports them (torch.cuda.mem_get_info), a little below the label: 79.1 GiB for an "80 GB" card.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100_40", "A100 40 GB", int(39.4 * GIB)),
        Gpu("a100_80", "A100 80 GB", int(79.1 * GIB)),
        Gpu("h100_80", "H100 80 GB", int(79.1 * GIB)),
        Gpu("h200_141", "H200 141 GB", int(139.8 * GIB)),
    )
}


def find_gpu(name: str) -> Gpu:
    """Look a GPU type up.

    Raises:
        ConfigError: the type is not known; the message lists those that are.
    """
    if name not in GPUS:
        raise ConfigError(
            f"cluster.gpu={name!r} is not known. Allowed: {', '.join(GPUS)}; add it to erhpc/plan/gpus.py."
        )
    return GPUS[name]
