"""Writes synthetic model directories: the real shape of a Llama model without its weights, so nothing is downloaded.

A directory holds what vLLM reads: config.json, a byte-level BPE tokenizer with a chat template, generation_config.json
and, if asked for, randomly initialised weights. This module knows nothing of vLLM's command line or of GPUs, and is
the only home of `tokenizers` and `safetensors`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from erhpc.config import SYNTHETIC_WEIGHTS, ArchitectureConfig
from erhpc.errors import ConfigError, InputError, require_choice

KEY_FILE = "erhpc-key.json"
"""Says which arguments a directory was written from; it marks the directory as ours and complete."""
FORMAT_VERSION = 1
MAX_RANDOM_BYTES = 2_000_000_000
TRAINED_TOKENS = 4096
"""Most tokens that are learnt from text; the rest of a vocabulary is filler, so any size takes about a second."""
BOS, EOS, TURN = "<|begin|>", "<|end|>", "<|turn|>"
SPECIAL_TOKENS = (BOS, EOS, TURN)
"""Their ids are 0, 1 and 2."""
INITIALIZER_RANGE = 0.02
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    + TURN
    + "{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}" + TURN + "assistant\n{% endif %}"
)
QUANTIZATION_CONFIGS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
}
"""`quantization_config` as published checkpoints of each kind carry it and vLLM reads it."""


def write_model_directory(
    folder: Path,
    architecture: ArchitectureConfig,
    *,
    dtype: str,
    quantization: str | None,
    max_model_len: int,
    weights: str,
    seed: int,
    training_text: str,
) -> None:
    """Write a synthetic model to `folder`, atomically; one that was written from the same arguments is left alone.

    Args:
        dtype, quantization: as in ExpertConfig; they go to config.json.
        max_model_len: tokens; becomes max_position_embeddings.
        weights: "dummy" writes none (serve with --load-format dummy), "random" writes one safetensors file.
        seed: of the random weights.
        training_text: what the tokenizer learns its words from.

    Raises:
        ConfigError: `weights` is unknown, or random weights are too large or would have to be quantised.
        InputError: `folder` exists and was not written by this function.
    """
    _check_weights(architecture, weights=weights, dtype=dtype, quantization=quantization)
    arguments = {
        "format_version": FORMAT_VERSION,
        "architecture": asdict(architecture),
        "dtype": dtype,
        "quantization": quantization,
        "max_model_len": max_model_len,
        "weights": weights,
        "seed": seed if weights == "random" else None,
        "training_text_sha256": hashlib.sha256(training_text.encode()).hexdigest(),
    }
    if read_key(folder) == arguments:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the rename stays on one file system.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        _write_json(temporary / "config.json", build_model_config(architecture, dtype, quantization, max_model_len))
        _write_json(temporary / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
        _write_json(temporary / "tokenizer.json", build_tokenizer(training_text, architecture.vocab_size))
        _write_json(temporary / "tokenizer_config.json", build_tokenizer_config(max_model_len))
        if weights == "random":
            _write_random_weights(temporary / "model.safetensors", architecture, dtype=dtype, seed=seed)
        _write_json(temporary / KEY_FILE, arguments)
        _move_into_place(temporary, folder, arguments)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_key(folder: Path) -> dict[str, Any] | None:
    """Return the arguments a synthetic directory was written from; None where there is nothing, or an empty folder.

    Raises:
        InputError: the folder holds something else.
    """
    try:
        return dict(msgspec.json.decode((folder / KEY_FILE).read_bytes()))
    except FileNotFoundError:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        raise InputError(
            f"{folder} exists and is no synthetic model of erhpc (it has no {KEY_FILE}). "
            "Name another folder, or set expert.weights to use the model in it."
        ) from None


def build_model_config(
    architecture: ArchitectureConfig, dtype: str, quantization: str | None, max_model_len: int
) -> dict[str, Any]:
    """Return config.json of a Llama model of this shape, in the words of Hugging Face's LlamaConfig."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "rope_theta": architecture.rope_theta,
        "max_position_embeddings": max_model_len,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if quantization is not None:
        config["quantization_config"] = QUANTIZATION_CONFIGS[quantization]
    return config


