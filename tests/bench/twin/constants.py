"""Every constant of the shipped GPU, kernel and profile files with its basis, and which of them are fitted."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from erhpc.plan.gpus import GPU_FILES
from erhpc.twin.evidence import Evidence, read_evidence
from erhpc.twin.hardware import DATA

SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant of a data file."""

    kind: str
    """gpu, kernel, profile or shared."""
    entry: str
    """Of that GPU, kernel or profile; of a shared one its own name."""
    name: str
    evidence: Evidence
    has_basis: bool
    """Whether the file says what it rests on."""


@cache
def list_constants() -> tuple[Constant, ...]:
    """All constants; one that an entry shares stands under `shared` alone."""
    found = []
    for path in sorted(GPU_FILES.glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        found += [_read("gpu", path.stem, name, raw) for name, raw in content["timing"].items()]
    for kind, file in (("kernel", "kernels.toml"), ("profile", "profiles.toml")):
        for entry, table in _read_data(file).items():
            found += [
                _read(kind, entry, name, raw)
                for name, raw in table.items()
                if isinstance(raw, Mapping) and SHARED not in raw
            ]
    found += [_read(SHARED, name, name, raw) for name, raw in _read_data("shared.toml").items()]
    return tuple(found)


def list_sharers(name: str) -> list[str]:
    """The kernels and profiles that share a constant."""
    tables = {**_read_data("kernels.toml"), **_read_data("profiles.toml")}
    return [
        entry
        for entry, table in tables.items()
        if any(isinstance(raw, Mapping) and raw.get(SHARED) == name for raw in table.values())
    ]


def list_fitted() -> list[Constant]:
    """Those that were set on measurements the model is compared with."""
    return [constant for constant in list_constants() if constant.evidence.basis == "fitted"]


def _read(kind: str, entry: str, name: str, raw: Mapping[str, Any]) -> Constant:
    return Constant(kind, entry, name, read_evidence(f"{kind} {entry}: {name}", raw), "basis" in raw)


def _read_data(file: str) -> dict[str, Any]:
    return tomllib.loads((DATA / file).read_text(encoding="utf-8"))
