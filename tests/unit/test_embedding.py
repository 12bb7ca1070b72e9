"""What is taken from the folders that embeddings come in, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from erhpc.config import ArchitectureConfig
from erhpc.errors import InputError
from erhpc.experts.model_directory import write_model_directory
from erhpc.routing.embedding import check_embedding, read_embedding
from tests.fakes.embedding import make_tokenizer, tokenizer_json, write_embedding

WORDS = ("apple", "pear")
"""Numbers 1 and 2; 0 is what the tokenizer does not know."""
TABLE = np.array([[9, 9], [1, 0], [0, 1]], dtype=np.float32)


def write_folder(folder, tensors, tokenizer=None):
    (folder / "tokenizer.json").write_bytes(tokenizer or tokenizer_json(WORDS))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "name",
    ["embeddings", "embedding.weight", "model.embed_tokens.weight", "bert.embeddings.word_embeddings.weight"],
)
def test_every_known_layout_has_a_vector_for_each_subword(tmp_path, name):
    other = {"model.norm.weight": np.ones(2, dtype=np.float32), "lm_head.weight": -TABLE}
    embedding = read_embedding(write_folder(tmp_path, {name: TABLE, **other}))

    assert np.array_equal(embedding.vectors, TABLE)
    assert embedding.subwords.find("Pear, apple") == [2, 1]


def test_subwords_that_share_a_row_and_weigh_differently_are_told_apart_as_in_model2vec(tmp_path):
    tensors = {
        "embeddings": np.array([[1, 2], [3, 4]], dtype=np.float16),
        "mapping": np.array([0, 1, 1]),
        "weights": np.array([1.0, 1.0, 0.5]),
    }

    assert read_embedding(write_folder(tmp_path, tensors)).vectors.tolist() == [[1, 2], [3, 4], [1.5, 2]]


def test_of_a_transformer_the_input_embeddings_are_taken(tmp_path):
    shape = ArchitectureConfig(
        hidden_size=16, num_layers=1, intermediate_size=32, num_attention_heads=2, num_kv_heads=2, vocab_size=300
    )
    options = {"dtype": "bfloat16", "quantization": None, "max_model_len": 64, "weights": "random", "seed": 0}
    write_model_directory(tmp_path / "model", shape, training_text="apple pear " * 9, **options)

    embedding = read_embedding(tmp_path / "model")

    assert embedding.vectors.shape == (300, 16)
    assert embedding.subwords.find("apple pear") == embedding.subwords.find("apple") + embedding.subwords.find("pear")


def test_rows_that_no_subword_has_are_left_out_and_added_subwords_without_a_row_are_nothing(tmp_path):
    padded = np.concatenate([TABLE, np.full((4, 2), 7, dtype=np.float32)])
    (tmp_path / "padded").mkdir()
    assert np.array_equal(read_embedding(write_folder(tmp_path / "padded", {"embeddings": padded})).vectors, TABLE)

    tokenizer = make_tokenizer(WORDS)
    tokenizer.add_tokens(["quince"])
    (tmp_path / "added").mkdir()
    folder = write_folder(tmp_path / "added", {"embeddings": TABLE}, tokenizer.to_str().encode())
    assert read_embedding(folder).vectors.tolist() == [*TABLE.tolist(), [0, 0]]


def test_the_hash_tells_tables_and_tokenizers_apart(tmp_path):
    vectors = {"apple": (1.0, 0.0), "pear": (0.0, 1.0)}
    changes = ({}, vectors | {"pear": (0.0, 2.0)}, {"apple": (1.0, 0.0), "plum": (0.0, 1.0)})
    hashes = [
        read_embedding(write_embedding(tmp_path / str(number), change or vectors)).sha256
        for number, change in enumerate((*changes, vectors))
    ]

    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mlp.weight": TABLE}, r"no tensor is called embeddings, .*, but mlp\.weight\."),
        ({"embeddings": TABLE[0]}, r"its table is \(2,\)"),
        ({"embeddings": TABLE[:2]}, "the tokenizer knows 3 subwords, the table has 2 vectors"),
        ({"embeddings": TABLE * np.float32(np.nan)}, "not finite"),
        ({"embeddings": TABLE, "mapping": np.array([0, 1, 3])}, "mapping names rows"),
        ({"embeddings": TABLE, "weights": np.ones(2)}, r"\(2,\) weights for 3 subwords"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, tensors, message):
    with pytest.raises(InputError, match=message):
        read_embedding(write_folder(tmp_path, tensors))


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_a_folder_without_one_of_the_files_is_refused_before_anything_is_read(tmp_path, missing):
    write_folder(tmp_path, {"embeddings": TABLE})
    assert check_embedding(tmp_path) is None
    (tmp_path / missing).unlink()

    with pytest.raises(InputError, match=rf"has no .*{missing.partition('.')[2]}"):
        check_embedding(tmp_path)
