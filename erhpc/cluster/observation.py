"""Looks at the site once: does sbatch answer, do nodes have GPUs, has this machine, where is vLLM's interpreter?"""

from __future__ import annotations

import re
import shutil
import subprocess

from erhpc.config import ClusterConfig
from erhpc.experts.vllm import default_interpreter
from erhpc.plan.site import Site

_COMMAND_TIMEOUT_S = 15.0
_GRES_GPUS = re.compile(r"\bgpu(?::[^:,()]+)?:(\d+)")


def observe_site(cluster: ClusterConfig) -> Site:
    """What the place where this runs offers; asks only commands that exist, and never fails."""
    wants_slurm = cluster.kind in ("auto", "slurm")
    slurm = wants_slurm and _succeeds("sbatch", "--version") and bool(_output("sinfo", "--noheader", "--format=%P"))
    partition = [f"--partition={cluster.partition}"] if cluster.partition else []
    gres = _output("sinfo", "--noheader", "--format=%G", *partition) if slurm else ""
    return Site(
        slurm_answers=slurm,
        slurm_gpus_per_node=parse_gres(gres),
        local_gpus=len(_output("nvidia-smi", "--list-gpus").splitlines()) if shutil.which("nvidia-smi") else 0,
        vllm_python=find_vllm_python(),
    )


def parse_gres(text: str) -> int:
    """Most GPUs per node in the lines of `sinfo --format=%G`, e.g. `gpu:a100:8(S:0-1)`. Pure."""
    return max((sum(map(int, _GRES_GPUS.findall(line))) for line in text.splitlines()), default=0)


def find_vllm_python() -> str | None:
    """The interpreter of a vLLM environment: $ERHPC_VLLM_PYTHON, else the one `make vllm-env` builds."""
    interpreter = default_interpreter()
    return str(interpreter) if interpreter.exists() else None


def _succeeds(*argv: str) -> bool:
    return shutil.which(argv[0]) is not None and _run(*argv) is not None


def _output(*argv: str) -> str:
    return _run(*argv) or "" if shutil.which(argv[0]) else ""


def _run(*argv: str) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
