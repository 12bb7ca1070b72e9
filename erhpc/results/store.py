"""Parquet and nothing else: the only module that knows pyarrow.

It writes the part of each client and the two files of a run, and reads them back. It computes nothing (`metrics`
does) and knows no file name (`paths` does).

Files grow by replacement: the row groups of the old file and the new ones go into a sibling that then takes its
place, so a reader never meets half a file and memory holds one row group at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from erhpc.errors import InputError, SchemaMismatch
from erhpc.results.atomic import replacing
from erhpc.results.paths import RunPaths
from erhpc.results.record import (
    LEVEL_COLUMNS,
    PREDICTION_COLUMNS,
    RECORD_COLUMNS,
    SCHEMA_VERSION,
    ClientPart,
    Column,
    LevelIdentity,
    RequestRecord,
)

if TYPE_CHECKING:
    import pandas as pd

VERSION_KEY = b"erhpc_schema_version"
PART_KEY = b"erhpc_client_part"
ROW_GROUP_RECORDS = 16_384
"""Requests per row group: a few MB of token gaps, the memory that appending a level needs."""
UNITS = (("_per_s", "1/s"), ("_ns", "ns"), ("_us", "us"), ("_s", "s"))
"""Units by the end of a column's name, the longest first."""

_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "list<int32>": pa.list_(pa.int32()),
    "list<float64>": pa.list_(pa.float64()),
    "list<string>": pa.list_(pa.string()),
    "map<string,float64>": pa.map_(pa.string(), pa.float64()),
}
_RECORD_FIELDS = {field.name for field in fields(RequestRecord)}
_GAPS = "token_gaps_us"


def _describe(column: Column) -> dict[str, str]:
    unit = next((unit for end, unit in UNITS if column.name.endswith(end)), None)
    return {"meaning": column.meaning} | ({"unit": unit} if unit else {})


