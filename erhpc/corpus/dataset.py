"""Reads columns of a dataset on disk: folders as Hugging Face's repositories and `save_to_disk` lay them out.

It chooses the files of one split and gives their rows as Python values; what a row means, `prompts` knows. It never
asks a network, and pyarrow is imported only once a file is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from erhpc.errors import InputError

DATASET_EXPECTED = "a folder with *.parquet, or with *.arrow as `save_to_disk` writes it, or one such file"
SPLIT_NAMES = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
"""Names of files and folders that mean a split, also with more behind them: train_sft, test-large."""
ID_COLUMN = "id"

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_FIRST_WORD = re.compile(r"[A-Za-z]+")


_Json = TypeVar("_Json", bound=msgspec.Struct)


class _Shard(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """state.json of a saved dataset."""

    data_files: list[_Shard] = msgspec.field(name="_data_files")


class _Listing(msgspec.Struct):
    """dataset_dict.json of several saved splits."""

    splits: list[str]


@dataclass(frozen=True, slots=True)
class Split:
    """The files of a dataset that are read."""

    name: str
    """Which split they are, e.g. train; empty if the dataset is not divided."""
    files: tuple[Path, ...]
    others: tuple[str, ...]
    """The splits that are not read."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset, as far as it concerns a prompt."""

    given_id: Any
    """Of the column `id`; None if there is none."""
    domain: Any
    value: Any
    """What stands in the column of the prompt: a text, turns, or None."""


def find_split(source: str) -> Split:
    """Choose what to read of a dataset: split `train`, else the first whose name begins so, else the first.

    `source` is a folder, searched with all folders in it but hidden ones, or one file. Files are in order of their
    paths. Where Parquet files are, Arrow files are not looked at.

    Raises:
        InputError: there is no such path, no such file in it, or the split lies in several folders.
    """
    root = Path(source)
    if root.is_file():
        return Split("", (root,), ())
    groups = _group(root, _list_files(root, source))
    names = sorted({split for split, _ in groups})
    name = min(names, key=lambda name: (name != "train", not name.startswith("train"), name))
    folders = [folder for split, folder in groups if split == name]
    if len(folders) > 1:
        raise InputError(
            f"The dataset {source} holds split {name!r} in several folders: {', '.join(folders)}. "
            f"Name one of them, e.g. {(root / folders[0]).as_posix()}."
        )
    return Split(name, tuple(groups[name, folders[0]]), tuple(other for other in names if other != name))


def read_rows(files: Sequence[Path], prompt_column: str, domain_column: str) -> Iterator[Row]:
    """The rows of Parquet and Arrow files, file by file; the columns of id and domain may be missing.

    Raises:
        InputError: a file cannot be read or lacks the column of the prompt.
    """
    import pyarrow as pa

    for file in files:
        try:
            yield from _read_file(file, prompt_column, domain_column)
        except (pa.ArrowException, OSError, ValueError, msgspec.DecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}. Expected: {DATASET_EXPECTED}.") from error


def _list_files(root: Path, source: str) -> list[Path]:
    if not root.is_dir():
        raise InputError(
            f"The dataset {source} (looked for at {root.absolute()}) does not exist. Expected: {DATASET_EXPECTED}."
        )
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(root))]
    files = [path for path in found if path.suffix == ".parquet"]
    files = files or [path for path in found if path.suffix == ".arrow" and _is_data(path)]
    if not files:
        raise InputError(f"The dataset {source} has no prompt files. Expected: {DATASET_EXPECTED}.")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_data(path: Path) -> bool:
    """Whether an Arrow file holds rows that were saved: shards of an earlier, larger dataset and caches do not."""
    state = path.with_name("state.json")
    if state.is_file():
        return path.name in {shard.filename for shard in _read_json(state, _State).data_files}
    return not path.name.startswith("cache-")


def _group(root: Path, files: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    """Files by their split and the folder, below `root`, that the split belongs to."""
    listing = root / "dataset_dict.json"
    named = set(_read_json(listing, _Listing).splits) if listing.is_file() else set()
    groups: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for file in files:
        split, folder = _place(file, root, named)
        groups[split, folder.relative_to(root).as_posix()].append(file)
    return groups


def _place(file: Path, root: Path, named: set[str]) -> tuple[str, Path]:
    """Split of a file, and the folder that the split is of: `a` of a/test-00000-of-00001.parquet, a/test/0.parquet."""
    stem = _SHARD.sub("", file.stem)
    if _means_split(stem) or (stem not in (file.stem, "data")):
        return stem, file.parent
    if file.parent != root and (file.parent.name in named or _means_split(file.parent.name)):
        return file.parent.name, file.parent.parent
    return "", file.parent


def _means_split(name: str) -> bool:
    word = _FIRST_WORD.match(name)
    return word is not None and word[0].lower() in SPLIT_NAMES


def _read_file(file: Path, prompt_column: str, domain_column: str) -> Iterator[Row]:
    with ExitStack() as stack:
        schema, batches = _open_file(file, stack, (prompt_column, ID_COLUMN, domain_column))
        if prompt_column not in schema.names:
            raise InputError(
                f"{file} has no column {prompt_column!r}. It has: {', '.join(schema.names)}. "
                "Set workload.prompt_column to one of them."
            )
        labels = _find_labels(schema, domain_column)
        for batch in batches:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            absent = [None] * batch.num_rows
            ids, domains = (
                columns[name].to_pylist() if name in columns else absent for name in (ID_COLUMN, domain_column)
            )
            if labels:
                domains = [_to_label(number, labels) for number in domains]
            yield from map(Row, ids, domains, columns[prompt_column].to_pylist())


def _open_file(file: Path, stack: ExitStack, wanted: Sequence[str]) -> tuple[Any, Iterator[Any]]:
    """Schema of a file, and its record batches with those of the wanted columns that it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        parquet = stack.enter_context(pq.ParquetFile(file))
        names = parquet.schema_arrow.names
        return parquet.schema_arrow, parquet.iter_batches(columns=[name for name in names if name in wanted])
    mapped = stack.enter_context(pa.memory_map(str(file)))
    # save_to_disk writes streams; the file format begins with its name.
    is_stream = mapped.read(6) != b"ARROW1"
    mapped.seek(0)
    if not is_stream:
        arrow = stack.enter_context(pa.ipc.open_file(mapped))
        batches = (arrow.get_batch(number) for number in range(arrow.num_record_batches))
    else:
        arrow = stack.enter_context(pa.ipc.open_stream(mapped))
        batches = iter(arrow)
    kept = [name for name in arrow.schema.names if name in wanted]
    return arrow.schema, (batch.select(kept) for batch in batches)


def _find_labels(schema: Any, column: str) -> list[str]:
    """Names of the classes whose numbers the column holds, as Hugging Face notes them beside the schema."""
    noted = (schema.metadata or {}).get(b"huggingface")
    if noted is None:
        return []
    feature = msgspec.json.decode(noted).get("info", {}).get("features", {}).get(column)
    return list(feature.get("names", ())) if isinstance(feature, dict) else []


def _to_label(number: int | None, labels: Sequence[str]) -> str | None:
    # -1 is how a missing label is written.
    return None if number is None or not 0 <= number < len(labels) else labels[number]


def _read_json(path: Path, kind: type[_Json]) -> _Json:
    """A JSON file that Hugging Face wrote."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Save the dataset again, or remove this file.") from error
