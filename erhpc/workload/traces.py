"""Reads recorded workloads: when requests came, and how many tokens went in and out.

It knows the columns of public traces and nothing about levels. Formats:

    azure     Azure LLM inference traces, CSV: TIMESTAMP (date and time; UTC where it names no zone), ContextTokens,
              GeneratedTokens
    burstgpt  BurstGPT, CSV: Timestamp (seconds), Request tokens, Response tokens. Rows without response tokens are
              requests that failed: they are skipped and counted.
    parquet   erhpc's own: at_s (seconds), tokens_in, tokens_out

Further columns are ignored, and rows out of order are put in order.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from erhpc.config.workload import TRACE_FORMATS
from erhpc.errors import InputError, require_choice

BLOCK_ROWS = 65_536
"""Rows of a CSV turned into numbers at a time: texts take ten times the memory of the numbers they spell."""
MAX_TOKENS = 2**31 - 1

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A recorded workload in order of time; there is at least one row."""

    at_s: Floats
    """When each request came, seconds since the first."""
    tokens_in: Tokens
    tokens_out: Tokens
    skipped: int = 0
    """Rows of the file that were left out: requests that failed."""

    @property
    def mean_rate_per_s(self) -> float | None:
        """Gaps per second; None where all requests came at once."""
        length_s = float(self.at_s[-1])
        return (self.at_s.size - 1) / length_s if length_s else None

    def draw_lengths(self, random: Generator) -> tuple[int, int]:
        """Prompt and answer tokens of one row, each as likely as any other."""
        row = int(random.integers(self.at_s.size))
        return int(self.tokens_in[row]), int(self.tokens_out[row])


