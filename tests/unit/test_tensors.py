"""Tensors read from files that the format's own library wrote, or that were written here byte by byte."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from erhpc.errors import InputError
from erhpc.routing.tensors import find_tensors


def write_raw(path, header, data=b""):
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8", "int32", "int64"])
def test_a_tensor_is_read_as_it_was_saved(tmp_path, dtype):
    saved = {"first": np.arange(5, dtype=np.int32), "wanted": np.arange(-6, 6).reshape(3, 4).astype(dtype)}
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "np"})

    found = find_tensors([tmp_path / "model.safetensors"])

    assert set(found) == {"first", "wanted"}
    assert np.array_equal(found["wanted"].read(), saved["wanted"])
    assert found["wanted"].read().dtype == (np.int64 if dtype.startswith("int") else np.float32)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], dtype="<f4")
    halves = (values.view("<u4") >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [3], "data_offsets": [2, 8]}

    path = write_raw(tmp_path / "model.safetensors", {"wanted": entry}, b"xx" + halves)

    assert np.array_equal(find_tensors([path])["wanted"].read(), values)


def test_tensors_are_found_in_all_files(tmp_path):
    for name in ("one", "two"):
        save_file({name: np.ones(2, dtype=np.float32)}, tmp_path / f"{name}.safetensors")

    assert set(find_tensors(sorted(tmp_path.iterdir()))) == {"one", "two"}


def test_tensors_of_types_that_cannot_be_read_are_left_out(tmp_path):
    entry = {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}

    assert find_tensors([write_raw(tmp_path / "model.safetensors", {"scaled": entry}, b"x")]) == {}


def test_a_file_that_ends_too_early_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"wanted": np.ones(8, dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(InputError, match=r"model\.safetensors ends before"):
        find_tensors([path])["wanted"].read()


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", struct.pack("<Q", 9) + b"{}"]
)
def test_a_file_that_is_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(InputError, match=r"model\.safetensors is no safetensors file"):
        find_tensors([tmp_path / "model.safetensors"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        find_tensors([tmp_path / "absent.safetensors"])
