"""Emulated experts that run in real time, measured over HTTP and calibrated: the constants they ran with come out."""

from __future__ import annotations

import json
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erhpc.results.store import read_levels, read_records
from erhpc.twin.hardware import load_constants
from tests import runs

pytestmark = pytest.mark.timeout(200)

SHORT = (
    "load.calibrate=false",
    "workload=calibration",
    "workload.users=[1,4,16,1]",
    "workload.input_tokens_of_levels=[64,64,64,9000]",
    "workload.output_tokens.mean=48",
    "workload.warmup_s=0.2",
    "workload.warmup_max_s=8",
    "workload.measure_s=2",
    "workload.drain_s=20",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One emulated Llama 3 8B on an A100 behind no gateway."""
    folder = tmp_path_factory.mktemp("runs")
    runs.run_verb(
        "launch", "+expert@experts.server=llama3_8b", "name=calib", "engine=emulated", "cluster=local", "router=none",
        *SHORT, f"output_root={folder}",
    )  # fmt: skip
    run = runs.only_run(folder)
    trust_late_levels(run)
    return run


def trust_late_levels(run):
    """On a busy machine steps end late, which makes levels invalid, but not longer: deadlines are absolute."""
    table = pq.read_table(run.levels)
    reasons = {reason for reasons in table["invalid_reasons"].to_pylist() for reason in reasons}
    assert all("-bound: p99 " in reason for reason in reasons), reasons
    for name, value in (("valid", True), ("invalid_reasons", [])):
        index = table.schema.get_field_index(name)
        values = pa.array([value] * len(table), table.schema.field(name).type)
        table = table.set_column(index, table.schema.field(name), values)
    pq.write_table(table, run.levels)


def test_the_levels_of_the_workload_have_prompts_of_their_own_length(run):
    records = read_records(run.root)
    lengths = records[records["status"] == "ok"].groupby("level")["tokens_in"].median()

    assert list(read_levels(run.root)["users"]) == [1, 4, 16, 1]
    assert lengths.loc[[0, 1, 2]].between(64, 100).all()
    assert lengths[3] == pytest.approx(8192 - 48 - 64, rel=0.02)  # 9,000 are more than the expert takes
    assert "9000 cut to 8080" in json.dumps(json.loads(run.plan.read_text())["notices"])


def test_a_run_of_emulated_experts_gives_back_the_constants_they_ran_with(run):
    done = runs.run_verb("calibrate", run.root)

    ((name, table),) = tomllib.loads(run.engine_profile.read_text()).items()
    assert name == f"emulated-{run.root.name}"
    assert "EMULATED: not a measurement" in done.stdout
    assert "EMULATED" in table["compute_share"]["source"]
    emulated = load_constants("a100_80", quantization=None)
    found = load_constants("a100_80", quantization=None, profile=str(run.engine_profile))
    assert found.gpu.compute_share == pytest.approx(emulated.gpu.compute_share, rel=0.15)
    assert found.profile.step_s == emulated.profile.step_s  # it hides behind the GPU


def test_a_run_says_itself_what_it_served(run):
    done = runs.run_verb("calibrate", run.root, "expert=llama3_70b", check=False)

    assert done.returncode == 2
    assert "says itself what it served. Leave out expert=llama3_70b" in done.stderr
