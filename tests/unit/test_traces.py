"""Recorded workloads are read as they were written, and what is wrong with a file is said with its line."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erhpc.errors import ConfigError, InputError
from erhpc.workload import traces
from erhpc.workload.traces import Trace, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118.5,GPT-4,417,276,693,API log
"""


def write_text(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_parquet(tmp_path, name="trace.parquet", **columns):
    pq.write_table(pa.table(columns), tmp_path / name)
    return tmp_path / name


def rows_of(trace):
    return list(zip(trace.at_s.tolist(), trace.tokens_in.tolist(), trace.tokens_out.tolist(), strict=True))


def test_an_azure_trace_counts_from_its_first_request(tmp_path):
    trace = read_trace(write_text(tmp_path, AZURE))

    assert trace.at_s == pytest.approx([0, 4.314579, 4.541877], abs=1e-6)
    assert trace.tokens_in.tolist() == [374, 396, 879]
    assert trace.tokens_out.tolist() == [44, 109, 55]
    assert (trace.at_s.dtype, trace.tokens_in.dtype, trace.tokens_out.dtype) == (np.float64, np.int32, np.int32)


def test_a_zone_in_a_timestamp_is_heeded(tmp_path):
    text = AZURE.replace("46.6805900", "46.680590+00:00").replace("18:15:50.9951690", "19:15:50.995169+01:00")

    assert read_trace(write_text(tmp_path, text)).at_s == pytest.approx([0, 4.314579, 4.541877], abs=1e-6)


def test_failures_of_burstgpt_are_skipped_and_counted(tmp_path):
    trace = read_trace(write_text(tmp_path, BURSTGPT))

    assert rows_of(trace) == [(0, 472, 18), (113.5, 417, 276)]
    assert trace.skipped == 1


def test_an_answer_without_tokens_is_kept_where_it_is_no_failure(tmp_path):
    trace = read_trace(write_text(tmp_path, AZURE.replace("374,44", "374,0")))

    assert (trace.tokens_out[0], trace.skipped) == (0, 0)


def test_a_parquet_trace_is_told_by_its_name(tmp_path):
    path = write_parquet(tmp_path, at_s=[7.0, 7.5], tokens_in=[3, 4], tokens_out=[5, 6], note=["a", "b"])

    assert rows_of(read_trace(path)) == [(0, 3, 5), (0.5, 4, 6)]


def test_a_parquet_trace_of_another_name_is_read_when_it_is_named_so(tmp_path):
    path = write_parquet(tmp_path, name="trace.dat", at_s=[1], tokens_in=[3.0], tokens_out=[5])

    assert rows_of(read_trace(path, "parquet")) == [(0, 3, 5)]


def test_byte_order_mark_line_ends_blank_lines_and_further_columns_do_not_matter(tmp_path):
    text = "\ufeffextra,GeneratedTokens, TIMESTAMP ,ContextTokens\r\n\r\nx,44,2023-11-16 18:15:46,374\r\n"

    assert rows_of(read_trace(write_text(tmp_path, text))) == [(0, 374, 44)]


def test_rows_out_of_order_are_put_in_order_and_equal_times_stay_as_written(tmp_path):
    rows = [(9 - row % 5, row) for row in range(100)]
    text = "Timestamp,Request tokens,Response tokens\n" + "".join(f"{at_s},{row},1\n" for at_s, row in rows)

    assert rows_of(read_trace(write_text(tmp_path, text))) == [(at_s - 5, row, 1) for at_s, row in sorted(rows)]


def test_a_file_longer_than_a_block_is_read_whole_and_its_lines_are_numbered_on(tmp_path):
    count = traces.BLOCK_ROWS + 10
    header = "Timestamp,Request tokens,Response tokens\n"
    lines = [f"{second},{second % 1000},7\n" for second in range(count)]
    path = write_text(tmp_path, header + "".join(lines))

    assert read_trace(path).at_s.tolist() == list(range(count))

    lines[count - 3] = "12,none,7\n"
    with pytest.raises(InputError, match=f"line {count - 3 + 2}: Request tokens is 'none'"):
        read_trace(write_text(tmp_path, header + "".join(lines)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("2023-11-16 18:15:46.6805900|yesterday", "line 2: TIMESTAMP is 'yesterday'. Allowed: a date and time"),
        ("2023-11-16 18:15:46.6805900|", "line 2: TIMESTAMP is ''"),
        ("396|-1", "line 3: ContextTokens is '-1'. Allowed: whole numbers from 0 to 2147483647"),
        ("396|12.5", "line 3: ContextTokens is '12.5'"),
        ("55|nan", "line 4: GeneratedTokens is 'nan'"),
        ("55|inf", "line 4: GeneratedTokens is 'inf'"),
        ("55|3000000000", "line 4: GeneratedTokens is '3000000000'"),
        (",396,109|", "line 3: 1 values where at least 3 are needed"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_allowed(tmp_path, wrong, message):
    with pytest.raises(InputError, match=f"trace.csv, {message}"):
        read_trace(write_text(tmp_path, AZURE.replace(*wrong.split("|"))))


def test_a_negative_time_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"line 2: Timestamp is '-5'. Allowed: seconds, at least 0"):
        read_trace(write_text(tmp_path, BURSTGPT.replace("\n5,", "\n-5,")))


@pytest.mark.parametrize("layout", ["auto", "azure", "burstgpt"])
@pytest.mark.parametrize("text", ["", "time,in,out\n1,2,3\n"])
def test_unknown_columns_are_refused_with_those_that_are_known(tmp_path, text, layout):
    known = "TIMESTAMP, ContextTokens, GeneratedTokens" if layout != "burstgpt" else "Timestamp, Request tokens"

    with pytest.raises(InputError, match=f"line 1: the columns are .* {known}.*at_s, tokens_in, tokens_out"):
        read_trace(write_text(tmp_path, text), layout)


def test_a_csv_of_one_format_is_not_read_as_another(tmp_path):
    with pytest.raises(InputError, match="trace_format=burstgpt"):
        read_trace(write_text(tmp_path, AZURE), "burstgpt")


@pytest.mark.parametrize("text", [AZURE.splitlines()[0], BURSTGPT.splitlines()[0] + "\n\n"])
def test_a_trace_without_a_request_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="has no request"):
        read_trace(write_text(tmp_path, text))


def test_a_trace_of_failures_only_says_so(tmp_path):
    with pytest.raises(InputError, match="no request but 1 that failed"):
        read_trace(write_text(tmp_path, "Timestamp,Request tokens,Response tokens\n5,3,0\n"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv.*cannot be read: No such file"):
        read_trace(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("content", [b"TIMESTAMP,\xff\xfe", AZURE.encode() + b'"' + b"x" * 200_000])
def test_what_is_no_csv_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"no CSV in UTF-8.*trace_format=parquet"):
        read_trace(write_text(tmp_path, content))


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="auto, azure, burstgpt, parquet"):
        read_trace(write_text(tmp_path, AZURE), "json")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"at_s": [0.0, float("nan")]}, "row 2: at_s is nan"),
        ({"at_s": [0.0, None]}, "row 2: at_s is nan"),
        ({"at_s": [0.0, -1.0]}, "row 2: at_s is -1.0"),
        ({"tokens_in": [1.5, 2.0]}, "row 1: tokens_in is 1.5"),
        ({"tokens_out": [1, 2**31]}, "row 2: tokens_out is 2147483648"),
        ({"tokens_out": ["1", "2"]}, "column tokens_out is of type object"),
        ({"at_s": pa.array([1, 2], pa.timestamp("ns"))}, "column at_s is of type datetime64"),
        ({name: pa.array([], "int64") for name in ("at_s", "tokens_in", "tokens_out")}, "has no request"),
    ],
)
def test_a_wrong_value_in_parquet_is_named_with_its_row(tmp_path, columns, message):
    right = {"at_s": [0.0, 1.0], "tokens_in": [1, 2], "tokens_out": [3, 4]}

    with pytest.raises(InputError, match=message):
        read_trace(write_parquet(tmp_path, **(right | columns)))


