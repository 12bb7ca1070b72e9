"""The shipped table of measurements: one number with its circumstances and its source per line.

Others published them, but for a slice that this project measured and whose source says so. Lines that the model can't
answer stay in the table and say why.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from erhpc.errors import InputError
from erhpc.twin.hardware import DATA

MEASURED_FILE = DATA / "measured.csv"
LOADS = ("static", "maximum", "burst", "rate", "closed", "serial", "http")
MEASURES = ("out_tok_s", "ttft_ms", "tpot_ms")
OWN_SOURCE = "own measurement"
"""How the source of what this project measured begins; everything else is an address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One measured number."""

    model: str
    """A name of erhpc/twin/data/models.toml."""
    gpu: str
    tensor_parallel: int
    kernel: str
    kv_element_bytes: float
    profile: str
    load: str
    """static: equal sequences together; maximum: more waiting than fit; burst: all at once; rate: Poisson arrivals;
    closed: users back to back; serial: one user; http: users back to back, of equal lengths, through the API server."""
    level: float
    """Sequences, requests, requests per second or users; 0 for maximum."""
    num_requests: int
    """Requests of a rate; 0 where the level says it or it does not matter."""
    input_tokens: int
    output_tokens: int
    """Both are means where the load is burst, rate, closed or serial: lengths as in chats, cut at 512."""
    max_num_seqs: int
    max_num_batched_tokens: int
    memory_share: float
    """Of the GPU's memory, that the engine may use."""
    is_eager: bool
    stream_interval: int
    """Tokens per piece that the API server sends; 0: measured within the engine's process."""
    measure: str
    value: float
    source: str
    left_out: str = ""
    """Why the number is not compared; empty: it is."""


def read_facts(path: Path = MEASURED_FILE) -> list[Fact]:
    """Read a table of facts. Raises InputError, naming the line, if a field is missing or wrong."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_read_fact(path, number, row) for number, row in enumerate(csv.DictReader(file), start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no readable table of measurements: {error}") from error


def write_facts(path: Path, facts: Iterable[Fact]) -> None:
    """Write a table of facts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Fact)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _show(value) for key, value in asdict(fact).items()} for fact in facts)


def _show(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:g}" if isinstance(value, float) and value == round(value, 2) and abs(value) < 1e5 else value


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Fact)


def _read_fact(path: Path, line: int, row: dict[str, Any]) -> Fact:
    values: dict[str, Any] = {}
    for name, kind in _types().items():
        try:
            raw = row[name]
            values[name] = bool(int(raw)) if kind is bool else kind(raw)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, line {line}: {name}={row.get(name)!r} is no {kind.__name__}.") from error
    fact = Fact(**values)
    for name, value, allowed in (("load", fact.load, LOADS), ("measure", fact.measure, MEASURES)):
        if value not in allowed:
            raise InputError(f"{path}, line {line}: {name}={value!r} is not known. Allowed: {', '.join(allowed)}.")
    if not 0 < fact.value < float("inf"):
        raise InputError(f"{path}, line {line}: value={fact.value} is no measurement. Give a number above 0.")
    _require_counts(path, line, fact, ("tensor_parallel", "input_tokens", "output_tokens", "max_num_seqs"))
    return fact


def _require_counts(path: Path, line: int, fact: Fact, names: Sequence[str]) -> None:
    for name in names:
        if getattr(fact, name) < 1:
            raise InputError(f"{path}, line {line}: {name}={getattr(fact, name)} must be at least 1.")
