"""How the tests are shared out to the workers of `make test`, and the environment of vLLM, which comes late.

Files run side by side, those that need the same thing one after the other: local runs hold the machine's lock, and
Slurm is one cluster. These begin first, for the others are short and fill what time is left. Those that only ask a real
vLLM come late, for it may still be being installed. Files that look closely at the clock come last, and each of their
tests has the machine for itself.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
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
    ],
    "slurm": ["tests/slurm/test_runs.py", "tests/slurm/test_miniature.py"],
    "vllm": ["tests/integration/test_vllm_cpu.py", "tests/integration/test_peer_formulas.py"],
    "clock": [
        "tests/integration/test_load.py",
        "tests/integration/test_load_levels.py",
        "tests/integration/test_emulation.py",
        "tests/integration/test_emulated_expert.py",
        "tests/integration/test_streaming_clients.py",
    ],
}
GROUP_OF = {file: name for name, files in GROUPS.items() for file in files}
FIRST = [*GROUPS["machine"], *GROUPS["slurm"]]
LAST = ["vllm", "clock"]
TURN = ROOT / ".cache/tests.lock"
BUILD_S = 900
"""Timeout of a test that may be the first to wait for vLLM's environment."""


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def rank(file: str) -> int:
    """Where a file comes in the order of all."""
    if file in FIRST:
        return FIRST.index(file)
    group = GROUP_OF.get(file)
    return len(FIRST) + (1 + LAST.index(group) if group in LAST else 0)


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test of the group `clock` runs while no other worker runs one; outside of its timeout, for it may wait long."""
    of_the_clock = GROUP_OF.get(file_of(item.nodeid)) == "clock"
    TURN.parent.mkdir(exist_ok=True)
    with TURN.open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX if of_the_clock else fcntl.LOCK_SH)
        return (yield)


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