def test_parquet_without_a_column_is_refused_with_what_it_has(tmp_path):
    with pytest.raises(InputError, match=r"no column tokens_out. Needed: at_s, tokens_in, tokens_out; it has: at_s, t"):
        read_trace(write_parquet(tmp_path, at_s=[0.0], tokens_in=[1]))


def test_a_file_that_is_no_parquet_and_one_that_is_not_there_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="no readable Parquet"):
        read_trace(write_text(tmp_path, AZURE, "trace.parquet"))
    with pytest.raises(InputError, match="does not exist"):
        read_trace(tmp_path / "nowhere.parquet")
    with pytest.raises(InputError, match="no readable Parquet"):
        read_trace(tmp_path, "parquet")


def test_the_mean_rate_counts_gaps_over_their_time():
    zeros = np.zeros(5, dtype=np.int32)

    assert Trace(at_s=np.array([0, 1, 2, 3, 8.0]), tokens_in=zeros, tokens_out=zeros).mean_rate_per_s == 0.5
    assert Trace(at_s=np.zeros(5), tokens_in=zeros, tokens_out=zeros).mean_rate_per_s is None


def test_lengths_are_drawn_in_pairs_and_each_row_as_often_as_any():
    tokens = np.arange(4, dtype=np.int32)
    trace = Trace(at_s=np.arange(4.0), tokens_in=tokens, tokens_out=tokens + 10)
    random = np.random.default_rng(3)
    drawn = [trace.draw_lengths(random) for _ in range(4000)]

    assert {tokens_out - tokens_in for tokens_in, tokens_out in drawn} == {10}
    # Four standard errors of a count of 1,000 are 110.
    assert np.bincount([tokens_in for tokens_in, _ in drawn]) == pytest.approx([1000] * 4, abs=110)
