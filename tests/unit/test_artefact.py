"""What an artefact keeps, and what is refused instead of served."""

from __future__ import annotations

import dataclasses
import hashlib

import msgspec
import numpy as np
import pytest

from erhpc.config import FitConfig
from erhpc.errors import InputError
from erhpc.routing.artefact import SCHEMA, Cluster, Fitted, read_artefact, read_metadata, write_artefact
from erhpc.routing.classifier import Classifier
from erhpc.routing.features import Reading
from erhpc.routing.subwords import Subwords
from tests.fakes.embedding import tokenizer_json

WORDS = ("apple", "engine", "größe")


def fitted(words=WORDS, seed=0, reading=None):
    rows = np.random.default_rng(seed).normal(size=(len(words), 2)).astype(np.float32)
    clusters = (Cluster(share=0.75, top_terms=("apple",), domain="fruit", purity=0.9), Cluster(share=0.2, top_terms=()))
    return Fitted(
        classifier=Classifier(words, rows, np.eye(2, dtype=np.float32), reading),
        settings=FitConfig(clusters=2, seed=seed),
        corpus_sha256="c0ffee",
        clusters=clusters,
        zero_share=0.05,
        purity=0.9,
    )


@pytest.fixture
def folder(tmp_path):
    write_artefact(tmp_path / "router", fitted())
    return tmp_path / "router"


def change_metadata(folder, **changes):
    path = folder / "classifier.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | changes))


def replace_array(folder, name, content):
    """Replace a file together with its hash: what only a check of the content can find."""
    (folder / name).write_bytes(content)
    sha256 = msgspec.json.decode((folder / "classifier.json").read_bytes())["sha256"]
    change_metadata(folder, sha256=sha256 | {name: hashlib.sha256(content).hexdigest()})


def test_a_classifier_comes_back_as_it_was(folder):
    before, after = fitted().classifier, read_artefact(folder)
    assert after.vocabulary == before.vocabulary
    assert np.array_equal(after.rows, before.rows)
    assert np.array_equal(after.centres, before.centres)


def test_an_artefact_says_where_it_comes_from_and_what_its_clusters_are(folder):
    metadata = read_metadata(folder)
    assert metadata.settings["seed"] == 0
    assert metadata.settings["clusters"] == metadata.num_clusters == 2
    assert metadata.corpus_sha256 == "c0ffee"
    assert metadata.clusters == fitted().clusters
    assert (metadata.zero_share, metadata.purity) == (0.05, 0.9)


def test_the_same_classifier_gives_the_same_bytes(folder, tmp_path):
    write_artefact(tmp_path / "again", fitted())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


def test_an_artefact_replaces_an_older_one_and_leaves_nothing_beside_it(folder):
    write_artefact(folder, fitted(words=("only",), seed=1))
    assert read_artefact(folder).vocabulary == ("only",)
    assert [path.name for path in folder.parent.iterdir()] == ["router"]


def test_folders_on_the_way_are_made(tmp_path):
    write_artefact(tmp_path / "new" / "deep" / "router", fitted())
    assert read_artefact(tmp_path / "new" / "deep" / "router").num_clusters == 2


def test_a_folder_with_other_things_is_left_alone(folder):
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        write_artefact(folder, fitted(seed=1))
    assert (folder / "thesis.tex").read_text() == "precious"
    assert np.array_equal(read_artefact(folder).rows, fitted().classifier.rows)


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(InputError, match="notes"):
        write_artefact(tmp_path / "notes", fitted())


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/router cannot be written"):
        write_artefact(tmp_path / "file" / "router", fitted())


def test_a_missing_folder_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*python -m erhpc\.fit"):
        read_artefact(tmp_path / "nowhere")


def test_a_classifier_reads_texts_as_it_did_when_it_was_written(tmp_path):
    reading = Reading(tokens="all", counts="log")
    write_artefact(tmp_path / "router", fitted(words=("?", "#NUMBER", "a"), reading=reading))
    assert read_artefact(tmp_path / "router").reading == reading


