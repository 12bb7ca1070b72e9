"""An environment of its own for each peer, below $XDG_CACHE_HOME/erhpc/bench; built once, by package name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from erhpc.config import ArchitectureConfig
from erhpc.corpus.prompts import read_prompts
from erhpc.experts.model_directory import write_model_directory
from tests.bench.load.case import Unavailable

ROOT = Path(__file__).resolve().parents[3]
INSTALL_LIMIT_S = 1800
STAMP = "installed"
TINY = ArchitectureConfig(
    num_layers=2, hidden_size=256, intermediate_size=688, num_attention_heads=4, num_kv_heads=2, vocab_size=4096
)


def cache_folder() -> Path:
    """Where compiled and installed things are kept between benches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erhpc" / "bench"


def environment_folder(peer: str, version: str) -> Path:
    """Where the peer's environment is, or would be."""
    return cache_folder() / f"{peer}-{version}"


def is_installed(peer: str, version: str) -> bool:
    """Whether the peer's environment is complete."""
    return (environment_folder(peer, version) / STAMP).exists()


def installed_python(
    peer: str, package: str, version: str, *, options: Sequence[str] = (), python: str | None = None
) -> Path:
    """The interpreter of an environment that holds `package` at `version`; builds it the first time.

    Raises Unavailable if pip finds none or there is no interpreter `python` (default: the one that runs).
    """
    folder = environment_folder(peer, version)
    interpreter = folder / "bin" / "python"
    if is_installed(peer, version):
        return interpreter
    builder = sys.executable if python is None else find_interpreter(python)
    print(f"installing {package} {version} in {folder}", flush=True)
    _run([builder, "-m", "venv", "--clear", str(folder)])
    _run([str(interpreter), "-m", "pip", "install", "-qq", *options, f"{package}=={version}"])
    (folder / STAMP).touch()
    return interpreter


def vllm_python() -> Path:
    """The interpreter of the project's own environment of vLLM for the CPU."""
    return Path(_run(["bash", str(ROOT / ".ci" / "vllm_env.sh")]).splitlines()[-1])


def model_directory() -> Path:
    """A synthetic model whose tokenizer the peers load; never served."""
    folder = cache_folder() / "model"
    text = "\n".join(prompt.text for prompt in read_prompts("demo", "jsonl"))
    write_model_directory(
        folder, TINY, dtype="float32", quantization=None, max_model_len=8192, weights="dummy", seed=0,
        training_text=text,
    )  # fmt: skip
    _drop_bos(folder / "tokenizer.json")
    return folder


def _drop_bos(path: Path) -> None:
    """Encoding adds no token of its own: some peers encode each frame by itself and would count two tokens in it."""
    tokenizer = msgspec.json.decode(path.read_bytes())
    if tokenizer["post_processor"] is not None:
        path.write_bytes(msgspec.json.encode(tokenizer | {"post_processor": None}))


def find_interpreter(name: str) -> str:
    """Path of an interpreter such as python3.12; raises Unavailable."""
    # A shim of pyenv may stand on the path for a version that it refuses to run.
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [shutil.which(name), *map(str, sorted(pyenv.glob(f"*/bin/{name}")))]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode == 0:
            return candidate
    raise Unavailable(f"needs {name}, which is not installed")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"took longer than {INSTALL_LIMIT_S} s: {' '.join(command)}") from None
    if done.returncode != 0:
        raise Unavailable(f"cannot be installed: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    return done.stdout
