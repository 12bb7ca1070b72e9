from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erhpc.errors import InputError, SchemaMismatch
from erhpc.results.atomic import replacing, write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.record import LEVEL_COLUMNS, RECORD_COLUMNS, SCHEMA_VERSION, LevelIdentity
from erhpc.results.store import (
    ROW_GROUP_RECORDS,
    append_level,
    empty_results,
    read_levels,
    read_part,
    read_records,
    write_part,
)

from .synthetic_results import make_part, summarise, write_run

IDENTITY = LevelIdentity(
    experiment="quickstart", run_id="a", engine="emulated", level=0, users=3, num_replicas=4, num_gpus=8
)


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path)


def make_failure(record):
    tokenless = {
        "first_token_monotonic_ns": None,
        "last_token_monotonic_ns": None,
        "token_gaps_us": array("i"),
        "tokens_out": 0,
    }
    failure = {"status": "failed", "error_kind": "connect", "error_text": "refused", "expert": None, "replica": None}
    return replace(record, **tokenless, **failure, tokens_in=None, http_status=None)


def stamp_version(path: Path, version: bytes):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"erhpc_schema_version": version}), path)


SELF_KNOWLEDGE = {
    "worker": 3,
    "lag_histogram": [90, 5, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    "cpu_s": 1.25,
    "kernel_delay_p99_s": 0.0001,
    "clock_offset_ns": -(2**61),
    "clock_uncertainty_ns": 20_000,
    "steady": False,
    "warmup_cut": True,
    "interrupted": True,
}


@pytest.mark.parametrize("facts", [{}, SELF_KNOWLEDGE], ids=["nothing known", "everything known"])
def test_a_part_comes_back_as_it_was_written(paths, facts):
    part = replace(make_part(3), **facts)
    part.records[1] = make_failure(part.records[1])
    part.records[2] = replace(part.records[2], worker=3, latency_from="scheduled", stamped_by="kernel", coalesced=2)

    write_part(paths.part(0, "client-0"), part)

    assert read_part(paths.part(0, "client-0")) == part


def test_gaps_given_as_a_list_come_back_as_an_array_with_the_same_values(paths):
    part = make_part(1)
    part.records[:] = [replace(part.records[0], token_gaps_us=gaps) for gaps in ([], [1, 2**31 - 1], [0])]

    write_part(paths.part(0, "client-0"), part)

    found = [record.token_gaps_us for record in read_part(paths.part(0, "client-0")).records]
    assert found == [array("i"), array("i", [1, 2**31 - 1]), array("i", [0])]


def test_a_part_of_several_row_groups_keeps_the_order_of_its_records(paths):
    (record, *_) = make_part(1).records
    gaps = [array("i", [index] * (index % 3)) for index in range(ROW_GROUP_RECORDS + 100)]
    part = replace(make_part(1), records=[replace(record, token_gaps_us=own) for own in gaps])

    write_part(paths.part(0, "client-0"), part)

    assert pq.ParquetFile(paths.part(0, "client-0")).num_row_groups == 2
    assert [found.token_gaps_us for found in read_part(paths.part(0, "client-0")).records] == gaps


def test_a_part_without_records_keeps_its_window(paths):
    part = replace(make_part(1), records=[])

    write_part(paths.part(0, "client-0"), part)

    assert read_part(paths.part(0, "client-0")) == part


def test_results_can_be_read_before_the_first_level(paths):
    empty_results(paths)

    assert len(read_records(paths.root)) == len(read_levels(paths.root)) == 0
    assert list(read_records(paths.root)) == [column.name for column in RECORD_COLUMNS]
    assert list(read_levels(paths.root)) == [column.name for column in LEVEL_COLUMNS]


def test_levels_are_added_to_those_that_are_there(tmp_path):
    run = write_run(tmp_path / "run", users=(1, 3))

    levels, records = read_levels(run.root), read_records(run.root)

    assert levels["users"].tolist() == [1, 3]
    assert records["level"].value_counts().to_dict() == {0: len(make_part(1).records), 1: len(make_part(3).records)}
    assert set(records["run_id"]) == {"run"}


@pytest.mark.parametrize("crashed", [False, True], ids=["whole", "records without a row"])
def test_a_level_is_stored_once(paths, crashed):
    part = make_part(3)
    append_level(paths, IDENTITY, [part], summarise(IDENTITY, [part]))
    if crashed:
        paths.levels.unlink()
    before = paths.records.read_bytes()

    with pytest.raises(InputError, match=r"records\.parquet holds level 0 already.*erhpc\.launch"):
        append_level(paths, IDENTITY, [part], summarise(IDENTITY, [part]))

    assert paths.records.read_bytes() == before


def test_a_reader_of_an_old_file_is_not_disturbed_by_a_new_level(paths):
    part = make_part(3)
    append_level(paths, IDENTITY, [part], summarise(IDENTITY, [part]))
    with paths.records.open("rb") as old:
        append_level(paths, replace(IDENTITY, level=1), [part], summarise(IDENTITY, [part]))

        assert pq.read_table(old).num_rows == len(part.records)


def test_stored_numbers_keep_every_digit_and_null_stays_null(paths):
    part = make_part(3)
    part.records[0] = make_failure(part.records[0])
    append_level(paths, IDENTITY, [part], summarise(IDENTITY, [part]))

    records = read_records(paths.root)

    assert records["sent_monotonic_ns"].tolist() == [record.sent_monotonic_ns for record in part.records]
    assert records["first_token_monotonic_ns"].isna().tolist() == [True] + [False] * (len(part.records) - 1)
    assert [gaps.tolist() for gaps in records["token_gaps_us"]] == [
        list(record.token_gaps_us) for record in part.records
    ]


def test_a_row_comes_back_as_it_was_summarised(paths):
    part = make_part(3)
    row = summarise(IDENTITY, [part])
    append_level(paths, IDENTITY, [part], row)

    (stored,) = read_levels(paths.root).to_dict("records")

    assert stored["expert_share"] == row["expert_share"]
    assert (stored["valid"], stored["invalid_reasons"]) == (row["valid"], row["invalid_reasons"])
    assert stored["ttft_p99_s"] == row["ttft_p99_s"]


def test_an_open_loop_has_a_rate_and_no_users(paths):
    identity = replace(IDENTITY, users=None, arrivals="poisson", rate_per_s=12.5)
    part = make_part(3)
    append_level(paths, identity, [part], summarise(identity, [part]))

    for frame in (read_records(paths.root), read_levels(paths.root)):
        assert frame["users"].isna().all()
        assert set(frame["rate_per_s"]) == {12.5}


@pytest.mark.parametrize("steady", [True, False, None])
def test_yes_no_and_unknown_stay_apart(paths, steady):
    part = replace(make_part(3), steady=steady, lag_histogram=[5, 1])
    append_level(paths, IDENTITY, [part], summarise(IDENTITY, [part]))

    levels = read_levels(paths.root)

    assert levels["steady"].dtype == "boolean"
    assert levels["steady"].isna().tolist() == [steady is None]
    assert levels["steady"].dropna().tolist() == [answer for answer in [steady] if answer is not None]
    assert levels["client_lag_histogram"].tolist() == [[5, 1]]


def test_only_the_columns_asked_for_are_read(tmp_path):
    run = write_run(tmp_path / "run", users=(1,))

    assert list(read_records(run.root, columns=["expert", "status"])) == ["expert", "status"]


def test_files_explain_their_columns_to_a_reader_without_erhpc(paths):
    empty_results(paths)

    schema = pq.read_schema(paths.records)

    assert schema.metadata[b"erhpc_schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.field("token_gaps_us").metadata[b"unit"] == b"us"
    assert all(field.metadata[b"meaning"] for field in schema)
    assert pq.read_schema(paths.levels).field("output_tokens_per_s").metadata[b"unit"] == b"1/s"


@pytest.mark.parametrize("version", ["1", "2", "99"])
def test_results_of_another_version_are_refused_and_left_alone(paths, version):
    empty_results(paths)
    stamp_version(paths.records, version.encode())
    before = paths.records.read_bytes()

    told = rf"records\.parquet has schema version {version}; .* reads version {SCHEMA_VERSION}\."
    with pytest.raises(SchemaMismatch, match=told):
        append_level(paths, IDENTITY, [make_part(1)], summarise(IDENTITY, [make_part(1)]))

    assert paths.records.read_bytes() == before
    assert sorted(path.name for path in paths.root.iterdir()) == ["levels.parquet", "records.parquet"]


def test_parquet_of_somebody_else_is_refused(paths):
    pq.write_table(pa.table({"a": [1]}), paths.levels)

    with pytest.raises(SchemaMismatch, match="schema version none"):
        read_levels(paths.root)


def test_a_missing_or_broken_file_is_an_input_error_that_names_it(paths):
    with pytest.raises(InputError, match=r"levels\.parquet does not exist"):
        read_levels(paths.root)

    paths.levels.write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match=r"levels\.parquet is no readable Parquet file"):
        read_levels(paths.root)


def test_records_are_no_part(paths):
    empty_results(paths)

    with pytest.raises(InputError, match="is no part of a level"):
        read_part(paths.records)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "status.json"
    write_atomically(path, b"old")

    def fail_halfway():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_with_a_key_is_never_readable_by_others(tmp_path):
    write_atomically(tmp_path / ".key", b"secret", mode=0o600)

    assert (tmp_path / ".key").stat().st_mode & 0o777 == 0o600
