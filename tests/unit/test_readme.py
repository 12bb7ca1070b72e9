"""The README tells the truth about columns, experiments, files and links."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from erhpc.composition import CONF_DIRECTORY
from erhpc.config import POLICIES, RULES, ExperimentConfig, LoadTestConfig, RouterConfig
from erhpc.gateway.metrics import Metrics
from erhpc.gateway.replicas import Replica
from erhpc.gateway.shared import Shared
from erhpc.plan.specs import Endpoint
from erhpc.results.record import LEVEL_COLUMNS, RECORD_COLUMNS
from tests.readme import README, find_commands, find_first_cells, find_section
from tests.unit.experiments import EXPERIMENTS


@pytest.mark.parametrize(("file", "columns"), [("levels", LEVEL_COLUMNS), ("records", RECORD_COLUMNS)])
def test_every_column_is_described_and_no_other(file, columns):
    section = find_section(f"Columns of `{file}.parquet`")

    assert find_first_cells(section) == [column.name for column in columns]
    described = {name: row for row in section.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    for column in columns:
        assert f"| {column.kind} |" in described[column.name]
        assert column.meaning.partition(";")[0] in described[column.name]


def test_every_experiment_is_listed_and_no_other():
    assert sorted(find_first_cells(find_section("Use"))) == EXPERIMENTS


def test_every_workload_is_listed_and_no_other():
    stems = [path.stem for path in (CONF_DIRECTORY / "workload").glob("*.yaml")]

    assert sorted(find_first_cells(find_section("Load"))) == sorted(stems)


def test_every_policy_is_listed_and_no_other():
    assert find_first_cells(find_section("Routing")) == list(POLICIES)


def test_of_replicas_too_are_the_rules():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (yes|no)\b[^|]*\|$", find_section("Routing"), re.MULTILINE)

    assert [name for name, of_replicas in rows if of_replicas == "yes"] == list(RULES)
    assert len(rows) == len(POLICIES)


def test_every_key_of_the_router_that_is_told_exists_and_has_the_default_that_is_shown():
    keys = re.findall(r"[`\s]router\.(\w+)(?:=(\S+?))?`", find_section("Routing"))

    shown = {name: value for name, value in keys if value and name not in ("temperature", "overflow", "replica_policy")}
    assert len(shown) == 4
    assert {name: str(getattr(RouterConfig(), name)) for name in shown} == shown
    assert {name for name, _ in keys} <= {field.name for field in dataclasses.fields(RouterConfig)}


def has_key(kind, key):
    """Whether a configuration of this dataclass has the dotted key."""
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind) or name not in {field.name for field in dataclasses.fields(kind)}:
            return typing.get_origin(kind) is dict
        kind = typing.get_type_hints(kind)[name]
    return True


def test_every_key_that_a_load_is_told_exists():
    keys = re.findall(r"[`\s+]((?:workload|load|slo|stop|search)\.[a-z0-9_.]+)", find_section("Load"))

    assert len(keys) > 30
    assert [key for key in keys if not has_key(LoadTestConfig, key) or not has_key(ExperimentConfig, key)] == []


def test_every_path_named_in_backticks_exists():
    root = README.parent
    text = README.read_text()

    named = re.findall(r"`((?:conf|erhpc|jobs|tests|analysis|sbatch|\.ci)/[\w./-]*)`", text)
    missing = [name for name in named if "NAME" not in name and not (root / name).exists()]
    assert named
    assert missing == []


def test_every_link_within_the_project_resolves():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text())

    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_first_screen_says_what_it_is_and_shows_the_two_commands():
    first_screen = README.read_text().splitlines()[:60]

    assert "Expert Router" in first_screen[2]
    assert find_commands()[:2] == ["make demo", "make test"]
    assert "## Where to change what" in first_screen


def test_every_metric_of_the_gateway_is_described_and_no_other():
    endpoint = Endpoint(replica="math-0", expert="math", model="llama", url="http://127.0.0.1:1")
    ledger = Shared([endpoint], num_workers=1, is_alone=True).ledger(0)
    text = Metrics(ledger, [Replica(endpoint, ledger)]).render()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    meanings = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))

    rows = re.findall(r"^\| `(erhpc_\w+)` \| (\w+)[^|]*\| (.+) \|$", README.read_text(), re.MULTILINE)

    assert [name for name, _, _ in rows] == list(kinds)
    assert {name: kind for name, kind, _ in rows} == kinds
    assert {name: meaning for name, _, meaning in rows} == meanings


def test_every_header_of_an_answer_is_described():
    section = README.read_text().partition("\n## Gateway\n")[2].partition("\n## ")[0]
    rooms = [Path(__file__).resolve().parents[2] / "erhpc" / room for room in ("gateway", "plan")]
    code = "".join(path.read_text() for room in rooms for path in room.glob("*.py"))

    told = set(re.findall(r"^\| `(x-[a-z-]+)` \|", section, re.MULTILINE))

    assert told == set(re.findall(r'"(x-erhpc-[a-z-]+)"', code)) - {"x-erhpc-engine"} | {"x-request-id"}
