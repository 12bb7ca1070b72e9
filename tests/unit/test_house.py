"""The house keeps its shape: who may import whom, what importing costs, and how scripts and texts look."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import GROUP_OF

ROOT = Path(__file__).resolve().parents[2]

# What each room may import of erhpc beside itself, errors and config. Pure rooms come first.
ROOMS = {
    "plan": {"results"},
    "corpus": set(),
    "routing": {"corpus"},
    # A prediction has the records of a measurement.
    "twin": {"plan", "results"},
    "results": set(),
    # Knows a plan, what its users ask and where that goes, so that none of those rooms has to know the twin.
    "forecast": {"plan", "results", "routing", "twin", "workload"},
    "experts": {"plan", "results", "twin"},
    "gateway": {"http1", "plan", "results", "routing"},
    "config": set(),
    "http1": set(),
    "workload": {"corpus", "plan", "results"},
    "client": {"http1", "plan", "results", "workload"},
    "load": {"client", "plan", "results", "workload"},
    "cluster": {"corpus", "experts", "load", "plan", "results", "routing", "workload"},
    "report": {"console", "results"},
}
# Each heavy library has one home.
HOMES = {
    "submitit": {"erhpc/cluster/submission.py", "jobs/node_agent.py"},
    "hydra": {"erhpc/composition.py"},
    "omegaconf": {"erhpc/composition.py"},
    "pyarrow": {"erhpc/corpus/dataset.py", "erhpc/results/store.py"},
    "sklearn": {"erhpc/routing/fitting.py"},
    "matplotlib": {"erhpc/report/figures.py"},
    # Of models that are written, of models whose prompts are measured, of embeddings: none of the rooms knows another.
    "tokenizers": {"erhpc/experts/model_directory.py", "erhpc/routing/subwords.py", "erhpc/workload/tokenizer.py"},
    "uvloop": {"jobs/process.py"},
    "vllm": set(),
}
PURE_ROOMS = ("http1", "plan", "routing", "twin")
IMPURE_MODULES = {"asyncio", "socket", "subprocess", "aiohttp"}
IMPURE_CALL = re.compile(r"\b(time\.\w+|datetime\.now|random\.(?!Random|default_rng)\w+)\(")
# The verb of a room assembles; it is the room's door, not part of it.
DOORS = {"erhpc/gateway/__main__.py", "erhpc/load/__main__.py", "erhpc/plan/__main__.py", "erhpc/report/__main__.py"}
FILES = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("erhpc", "jobs") for path in (ROOT / folder).rglob("*.py")
)


def imports_of(file):
    """Full names of everything that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("file", [file for file in FILES if file.count("/") == 2 and file not in DOORS])
def test_a_room_imports_only_what_lies_below_it(file):
    room = file.split("/")[1]
    allowed = ROOMS[room] | {room, "errors", "config"}

    reached = {name.split(".")[1] for name in imports_of(file) if name.startswith("erhpc.")}

    assert reached <= allowed
    assert not any(name.split(".")[0] == "jobs" for name in imports_of(file))


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_one_home(library):
    users = {file for file in FILES if any(name.split(".")[0] == library for name in imports_of(file))}

    assert users <= HOMES[library]
    assert users or library == "vllm"


@pytest.mark.parametrize("file", [f for f in FILES if f.split("/")[1] in PURE_ROOMS and f not in DOORS])
def test_pure_rooms_use_no_clock_no_network_and_no_process(file):
    assert not {name.split(".")[0] for name in imports_of(file)} & IMPURE_MODULES
    assert IMPURE_CALL.search((ROOT / file).read_text()) is None


def test_importing_erhpc_and_its_schema_costs_nothing():
    code = "import sys; before = set(sys.modules); import erhpc, erhpc.config; print(set(sys.modules) - before)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert not any(heavy in loaded for heavy in ("numpy", "hydra", "omegaconf", "aiohttp", "pandas", "msgspec"))


def test_modules_and_functions_stay_small():
    long_modules = {f: n for f in FILES if (n := len((ROOT / f).read_text().splitlines())) > 400}
    functions = [
        (file, node.name, node.end_lineno - node.lineno + 1)
        for file in FILES
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert long_modules == {}
    assert [function for function in functions if function[2] > 60] == []


def test_no_module_is_named_after_nothing():
    names = {Path(file).stem for file in FILES}

    assert not names & {"utils", "helpers", "common", "misc", "manager", "handler", "base"}


def test_the_top_level_holds_only_what_was_agreed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    tops = {name.split("/")[0] for name in tracked}

    agreed = {"pyproject.toml", "README.md", "CHANGELOG.md", "Makefile"}
    agreed |= {"jobs", "conf", "erhpc", "analysis", "tests", "sbatch"}
    assert {top for top in tops if not top.startswith(".") and not top.endswith(".lock")} <= agreed


def test_the_files_that_never_run_side_by_side_are_there():
    assert [file for file in GROUP_OF if not (ROOT / file).exists()] == []


def test_the_shell_scripts_pass_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [*ROOT.glob("sbatch/*.sh"), *ROOT.glob(".ci/*.sh"), ROOT / ".ci" / "run"]

    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)

    assert done.stdout == ""
    assert len(scripts) >= 3
