"""How the tests are shared out to the workers of `make test`, and the environment of vLLM, which comes late.

Files run side by side, those that need the same thing one after the other: local runs hold the machine's lock, Slurm is
one cluster, and real vLLM takes every core. These begin first, for the others are short and fill what time is left.
Files that look closely at the clock come last, one after the other, when the other worker has nothing left to do.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from erhpc.experts.vllm import default_interpreter

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    "machine": [
        "tests/integration/test_readme_commands.py",
        "tests/integration/test_local_runs.py",
        "tests/integration/test_calibrate.py",
        "tests/integration/test_vllm_run.py",
        "tests/integration/test_vllm_cpu.py",
        "tests/integration/test_peer_formulas.py",
    ],
    "slurm": ["tests/slurm/test_runs.py", "tests/slurm/test_miniature.py"],
    "clock": [
        "tests/integration/test_load.py",
        "tests/integration/test_standalone.py",
        "tests/integration/test_emulation.py",
        "tests/integration/test_emulated_expert.py",
        "tests/integration/test_streaming_clients.py",
    ],
}
GROUP_OF = {file: name for name, files in GROUPS.items() for file in files}
FIRST = [*GROUPS["machine"], *GROUPS["slurm"]]
BUILD_S = 900
"""Timeout of a test that may be the first to wait for vLLM's environment."""


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def rank(file: str) -> int:
    """Where a file comes in the order of all."""
    if file in FIRST:
        return FIRST.index(file)
    return len(FIRST) + (file in GROUPS["clock"])


class Scheduling(LoadScopeScheduling):
    """A group of files is for one worker, and every other file is a group of its own."""

    def _split_scope(self, nodeid: str) -> str:
        return GROUP_OF.get(file_of(nodeid), file_of(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    config.option.loadscopereorder = False  # the order is that of the items
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(file_of(item.nodeid)))
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.timeout(BUILD_S))


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of vLLM's environment, which `make test` may still be building."""
    python = default_interpreter()
    if "ERHPC_VLLM_PYTHON" in os.environ:
        return python
    if not python.exists() and not os.environ.get("ERHPC_REQUIRE_ALL"):
        pytest.skip(f"{python} does not exist. Build it with `make vllm-env`, or set ERHPC_VLLM_PYTHON.")
    # Waits for a build that runs, and builds what is not complete.
    done = subprocess.run(["bash", ROOT / ".ci/vllm_env.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"vLLM's environment could not be built\n{done.stderr}"
    return python
