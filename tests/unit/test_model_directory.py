"""Synthetic model directories: shape, tokenizer, weights, and when they are written."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from erhpc.config import ArchitectureConfig
from erhpc.errors import ConfigError, InputError
from erhpc.experts.model_directory import (
    SPECIAL_TOKENS,
    build_model_config,
    build_tensor_shapes,
    build_tokenizer,
    write_model_directory,
)

TEXT = "What is the derivative of x?\nWhy do cooks salt the water for pasta?\n" * 20
TINY = ArchitectureConfig(2, 16, 32, 4, 2, 400)
LLAMA3_70B = ArchitectureConfig(80, 8192, 28672, 64, 8, 128256)


def write(folder, architecture=TINY, **changes) -> None:
    arguments = {
        "dtype": "bfloat16",
        "quantization": None,
        "max_model_len": 256,
        "weights": "dummy",
        "seed": 0,
        "training_text": TEXT,
    }
    write_model_directory(folder, architecture, **arguments | changes)


def read_json(path):
    return msgspec.json.decode(path.read_bytes())


def load_tokenizer(vocab_size: int) -> Tokenizer:
    return Tokenizer.from_str(msgspec.json.encode(build_tokenizer(TEXT, vocab_size)).decode())


def test_the_config_has_the_shape_in_hugging_face_words():
    config = build_model_config(LLAMA3_70B, "bfloat16", None, 8192)

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["head_dim"]) == (80, 8192, 128)
    assert (config["num_key_value_heads"], config["vocab_size"]) == (8, 128256)
    assert config["max_position_embeddings"] == 8192
    assert "quantization_config" not in config


@pytest.mark.parametrize("quantization", ["awq", "gptq", "fp8"])
def test_the_config_names_its_quantization(quantization):
    config = build_model_config(LLAMA3_70B, "float16", quantization, 8192)

    assert config["quantization_config"]["quant_method"] == quantization


def test_ascii_text_survives_encoding_and_decoding():
    tokenizer = load_tokenizer(1000)
    text = "What is the derivative?\n  if x == 1: y = {'a': [2]}\t~7"

    assert tokenizer.decode(tokenizer.encode(text).ids) == text.replace("\t", "ĉ")


def test_any_text_can_be_encoded():
    assert load_tokenizer(400).encode("naïve 数学 🙂").ids


@pytest.mark.parametrize("vocab_size", [300, 4096, 20_000])
def test_every_ordinary_id_decodes_to_text_of_its_own(vocab_size):
    tokenizer = load_tokenizer(vocab_size)

    assert tokenizer.get_vocab_size() == vocab_size
    texts = [tokenizer.decode([token_id]) for token_id in range(len(SPECIAL_TOKENS), vocab_size)]
    assert all(text and "\ufffd" not in text for text in texts)


def test_the_tokenizer_learns_words_of_the_text():
    assert len(load_tokenizer(1000).encode(" derivative", add_special_tokens=False).ids) == 1


def test_a_prompt_starts_with_the_begin_token():
    assert load_tokenizer(400).encode("x").tokens[0] == SPECIAL_TOKENS[0]


def test_llama_3_8b_has_its_published_number_of_parameters():
    shape = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)

    assert sum(int(np.prod(dims)) for dims in build_tensor_shapes(shape).values()) == 8_030_261_248


def test_tied_embeddings_have_no_output_layer():
    shape = ArchitectureConfig(1, 16, 32, 4, 2, 400, tie_word_embeddings=True)

    assert "lm_head.weight" not in build_tensor_shapes(shape)


def test_dummy_weights_write_no_file(tmp_path):
    write(tmp_path / "model")

    assert not list(tmp_path.glob("model/*.safetensors"))


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "float16"), ("float16", "float16"), ("float32", "float32")])
def test_random_weights_have_the_shapes_of_the_model(tmp_path, dtype, stored):
    write(tmp_path / "model", weights="random", dtype=dtype)

    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == build_tensor_shapes(TINY)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {stored}
    assert 0.015 < tensors["lm_head.weight"].std() < 0.025


def test_the_same_seed_draws_the_same_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, weights="random", seed=seed)
    first, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")

    assert first == same
    assert first != other


def test_large_random_weights_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"141\.1 GB.*synthetic_weights=dummy"):
        write(tmp_path / "model", LLAMA3_70B, weights="random")

    assert not list(tmp_path.iterdir())


def test_quantised_random_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be quantised"):
        write(tmp_path / "model", weights="random", quantization="awq")


def test_unknown_weights_are_refused_with_the_choices(tmp_path):
    with pytest.raises(ConfigError, match="Allowed: dummy, random"):
        write(tmp_path / "model", weights="real")


def test_a_directory_of_the_same_arguments_is_left_alone(tmp_path):
    write(tmp_path / "model")
    before = (tmp_path / "model").stat().st_ino
    write(tmp_path / "model")

    assert (tmp_path / "model").stat().st_ino == before


def test_a_directory_of_other_arguments_is_replaced(tmp_path):
    write(tmp_path / "model")
    write(tmp_path / "model", max_model_len=512)

    assert read_json(tmp_path / "model" / "config.json")["max_position_embeddings"] == 512
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_of_somebody_else_is_never_touched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    with pytest.raises(InputError, match=r"is no synthetic model of erhpc.*expert\.weights"):
        write(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_the_chat_template_and_its_tokens_are_declared(tmp_path):
    write(tmp_path / "model")
    config = read_json(tmp_path / "model" / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))

    assert "add_generation_prompt" in config["chat_template"]
    assert [tokenizer.token_to_id(config[name]) for name in ("bos_token", "eos_token")] == [0, 1]