def to_schema(columns: Sequence[Column]) -> Any:
    """Arrow schema of `columns`: meaning and unit in each field's metadata, the version in the schema's."""
    found = [pa.field(column.name, _TYPES[column.kind], metadata=_describe(column)) for column in columns]
    return pa.schema(found, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


RECORD_SCHEMA = to_schema(RECORD_COLUMNS)
LEVEL_SCHEMA = to_schema(LEVEL_COLUMNS)
PREDICTION_SCHEMA = to_schema(PREDICTION_COLUMNS)
PART_SCHEMA = to_schema([column for column in RECORD_COLUMNS if column.name in _RECORD_FIELDS])


def write_part(path: Path, part: ClientPart) -> None:
    """Write what one client measured in one level, creating the folder of `path`.

    What the part holds beside its records is kept as JSON in the file's metadata.
    """
    facts = msgspec.json.encode(replace(part, records=[]))
    schema = PART_SCHEMA.with_metadata({**PART_SCHEMA.metadata, PART_KEY: facts})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing_file(path, schema) as writer:
        for table in _to_tables(part.records, schema, {}):
            writer.write_table(table)


def read_part(path: Path) -> ClientPart:
    """Read what `write_part` wrote; the gaps of each record come as an array("i").

    Raises:
        InputError: there is no such file, or it is no part.
        SchemaMismatch: another version of erhpc wrote it.
    """
    with _opened_file(path) as file:
        metadata = file.schema_arrow.metadata
        if PART_KEY not in metadata:
            raise InputError(f"{path} is no part of a level. Give a file that a client wrote with write_part.")
        part = msgspec.json.decode(metadata[PART_KEY], type=ClientPart)
        records = [record for table in _read_row_groups(file) for record in _to_records(table)]
    return replace(part, records=records)


def empty_results(paths: RunPaths) -> None:
    """Write both files of a run with no rows, so that a reader finds them from the start."""
    for path, schema in ((paths.records, RECORD_SCHEMA), (paths.levels, LEVEL_SCHEMA)):
        with _replacing_file(path, schema):
            pass


def append_level(paths: RunPaths, identity: LevelIdentity, parts: Sequence[ClientPart], row: Mapping[str, Any]) -> None:
    """Add the records of a level, then its row, to the files of a run (made if missing).

    A level exists once its row does: after a crash between the two files its records have no row, and no report
    counts them.

    Raises:
        InputError: the files hold records or a row of this level already; they stay as they are.
        SchemaMismatch: another version of erhpc wrote the files; they stay as they are.
    """
    for path in (paths.records, paths.levels):
        _check_level_is_new(path, identity.level)
    level = {name: value for name, value in asdict(identity).items() if name in RECORD_SCHEMA.names}
    records = (record for part in parts for record in part.records)
    _append(paths.records, RECORD_SCHEMA, _to_tables(records, RECORD_SCHEMA, level))
    _append(paths.levels, LEVEL_SCHEMA, [pa.Table.from_pylist([dict(row)], schema=LEVEL_SCHEMA)])


def write_prediction(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the predicted levels of a run, rows of PREDICTION_COLUMNS."""
    with _replacing_file(path, PREDICTION_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=PREDICTION_SCHEMA))


def read_records(run: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """All requests of a run, one row each, with RECORD_COLUMNS or only `columns`.

    Raises:
        InputError: `run` holds no records, or the file is damaged.
        SchemaMismatch: another version of erhpc wrote them.
    """
    return _read_frame(RunPaths(run).records, columns)


def read_levels(run: Path) -> pd.DataFrame:
    """All levels of a run, one row each, with LEVEL_COLUMNS; `expert_share` holds dictionaries.

    Raises:
        InputError: `run` holds no levels, or the file is damaged.
        SchemaMismatch: another version of erhpc wrote them.
    """
    return _read_level_frame(RunPaths(run).levels)


def read_prediction(run: Path) -> pd.DataFrame | None:
    """What was predicted of a run, one row per level, with PREDICTION_COLUMNS; None if nothing was.

    Raises:
        InputError: the file is damaged.
        SchemaMismatch: another version of erhpc wrote it.
    """
    path = RunPaths(run).prediction
    return _read_level_frame(path) if path.exists() else None


def _read_level_frame(path: Path) -> pd.DataFrame:
    frame = _read_frame(path)
    frame["expert_share"] = [dict(pairs or ()) for pairs in frame["expert_share"]]
    for name in ("invalid_reasons", "client_lag_histogram"):
        frame[name] = [list(values) if values is not None else [] for values in frame[name]]
    return frame


def read_columns(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The columns `names` of any Parquet file, erhpc's or not, by name; null becomes NaN in a column of numbers.

    Raises:
        InputError: there is no such file, it is no Parquet, or it lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            missing = [name for name in names if name not in known]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(missing)}. Needed: {', '.join(names)}; it has: "
                    f"{', '.join(known) or 'none'}. Rename its columns or give another file."
                )
            table = file.read(columns=list(names))
    except FileNotFoundError as error:
        raise InputError(f"{path} (looked for at {path.absolute()}) does not exist. Give a Parquet file.") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}. Give a Parquet file.") from error
    return {name: np.asarray(table.column(name).to_numpy()) for name in names}


def _check_level_is_new(path: Path, level: int) -> None:
    if not path.exists():
        return
    with _opened_file(path) as file:
        known = file.read(columns=["level"]).column("level").unique().to_pylist()
    if level in known:
        raise InputError(
            f"{path} holds level {level} already, and a level is stored once. Was the job of this run started again? "
            "Start a new run with `python -m erhpc.launch`."
        )


def _append(path: Path, schema: Any, tables: Iterable[Any]) -> None:
    with _replacing_file(path, schema) as writer:
        if path.exists():
            with _opened_file(path) as file:
                for table in _read_row_groups(file):
                    writer.write_table(table)
        for table in tables:
            writer.write_table(table)


@contextmanager
def _replacing_file(path: Path, schema: Any) -> Iterator[Any]:
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": texts or False}
    if _GAPS in schema.names:
        # Gaps of one request differ little: 2 bytes per token instead of 4.
        options["column_encoding"] = {f"{_GAPS}.list.element": "DELTA_BINARY_PACKED"}
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        yield writer


@contextmanager
def _opened_file(path: Path) -> Iterator[Any]:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Give the folder of a run that has been started.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}") from error
    with file:
        _check_version(path, file.schema_arrow.metadata or {})
        yield file


def _check_version(path: Path, metadata: Mapping[bytes, bytes]) -> None:
    found = metadata.get(VERSION_KEY, b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise SchemaMismatch(
            f"{path} has schema version {found}; this erhpc reads version {SCHEMA_VERSION}. "
            "Read it with the erhpc version named in the run's manifest.json."
        )


def _read_row_groups(file: Any) -> Iterator[Any]:
    return (file.read_row_group(index) for index in range(file.num_row_groups))


def _to_tables(records: Iterable[RequestRecord], schema: Any, constants: Mapping[str, Any]) -> Iterator[Any]:
    """Row groups of `records`; columns that a record does not have come from `constants`."""
    remaining = iter(records)
    while group := list(islice(remaining, ROW_GROUP_RECORDS)):
        columns = {
            name: [constants[name]] * len(group) if name in constants else [getattr(record, name) for record in group]
            for name in schema.names
        }
        yield pa.Table.from_pydict(columns | {_GAPS: _join_gaps(columns[_GAPS])}, schema=schema)


def _join_gaps(gaps_us: Sequence[Sequence[int]]) -> Any:
    """A column of lists, copied as bytes: value by value it would cost more than the rest of the table."""
    pool = array("i")
    for gaps in gaps_us:
        pool.extend(gaps)
    offsets = np.zeros(len(gaps_us) + 1, dtype=np.int32)
    np.cumsum([len(gaps) for gaps in gaps_us], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.frombuffer(pool, dtype=np.intc))


def _split_gaps(column: Any) -> Iterator[array[int]]:
    """The lists of a column of one row group."""
    lists = column.combine_chunks()
    values = lists.values.to_numpy()
    for start, end in pairwise(lists.offsets.to_pylist()):
        gaps = array("i")
        gaps.frombytes(values[start:end].tobytes())
        yield gaps


def _to_records(table: Any) -> Iterator[RequestRecord]:
    names = table.column_names
    columns = [_split_gaps(table.column(name)) if name == _GAPS else table.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield RequestRecord(**dict(zip(names, values, strict=True)))


def _read_frame(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    # Clients write parts, and start a hundred times per sweep: they must not wait for pandas.
    import pandas as pd

    # Null must not turn integers into floats: nanoseconds since boot do not fit their 53 bits. Nor must it turn
    # booleans into objects.
    types = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    with _opened_file(path) as file:
        return file.read(columns=columns).to_pandas(types_mapper=types.get)