def build_tokenizer(training_text: str, vocab_size: int) -> dict[str, Any]:
    """Return tokenizer.json: byte-level BPE learnt from a text, filled up to `vocab_size` entries.

    Every id but those of SPECIAL_TOKENS decodes to text of its own. A usual byte-level tokenizer decodes half of its
    single bytes to nothing until the rest of a character follows; a model with random weights emits such ids at
    random, and its answer would arrive in lumps. So bytes beyond ASCII decode to stand-in letters here: ASCII text
    survives encoding and decoding, other text comes back readable only to the eye of a byte table.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, TRAINED_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text.splitlines(), trainer)
    content: dict[str, Any] = msgspec.json.decode(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary.update(_fillers(len(vocabulary), vocab_size))
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "Ġ"}, "content": " "},
            {"type": "Replace", "pattern": {"String": "Ċ"}, "content": "\n"},
            {"type": "Fuse"},
        ],
    }
    return content


def _fillers(first_id: int, vocab_size: int) -> dict[str, int]:
    # No merge leads to a filler, so no text encodes to one; the '~' keeps them apart from anything learnt.
    return {f"Ġ~{token_id}": token_id for token_id in range(first_id, vocab_size)}


def build_tokenizer_config(max_model_len: int) -> dict[str, Any]:
    """Return tokenizer_config.json: which tokens are special, and the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "additional_special_tokens": [TURN],
        "model_max_length": max_model_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def build_tensor_shapes(architecture: ArchitectureConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of an unquantised Llama checkpoint, by its name there."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    head_dim = architecture.head_dim or hidden // architecture.num_attention_heads
    query, key_value = architecture.num_attention_heads * head_dim, architecture.num_kv_heads * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (architecture.vocab_size, hidden)}
    for index in range(architecture.num_layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not architecture.tie_word_embeddings:
        shapes["lm_head.weight"] = (architecture.vocab_size, hidden)
    return shapes


def _check_weights(architecture: ArchitectureConfig, *, weights: str, dtype: str, quantization: str | None) -> None:
    require_choice("weights", weights, SYNTHETIC_WEIGHTS)
    if weights == "dummy":
        return
    if quantization is not None:
        raise ConfigError(
            f"engine.synthetic_weights=random cannot be quantised, expert.quantization is {quantization}. "
            "Set engine.synthetic_weights=dummy."
        )
    num_parameters = sum(int(np.prod(shape)) for shape in build_tensor_shapes(architecture).values())
    num_bytes = num_parameters * np.dtype(_stored_dtype(dtype)).itemsize
    if num_bytes > MAX_RANDOM_BYTES:
        raise ConfigError(
            f"engine.synthetic_weights=random would write {num_bytes / 1e9:.1f} GB of weights. Allowed: up to "
            f"{MAX_RANDOM_BYTES / 1e9:.0f} GB. Set engine.synthetic_weights=dummy; the speed measured is the same."
        )


def _stored_dtype(dtype: str) -> str:
    # NumPy has no bfloat16; vLLM casts to the dtype of config.json as it loads.
    return "float32" if dtype == "float32" else "float16"


def _write_random_weights(path: Path, architecture: ArchitectureConfig, *, dtype: str, seed: int) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors = {
        name: _draw_tensor(rng, shape).astype(_stored_dtype(dtype))
        for name, shape in build_tensor_shapes(architecture).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors makes the file private; a colleague who reads the config may read the weights.
    path.chmod(0o644)


def _draw_tensor(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    return INITIALIZER_RANGE * rng.standard_normal(shape, dtype=np.float32)


def _move_into_place(temporary: Path, folder: Path, arguments: dict[str, Any]) -> None:
    replaced = temporary.with_name(temporary.name + "-replaced")
    if folder.exists():
        folder.rename(replaced)
    try:
        temporary.rename(folder)
    except OSError:
        # Somebody else was faster. That is fine when they wrote the same model.
        if read_key(folder) != arguments:
            raise
    finally:
        shutil.rmtree(replaced, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
