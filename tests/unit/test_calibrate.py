"""Constants are found again in runs whose records a simulation made with other ones."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erhpc.calibrate import main
from erhpc.config import ExpertConfig
from erhpc.errors import ConfigError, InputError
from erhpc.twin.fitting import fit_constants, read_evidence_of
from erhpc.twin.hardware import draw_constants, load_constants, read_profile_evidence
from erhpc.twin.run_rows import read_rows
from tests.unit.simulated_runs import LEVELS, LLAMA3_8B, change_constants, write_run

SERVER = ("expert=llama3_8b", "cluster.gpu=a100_80", "expert.max_model_len=17000")
SYNC = ("--profile", "vllm-v1-sync")
TRUTH = {"step_s": 1.4, "seq_s": 1.5, "compute_share": 0.8, "kv_share": 0.85}


def calibrate(capsys, *words):
    code = main([*map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def known_and_found(truth, run, **chosen):
    """The constants that a run was made with and those of its profile, by name."""
    true, found = change_constants(truth, **chosen), load_profile(run)
    pairs = dict.fromkeys(("step_s", "seq_s", "tensor_parallel_s"), (true.profile, found.profile))
    pairs |= dict.fromkeys(("compute_share", "kv_share"), (true.gpu, found.gpu))
    return {name: (getattr(one, name), getattr(other, name)) for name, (one, other) in pairs.items()}


def load_profile(run):
    return load_constants("a100_80", quantization=None, profile=str(run.engine_profile))


@pytest.fixture(scope="module")
def sync_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("sync") / "r1", change_constants(TRUTH, profile="vllm-v1-sync"))


def test_constants_are_found_again_within_five_per_cent(sync_run, capsys):
    code, printed, _ = calibrate(capsys, sync_run.root, *SERVER, *SYNC)

    assert code == 0
    for name, (true, found) in known_and_found(TRUTH, sync_run, profile="vllm-v1-sync").items():
        assert found == pytest.approx(true, rel=0.05), name
    assert "tensor_parallel_s" in printed
    assert "not fitted: one GPU per replica" in printed


def test_errors_of_rows_that_the_fit_did_not_use_are_shown_before_and_after(sync_run, capsys):
    _, printed, _ = calibrate(capsys, sync_run.root, *SERVER, *SYNC)

    (decode, prefill) = (line for line in printed.splitlines() if "rows that the fit did not use" in line)
    for line in (decode, prefill):
        before, after = (float(part.split("%")[0]) for part in line.split("median ")[1:])
        assert before > 4
        assert after < 0.5
    table = [line for line in printed.splitlines() if "decode of 16" in line]
    assert table
    assert all(line.rstrip(" │").endswith("no") for line in table)  # of sizes between others every second is held out


def test_a_profile_of_a_run_that_was_not_measured_says_so_everywhere(sync_run, capsys):
    _, printed, _ = calibrate(capsys, sync_run.root, *SERVER, *SYNC)

    text = sync_run.engine_profile.read_text()
    assert text.startswith("# NOT MEASURED")
    assert "PREDICTED: not a measurement" in printed
    ((name, table),) = tomllib.loads(text).items()
    assert name == "predicted-r1"
    assert table["calibration"]["kind"] == "predicted"
    for constant in ("step_s", "seq_s", "compute_share", "kv_share"):
        assert "PREDICTED: not a measurement" in table[constant]["source"]
    assert load_profile(sync_run).profile.name == "predicted-r1"


def test_only_a_run_of_real_engines_counts_as_measured(tmp_path, capsys):
    levels = ((1, 128), (16, 128), (1, 2000))
    constants = change_constants({"compute_share": 0.9})
    names = {}
    for engine in ("vllm", "external", "emulated"):
        run = write_run(tmp_path / engine, constants, levels=levels, engine=engine)
        assert calibrate(capsys, run.root, *SERVER)[0] == 0
        names[engine] = load_profile(run).profile.name

    assert names == {"vllm": "measured-vllm", "external": "measured-external", "emulated": "emulated-emulated"}


def test_a_host_that_hides_behind_the_gpu_keeps_its_constants(tmp_path, capsys):
    truth = {"step_s": 3.0, "compute_share": 0.8, "kv_share": 0.85}
    run = write_run(tmp_path / "r", change_constants(truth))

    _, printed, _ = calibrate(capsys, run.root, *SERVER)

    pairs = known_and_found(truth, run)
    assert printed.count("the host hides behind the GPU") == 2
    assert pairs["step_s"][1] == load_constants("a100_80", quantization=None).profile.step_s
    for name in ("compute_share", "kv_share"):
        assert pairs[name][1] == pytest.approx(pairs[name][0], rel=0.05)
    assert "[step_s]" not in run.engine_profile.read_text()


def test_a_host_that_comes_out_from_behind_the_gpu_is_found(tmp_path, capsys):
    truth = {"seq_s": 40.0, "compute_share": 0.8}
    run = write_run(tmp_path / "r", change_constants(truth), levels=(*LEVELS, (100, 128), (200, 128)))

    calibrate(capsys, run.root, *SERVER)

    true, found = known_and_found(truth, run)["seq_s"]
    assert found == pytest.approx(true, rel=0.05)


def test_runs_on_one_and_on_several_gpus_tell_what_tensor_parallelism_costs_the_host(tmp_path, capsys):
    truth = {"step_s": 1.4, "tensor_parallel_s": 2.0}
    constants = change_constants(truth, profile="vllm-v1-sync")
    alone = write_run(tmp_path / "one", constants)
    split = write_run(tmp_path / "two", constants, tensor_parallel=2)

    assert calibrate(capsys, alone.root, *SERVER, *SYNC)[0] == 0
    code, printed, _ = calibrate(capsys, split.root, *SERVER, "expert.tensor_parallel=2", *SYNC)

    assert code == 0
    # Together they are known, apart they are not: the one that every step has takes it all.
    assert "not fitted: these rows don't tell it from the others" in printed
    step_s, parallel_s = (
        getattr(load_profile(split).profile, name) for name in ("step_s", "tensor_parallel_s")
    )  # fmt: skip
    assert step_s + parallel_s == pytest.approx(
        constants.profile.step_s + constants.profile.tensor_parallel_s, rel=0.05
    )


def test_a_calibrated_profile_is_refused_on_another_gpu(sync_run, capsys):
    calibrate(capsys, sync_run.root, *SERVER, *SYNC)

    with pytest.raises(ConfigError, match=r"calibrated on 'a100_80', and cluster\.gpu='h100_80'"):
        load_constants("h100_80", quantization=None, profile=str(sync_run.engine_profile))


def test_intervals_of_a_calibrated_profile_are_narrower(sync_run, capsys):
    calibrate(capsys, sync_run.root, *SERVER, *SYNC)

    def spread(profile):
        drawn = draw_constants(Random(1), 20, "a100_80", quantization=None, profile=profile)
        shares = [constants.gpu.compute_share for constants in drawn]
        return max(shares) / min(shares)

    assert spread(str(sync_run.engine_profile)) < 1.1 < spread("vllm-v1-sync")


def test_a_calibrated_profile_can_be_calibrated_again(sync_run, tmp_path, capsys):
    calibrate(capsys, sync_run.root, *SERVER, *SYNC)
    again = tmp_path / "again.toml"

    code, _, _ = calibrate(capsys, sync_run.root, *SERVER, "--profile", sync_run.engine_profile, "--output", again)

    assert code == 0
    before, after = (
        {name: found.value for name, found in read_profile_evidence(str(path), "a100_80", tuple(TRUTH)).items()}
        for path in (sync_run.engine_profile, again)
    )
    assert after == pytest.approx(before, rel=0.02)


def write_columns(path, **columns):
    """Replace whole columns of a Parquet file."""
    table = pq.read_table(path)
    for name, value in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(
            index, table.schema.field(name), pa.array([value] * len(table), table.schema.field(name).type)
        )
    pq.write_table(table, path)


SMALL = ((1, 128), (16, 128))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: run.records.unlink(), "holds no records"),
        (lambda run: write_columns(run.levels, valid=False, invalid_reasons=["x was y"]), "no valid level.*x was y"),
        (lambda run: write_columns(run.levels, clock_offset_s=0.5), "no valid level.*clocks of its clients differ"),
        (lambda run: write_columns(run.records, tokens_in=None), "how many tokens a prompt has"),
        (lambda run: write_columns(run.records, phase="warmup"), "at least two batch sizes.*show none"),
        (lambda run: write_columns(run.records, frames=1, token_gaps_us=[9]), "at least two batch sizes.*show none"),
    ],
    ids=["no_records", "invalid", "clocks", "no_usage", "no_window", "coalesced"],
)
def test_a_run_that_shows_no_steps_is_refused_with_what_to_do(tmp_path, capsys, damage, message):
    run = write_run(tmp_path / "r", change_constants({}), levels=SMALL)
    damage(run)

    code, _, error = calibrate(capsys, run.root, *SERVER)

    assert code == 2
    assert error.startswith(("InputError", "ConfigError"))
    assert re.search(message, error), error
    assert not run.engine_profile.exists()


@pytest.mark.parametrize("seconds", [float("nan"), 0.0, float("inf")])
def test_a_time_that_is_none_never_becomes_a_constant(sync_run, seconds):
    rows = list(read_rows(sync_run, {"server": ExpertConfig("llama3", LLAMA3_8B)}).rows)
    rows[0] = replace(rows[0], seconds=seconds)
    chosen = {"gpu": "a100_80", "profile": "vllm-v1-sync"}

    with pytest.raises(InputError, match=f"r1, level 0: .* in {seconds} s is no measurement"):
        fit_constants(rows, kernel="plain", evidence=read_evidence_of(**chosen), **chosen)


def test_one_batch_size_is_too_few(tmp_path, capsys):
    run = write_run(tmp_path / "r", change_constants({}), levels=((1, 128), (1, 2000)))

    code, _, error = calibrate(capsys, run.root, *SERVER)

    assert (code, "only of 1 sequence(s)" in error, "workload=calibration" in error) == (2, True, True)


def test_an_invalid_level_is_left_out_and_said(tmp_path, capsys):
    run = write_run(tmp_path / "r", change_constants({}), levels=((1, 128), (16, 128), (1, 2000)))
    table = pq.read_table(run.levels)
    valid = pa.array([True, True, False])
    pq.write_table(
        table.set_column(table.schema.get_field_index("valid"), table.schema.field("valid"), valid), run.levels
    )

    code, printed, _ = calibrate(capsys, run.root, *SERVER)

    assert code == 0
    assert "level 2 is left out: invalid" in printed
    assert "2,000" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "does not say what the server is.*expert=llama3_8b"),
        (("expert=none",), "none"),
        (("expert=llama3_8b", "cluster.gpu=b300"), "cluster.gpu='b300' is not known"),
        (("expert=llama3_8b", "expert.tensor_parallel=3"), "does not divide"),
        ((*SERVER, "--profile", "vllm-9"), "engine profile='vllm-9' is not known"),
        ((*SERVER, "--kernel", "magic"), "kernel='magic' is not known"),
        ((*SERVER, "--profile", "missing.toml"), "missing.toml is no readable profile"),
    ],
)
def test_what_is_said_of_a_server_is_checked(tmp_path, capsys, words, message):
    run = write_run(tmp_path / "r", change_constants({}), levels=SMALL)

    code, _, error = calibrate(capsys, run.root, *words)

    assert code == 2
    assert re.search(message, error, re.DOTALL), error
