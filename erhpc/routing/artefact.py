"""A fitted classifier on disk: a versioned folder of JSON, text and plain arrays, checked by hash when read.

This module knows neither how a classifier is fitted nor how it is used. Nothing in an artefact can execute: no pickles.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from erhpc import __version__
from erhpc.config import FitConfig
from erhpc.errors import InputError
from erhpc.routing.classifier import Classifier, FloatArray
from erhpc.routing.features import SUBWORDS, Reading
from erhpc.routing.subwords import Subwords

SCHEMA = 2
"""Version of the folder's format; raised with every change that an older reader would misread.

1: the first one; texts were read as c-BTM does. 2: `reading` says how they are read. A reading that a reader does not
know is refused, never misread.
"""
READABLE_SCHEMAS = (1, 2)
METADATA_FILE = "classifier.json"
VOCABULARY_FILE = "vocabulary.txt"
"""Where words are counted: one a line, in the order of the rows."""
TOKENIZER_FILE = "tokenizer.json"
"""Where subwords are counted: what splits a text into them, as the embedding had it."""
ROWS_FILE = "rows.npy"
CENTRES_FILE = "centres.npy"
FILES = (METADATA_FILE, VOCABULARY_FILE, TOKENIZER_FILE, ROWS_FILE, CENTRES_FILE)

_REMEDY = "Write it again with `python -m erhpc.fit`."


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """What the fit found out about one cluster, by the rule that serves: the nearest centre."""

    share: float
    """Share of the corpus whose prompts are nearest to this cluster."""
    top_terms: tuple[str, ...]
    """Words that set the cluster apart, the most telling first."""
    domain: str | None = None
    """The commonest domain of its prompts; None: the corpus has none, or no prompt is nearest to it."""
    purity: float | None = None
    """Share of its prompts that are of that domain."""


@dataclass(frozen=True)
class Fitted:
    """A classifier and what its fit found out."""

    classifier: Classifier
    settings: FitConfig
    corpus_sha256: str
    clusters: tuple[Cluster, ...]
    zero_share: float
    """Share of the corpus with no known word; with the shares of the clusters it makes 1."""
    purity: float | None
    """Share of the prompts in a cluster that are of their cluster's domain; None: the corpus has no domains."""
    embedding_sha256: str | None = None
    """Hash of the embedding that the rows were made from; None: there was none."""