@dataclass(frozen=True, slots=True)
class _Column:
    """One column that a trace is made of: how a text becomes its number (NaN if it is none), what is allowed."""

    name: str
    parse: Callable[[str], float]
    allowed: str
    largest: float = math.inf
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns of a format, in this order: time, prompt tokens, answer tokens."""

    columns: tuple[_Column, _Column, _Column]
    skips_failures: bool = False

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _parse_utc(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 date and time; digits below the microsecond are dropped."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(name: str) -> _Column:
    return _Column(name, _parse_number, f"whole numbers from 0 to {MAX_TOKENS}", MAX_TOKENS, is_whole=True)


def _seconds(name: str) -> _Column:
    return _Column(name, _parse_number, "seconds, at least 0")


def _date(name: str) -> _Column:
    return _Column(name, _parse_utc, "a date and time since 1970, such as 2023-11-16 18:15:46.6805900")


_CSV_LAYOUTS = {
    "azure": _Layout((_date("TIMESTAMP"), _tokens("ContextTokens"), _tokens("GeneratedTokens"))),
    "burstgpt": _Layout(
        (_seconds("Timestamp"), _tokens("Request tokens"), _tokens("Response tokens")), skips_failures=True
    ),
}
_PARQUET_LAYOUT = _Layout((_seconds("at_s"), _tokens("tokens_in"), _tokens("tokens_out")))


def read_trace(path: str | Path, format: str = "auto") -> Trace:  # noqa: A002 - the word of conf/workload
    """Read a trace; `auto` takes a file named *.parquet as Parquet, and a CSV by its columns.

    Raises:
        ConfigError: the format is unknown.
        InputError: the file is missing, malformed, has a value that is no time or count, or has no request.
    """
    require_choice("workload.trace_format", format, TRACE_FORMATS)
    path = Path(path)
    if format == "parquet" or (format == "auto" and path.suffix == ".parquet"):
        return _build_trace(path, _PARQUET_LAYOUT, _read_parquet(path))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            layout = _find_layout(header, format, path)
            return _build_trace(path, layout, _read_blocks(reader, header, layout, path))
    except OSError as error:
        raise InputError(
            f"The trace {path} (looked for at {path.absolute()}) cannot be read: {error.strerror}. "
            "Set workload.trace to a readable file."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"The trace {path} is no CSV in UTF-8: {error}. Give a CSV, or set workload.trace_format=parquet if it is "
            "Parquet."
        ) from error


def _find_layout(header: Sequence[str], format: str, path: Path) -> _Layout:  # noqa: A002
    candidates = _CSV_LAYOUTS if format == "auto" else {format: _CSV_LAYOUTS[format]}
    for layout in candidates.values():
        if set(layout.names) <= set(header):
            return layout
    allowed = "; ".join(f"{', '.join(layout.names)} ({name})" for name, layout in candidates.items())
    raise InputError(
        f"{path}, line 1: the columns are {', '.join(header) or 'none'}. Allowed for workload.trace_format={format}: "
        f"{allowed}. Rename them, or write Parquet with the columns {', '.join(_PARQUET_LAYOUT.names)}."
    )


def _read_blocks(reader: Iterator[list[str]], header: list[str], layout: _Layout, path: Path) -> Iterator[list[Floats]]:
    """Blocks of rows as three arrays each: time in seconds, prompt tokens, answer tokens."""
    positions = [header.index(name) for name in layout.names]
    first_line = 2
    while rows := list(islice(reader, BLOCK_ROWS)):
        # An empty line is an empty row: it counts as a line, and holds nothing.
        lines = [line for line, row in enumerate(rows, first_line) if row]
        first_line += len(rows)
        rows = [row for row in rows if row]
        _require_width(rows, max(positions) + 1, lines, path)
        yield [
            _to_numbers([row[position] for row in rows], column, lines, path)
            for position, column in zip(positions, layout.columns, strict=True)
        ]


def _require_width(rows: list[list[str]], width: int, lines: list[int], path: Path) -> None:
    short = next((index for index, row in enumerate(rows) if len(row) < width), None)
    if short is not None:
        raise InputError(
            f"{path}, line {lines[short]}: {len(rows[short])} values where at least {width} are needed. Was the file "
            "cut off? Correct the line or remove it."
        )


def _to_numbers(texts: list[str], column: _Column, lines: list[int], path: Path) -> Floats:
    values = np.fromiter(map(column.parse, texts), np.float64, len(texts))
    wrong = _find_wrong(values, column)
    if wrong is not None:
        raise _refuse(f"{path}, line {lines[wrong]}", column, texts[wrong])
    return values


def _read_parquet(path: Path) -> Iterator[list[Floats]]:
    # Clients that replay no Parquet must not wait for its library.
    from erhpc.results.store import read_columns

    found = read_columns(path, _PARQUET_LAYOUT.names)
    for column in _PARQUET_LAYOUT.columns:
        values = found[column.name]
        if values.dtype.kind not in "iuf":
            raise InputError(
                f"{path}: column {column.name} is of type {values.dtype}. Allowed: {column.allowed}. "
                "Write the column as numbers."
            )
        wrong = _find_wrong(values, column)
        if wrong is not None:
            raise _refuse(f"{path}, row {wrong + 1}", column, values[wrong].item())
    yield [found[name].astype(np.float64) for name in _PARQUET_LAYOUT.names]


def _find_wrong(values: npt.NDArray[Any], column: _Column) -> int | None:
    """Index of the first value that is not allowed."""
    right = np.isfinite(values) & (values >= 0) & (values <= column.largest)
    if column.is_whole:
        right &= values == np.floor(values)
    return None if right.all() else int(np.argmin(right))


def _refuse(place: str, column: _Column, given: object) -> InputError:
    return InputError(
        f"{place}: {column.name} is {given!r}. Allowed: {column.allowed}. Correct the value or remove its row."
    )


def _build_trace(path: Path, layout: _Layout, blocks: Iterable[list[Floats]]) -> Trace:
    at_s, tokens_in, tokens_out = (np.concatenate([np.empty(0), *column]) for column in _transpose(blocks))
    answered = tokens_out > 0 if layout.skips_failures else np.ones(at_s.size, dtype=bool)
    order = np.flatnonzero(answered)[np.argsort(at_s[answered], kind="stable")]
    if not order.size:
        failed = f" but {at_s.size} that failed" if at_s.size else ""
        raise InputError(f"The trace {path} has no request{failed}. Set workload.trace to a file that has some.")
    return Trace(
        at_s=at_s[order] - at_s[order[0]],
        tokens_in=tokens_in[order].astype(np.int32),
        tokens_out=tokens_out[order].astype(np.int32),
        skipped=at_s.size - order.size,
    )


def _transpose(blocks: Iterable[list[Floats]]) -> list[list[Floats]]:
    columns: list[list[Floats]] = [[], [], []]
    for block in blocks:
        for column, values in zip(columns, block, strict=True):
            column.append(values)
    return columns
