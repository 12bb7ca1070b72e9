from __future__ import annotations

from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from erhpc.report.tables import format_rate, format_seconds, summary_table


def make_level(users, *, experiment="quickstart", run_id="20260101-120000-ab12", engine="vllm", **changes):
    latencies = {"ttft_p50_s": 0.0852, "ttft_p99_s": 0.2, "tpot_p50_s": 0.015, "tpot_p99_s": 0.02, "e2e_p50_s": 1.234}
    level = {
        "experiment": experiment,
        "run_id": run_id,
        "engine": engine,
        "users": users,
        "requests_ok": 17,
        "requests_failed": 3,
        "output_tokens_per_s": 1234.5,
        "valid": True,
        "invalid_reasons": [],
    }
    return level | latencies | changes


def render(*levels, width=80):
    console = Console(width=width, file=StringIO(), color_system=None)
    console.print(summary_table(pd.DataFrame(levels)))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0.0, "0.00 ms"),
        (0.00123, "1.23 ms"),
        (0.0852, "85.2 ms"),
        (0.9994, "999 ms"),
        (1.0, "1.00 s"),
        (123.4, "123 s"),
    ],
)
def test_a_duration_has_three_digits_and_the_unit_that_suits_it(value_s, text):
    assert format_seconds(value_s) == text


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_what_was_not_measured_is_a_dash_and_never_zero(missing):
    assert (format_seconds(missing), format_rate(missing)) == ("-", "-")


def test_a_large_rate_separates_thousands():
    assert [format_rate(value) for value in (3.14, 99.99, 12345.6)] == ["3.1", "100", "12,346"]


def test_a_level_is_one_row_that_fits_eighty_columns():
    text = render(make_level(1000, output_tokens_per_s=12345.6))

    (row,) = [line for line in text.splitlines() if "1000" in line]
    assert " ".join(row.split()) == "1000 17 3 12,346 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s yes"


def test_an_invalid_level_is_marked_and_its_reasons_stand_below():
    text = render(make_level(1), make_level(10, valid=False, invalid_reasons=["interrupted", "users held 2.0 of 10"]))

    marked = next(line for line in text.splitlines() if "NO" in line)
    assert marked.split()[0] == "10"
    assert "Not to be trusted" in text
    assert "quickstart, 10 users: interrupted" in text
    assert "quickstart, 10 users: users held 2.0 of 10" in text


def test_a_table_of_valid_levels_has_no_caption():
    assert "trusted" not in render(make_level(1))


def test_emulated_levels_are_announced_above_the_table():
    assert "EMULATED: not measured on GPUs" in render(make_level(1, engine="emulated"))
    assert "EMULATED" not in render(make_level(1))


def test_emulated_runs_beside_measured_ones_are_named_one_by_one():
    text = render(
        make_level(1, experiment="measured", run_id="a"), make_level(1, run_id="b", engine="emulated"), width=120
    )

    assert "runs named (emulated) are EMULATED: not measured on GPUs" in text
    assert "quickstart (emulated)" in text
    assert "measured (emulated)" not in text


def test_runs_of_the_same_experiment_are_told_apart_by_their_folder():
    text = render(make_level(1, run_id="20260101-a"), make_level(1, run_id="20260102-b"))

    assert "quickstart, 20260101-a" in text
    assert "quickstart, 20260102-b" in text


def test_several_runs_fit_eighty_columns_each_below_a_line_with_its_name():
    names = ("llama3_70b_tp4_2nodes", "baseline_llama3_8b_tp8")
    text = render(
        *(make_level(1, experiment=name, run_id="20260101-120000-ab12", engine="emulated") for name in names),
        make_level(1000, experiment=names[1], requests_ok=12345, output_tokens_per_s=123456.7, e2e_p50_s=12.34),
    )

    lines = [" ".join(line.split()) for line in text.splitlines()]
    row = "1 17 3 1,234 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s yes"
    for name in names:
        assert lines[lines.index(f"{name} (emulated), 20260101-120000-ab12") + 1] == row
    measured = lines[lines.index("baseline_llama3_8b_tp8, 20260101-120000-ab12") + 1]
    assert measured == "1000 12345 3 123,457 85.2 ms 200 ms 15.0 ms 20.0 ms 12.3 s yes"


def test_the_columns_of_all_runs_line_up():
    text = render(make_level(1, run_id="a"), make_level(1000, run_id="b", output_tokens_per_s=123456.7))

    assert len({line.rstrip().rindex("yes") for line in text.splitlines() if "yes" in line}) == 1


def test_reasons_name_the_run_where_an_experiment_has_several():
    died = {"valid": False, "invalid_reasons": ["died"]}
    text = render(
        make_level(1, run_id="a", **died),
        make_level(1, run_id="b"),
        make_level(1, run_id="c", experiment="baseline", **died),
    )

    assert "quickstart, a, 1 users: died" in text
    assert "baseline, 1 users: died" in text