class _Versioned(msgspec.Struct, frozen=True):
    schema: int


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The content of classifier.json."""

    schema: int
    erhpc_version: str
    settings: dict[str, Any]
    """FitConfig of the fit, seed included."""
    corpus_sha256: str
    reading: Reading = Reading()  # what schema 1, which does not name it, means
    num_clusters: int
    clusters: tuple[Cluster, ...]
    zero_share: float
    purity: float | None
    embedding_sha256: str | None = None
    """Of the embedding that the rows were made from; serving does not need it."""
    sha256: dict[str, str]
    """Hash of each other file of the folder."""


def write_artefact(folder: Path, fitted: Fitted) -> None:
    """Write `fitted` as `folder`, all of it or nothing; an artefact that is already there is replaced.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    folder = folder.resolve()
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        _check_replaceable(folder)
        fresh.mkdir(parents=True)
        for name, content in _encode(fitted).items():
            (fresh / name).write_bytes(content)
        _put_in_place(fresh, folder)
    except OSError as error:
        raise InputError(f"output={folder} cannot be written: {error}. Choose another output=DIRECTORY.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_artefact(folder: Path) -> Classifier:
    """Read the classifier of an artefact.

    Raises:
        InputError: the folder is missing, of another schema, or not what was once written.
    """
    metadata = read_metadata(folder)
    vocabulary = _read_vocabulary(folder, metadata)
    rows, centres = (_read_array(folder / name, metadata) for name in (ROWS_FILE, CENTRES_FILE))
    classifier = Classifier(vocabulary, rows, centres, metadata.reading)
    if not classifier.num_clusters == metadata.num_clusters == len(metadata.clusters):
        raise InputError(
            f"artefact {folder}: {CENTRES_FILE} has {classifier.num_clusters} clusters, {METADATA_FILE} names "
            f"{metadata.num_clusters} and describes {len(metadata.clusters)}. {_REMEDY}"
        )
    return classifier


def read_metadata(folder: Path) -> Metadata:
    """Read what an artefact says about itself, without its arrays.

    Raises:
        InputError: the folder is missing, of another schema, or malformed.
    """
    content = _read_file(folder / METADATA_FILE)
    try:
        schema = msgspec.json.decode(content, type=_Versioned).schema
        if schema not in READABLE_SCHEMAS:
            readable = ", ".join(map(str, READABLE_SCHEMAS))
            raise InputError(f"artefact {folder} has schema {schema}, this erhpc reads {readable}. {_REMEDY}")
        return msgspec.json.decode(content, type=Metadata)
    except msgspec.DecodeError as error:
        raise InputError(f"artefact {folder}: {METADATA_FILE} is malformed: {error}. {_REMEDY}") from error


def _encode(fitted: Fitted) -> dict[str, bytes]:
    classifier = fitted.classifier
    contents = {
        **_encode_vocabulary(classifier.vocabulary),
        ROWS_FILE: _encode_array(classifier.rows),
        CENTRES_FILE: _encode_array(classifier.centres),
    }
    metadata = Metadata(
        schema=SCHEMA,
        erhpc_version=__version__,
        settings=asdict(fitted.settings),
        corpus_sha256=fitted.corpus_sha256,
        reading=classifier.reading,
        num_clusters=classifier.num_clusters,
        clusters=fitted.clusters,
        zero_share=fitted.zero_share,
        purity=fitted.purity,
        embedding_sha256=fitted.embedding_sha256,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    return {METADATA_FILE: msgspec.json.format(msgspec.json.encode(metadata), indent=1), **contents}


def _encode_vocabulary(vocabulary: tuple[str, ...] | Subwords) -> dict[str, bytes]:
    if isinstance(vocabulary, Subwords):
        return {TOKENIZER_FILE: vocabulary.content}
    return {VOCABULARY_FILE: "".join(f"{word}\n" for word in vocabulary).encode()}


def _read_vocabulary(folder: Path, metadata: Metadata) -> list[str] | Subwords:
    if metadata.reading.tokens == SUBWORDS:
        return Subwords(_read_checked(folder / TOKENIZER_FILE, metadata))
    return _read_checked(folder / VOCABULARY_FILE, metadata).decode().splitlines()


def _encode_array(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in FILES)
    else:
        strangers = [folder.name] if folder.exists() else []
    if strangers:
        raise InputError(
            f"output={folder} exists and holds other things than an artefact ({', '.join(strangers[:3])}). "
            "Choose an output=DIRECTORY that is new, empty or an artefact."
        )


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`; a folder that is in the way is moved aside first and back if that fails."""
    if not folder.exists():
        fresh.rename(folder)
        return
    aside = fresh.with_name(f"{fresh.name}.old")
    folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"artefact {path.parent}: {path.name} cannot be read ({error.strerror}). Give the directory that "
            "`python -m erhpc.fit output=DIRECTORY` wrote, or leave router.artefact empty to fit one."
        ) from error


def _read_checked(path: Path, metadata: Metadata) -> bytes:
    content = _read_file(path)
    if hashlib.sha256(content).hexdigest() != metadata.sha256.get(path.name):
        raise InputError(f"artefact {path.parent}: {path.name} is not the file that was written (sha256). {_REMEDY}")
    return content


def _read_array(path: Path, metadata: Metadata) -> FloatArray:
    try:
        array = np.load(io.BytesIO(_read_checked(path, metadata)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"artefact {path.parent}: {path.name} holds no array: {error}. {_REMEDY}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not np.isfinite(array).all():
        raise InputError(f"artefact {path.parent}: {path.name} must hold finite float32 numbers. {_REMEDY}")
    return array
