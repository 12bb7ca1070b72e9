"""Looks at the site once: does sbatch answer, do nodes have GPUs, has this machine, where is vLLM's interpreter?"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess

from erhpc.config import ClusterConfig
from erhpc.errors import InputError
from erhpc.experts.vllm import PYTHON_VARIABLE, default_interpreter
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
        local_gpus=count_local_gpus(_output("nvidia-smi", "--list-gpus"), os.environ.get("CUDA_VISIBLE_DEVICES")),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        num_cores=len(os.sched_getaffinity(0)),
        vllm_python=os.environ.get(PYTHON_VARIABLE),
        vllm_cpu_python=_find_cpu_interpreter(),
    )


def parse_gres(text: str) -> int:
    """Most GPUs per node in the lines of `sinfo --format=%G`, e.g. `gpu:a100:8(S:0-1)`. Pure."""
    return max((sum(map(int, _GRES_GPUS.findall(line))) for line in text.splitlines()), default=0)


def count_local_gpus(listing: str, visible: str | None) -> int:
    """GPUs in the lines of `nvidia-smi --list-gpus`, or as many of them as CUDA_VISIBLE_DEVICES leaves. Pure."""
    installed = sum(line.startswith("GPU ") for line in listing.splitlines())
    if visible is None:
        return installed
    # CUDA stops at the first name it does not know; -1 is the usual way to say "none".
    named = list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), visible.split(",")))
    return min(installed, len(named))


def _find_cpu_interpreter() -> str | None:
    try:
        interpreter = default_interpreter(environ={k: v for k, v in os.environ.items() if k != PYTHON_VARIABLE})
    except InputError:
        return None  # no lock file in this installation, so no environment either
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