@pytest.fixture
def embedded(tmp_path):
    """An artefact of an embedding in the place of one of words."""
    rows = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    reading = Reading(tokens="subwords", counts="log")
    classifier = Classifier(Subwords(tokenizer_json(("apple", "engine"))), rows, np.eye(2, dtype=np.float32), reading)
    write_artefact(tmp_path / "router", fitted())
    write_artefact(tmp_path / "router", dataclasses.replace(fitted(), classifier=classifier, embedding_sha256="beef"))
    return tmp_path / "router"


def test_an_embedding_comes_back_with_its_tokenizer_and_without_another_vocabulary(embedded):
    classifier = read_artefact(embedded)
    assert classifier.reading == Reading(tokens="subwords", counts="log")
    assert classifier.vocabulary.find("Apple engine?") == [1, 2]
    assert read_metadata(embedded).embedding_sha256 == "beef"
    assert sorted(path.name for path in embedded.iterdir()) == [
        *("centres.npy", "classifier.json", "rows.npy", "tokenizer.json")
    ]


def test_a_tokenizer_that_was_changed_or_is_missing_is_named(embedded):
    (embedded / "tokenizer.json").write_bytes(tokenizer_json(("apple", "pear")))
    with pytest.raises(InputError, match=r"tokenizer\.json is not the file that was written"):
        read_artefact(embedded)
    (embedded / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        read_artefact(embedded)


def test_a_tokenizer_of_another_size_is_refused_even_with_the_right_hash(embedded):
    replace_array(embedded, "tokenizer.json", tokenizer_json(("apple", "pear", "plum")))
    with pytest.raises(InputError, match="4 different words of 4 and 3 rows"):
        read_artefact(embedded)


def test_an_artefact_of_schema_1_is_read_as_c_btm(folder):
    path = folder / "classifier.json"
    written = msgspec.json.decode(path.read_bytes())
    del written["reading"]
    path.write_bytes(msgspec.json.encode(written | {"schema": 1}))
    classifier = read_artefact(folder)
    assert classifier.reading == Reading(tokens="content", counts="plain")
    assert classifier.classify("apple 12").distances2 == pytest.approx(fitted().classifier.classify("apple").distances2)


def test_a_way_of_reading_that_is_not_known_is_refused(folder):
    change_metadata(folder, reading={"tokens": "syllables", "counts": "plain"})
    with pytest.raises(InputError, match="reads tokens as 'syllables', this erhpc knows content, all, subwords"):
        read_artefact(folder)


def test_another_schema_is_named(folder):
    change_metadata(folder, schema=SCHEMA + 1, clusters="in a form of the future")
    with pytest.raises(InputError, match=f"has schema {SCHEMA + 1}, this erhpc reads 1, {SCHEMA}"):
        read_artefact(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": "one"}', b"\xff"])
def test_malformed_metadata_is_an_error(folder, content):
    (folder / "classifier.json").write_bytes(content)
    with pytest.raises(InputError, match="malformed"):
        read_artefact(folder)


@pytest.mark.parametrize("name", ["vocabulary.txt", "rows.npy", "centres.npy"])
def test_a_file_that_was_changed_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is not the file that was written"):
        read_artefact(folder)


@pytest.mark.parametrize("name", ["vocabulary.txt", "rows.npy", "centres.npy"])
def test_a_file_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_artefact(folder)


def array_bytes(tmp_path, array):
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    return (tmp_path / "array.npy").read_bytes()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": "pickle"}], dtype=object), "holds no array"),
        (np.eye(2, dtype=np.float64), "float32"),
        (np.full((2, 2), np.nan, dtype=np.float32), "finite"),
        (np.eye(3, dtype=np.float32), "dimensions"),
        (np.ones((5, 2), dtype=np.float32), "5 clusters"),
    ],
)
def test_centres_that_cannot_be_used_are_refused_even_with_the_right_hash(folder, tmp_path, array, message):
    replace_array(folder, "centres.npy", array_bytes(tmp_path, array))
    with pytest.raises(InputError, match=message):
        read_artefact(folder)


def test_a_vocabulary_that_is_too_short_is_refused_even_with_the_right_hash(folder):
    replace_array(folder, "vocabulary.txt", b"apple\nengine\n")
    with pytest.raises(InputError, match="2 different words"):
        read_artefact(folder)
