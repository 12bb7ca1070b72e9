from __future__ import annotations

import subprocess

import msgspec

from erhpc.results.provenance import collect_provenance, describe_checkout, find_cpu_model, parse_gpus, write_manifest
from erhpc.results.record import SCHEMA_VERSION


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def make_checkout(folder):
    folder.mkdir()
    git(folder, "init")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_manifest_is_json_that_says_where_a_result_comes_from(tmp_path):
    write_manifest(tmp_path / "manifest.json", collect_provenance() | {"seed": 7})

    manifest = msgspec.json.decode((tmp_path / "manifest.json").read_bytes())

    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["seed"] == 7
    assert manifest["packages"]["numpy"]
    assert "pytest" not in manifest["packages"]
    assert manifest["host"]["cpu_affinity"]
    assert manifest["host"]["memory_bytes"] > 0
    assert manifest["collected_utc"].endswith("+00:00")


def test_a_changed_file_makes_the_checkout_dirty(tmp_path):
    checkout = make_checkout(tmp_path / "checkout")

    clean = describe_checkout(checkout)
    (checkout / "code.py").write_text("2\n")
    changed = describe_checkout(checkout)

    assert len(clean["commit"]) == 40
    assert changed == clean | {"dirty": True}
    assert clean["dirty"] is False


def test_a_folder_inside_another_checkout_is_none_itself(tmp_path):
    inner = make_checkout(tmp_path / "checkout") / "inner"
    inner.mkdir()

    assert describe_checkout(inner) is None
    assert describe_checkout(tmp_path / "missing") is None


def test_gpus_are_read_from_the_lines_of_nvidia_smi():
    text = "0, NVIDIA A100-SXM4-80GB, GPU-1\n1, NVIDIA A100-SXM4-80GB, GPU-2\nNo devices were found\n"

    assert parse_gpus(text, ("index", "name", "uuid")) == [
        {"index": "0", "name": "NVIDIA A100-SXM4-80GB", "uuid": "GPU-1"},
        {"index": "1", "name": "NVIDIA A100-SXM4-80GB", "uuid": "GPU-2"},
    ]


def test_a_processor_that_states_no_model_has_none():
    assert find_cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n") == "Some CPU @ 2 GHz"
    assert find_cpu_model("processor\t: 0\nCPU implementer\t: 0x41\n") is None
