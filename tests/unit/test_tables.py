from __future__ import annotations

from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from erhpc.report.cells import format_change, format_margin, format_percent, format_rate, format_ratio, format_seconds
from erhpc.report.clients import describe_clients
from erhpc.report.loads import describe_load
from erhpc.report.searches import FoundLimit, describe_limits
from erhpc.report.series import split_series
from erhpc.report.tables import arrivals_table, summary_table
from erhpc.results.record import LEVEL_COLUMNS


def make_level(users, *, experiment="quickstart", run_id="20260101-120000-ab12", engine="vllm", **changes):
    """A level whose other columns are all null."""
    latencies = {"ttft_p50_s": 0.0852, "ttft_p99_s": 0.2, "tpot_p50_s": 0.015, "tpot_p99_s": 0.02, "e2e_p50_s": 1.234}
    level = dict.fromkeys(column.name for column in LEVEL_COLUMNS) | {
        "experiment": experiment,
        "run_id": run_id,
        "engine": engine,
        "arrivals": "closed",
        "users": users,
        "requests_ok": 17,
        "requests_failed": 3,
        "requests_cancelled": 0,
        "output_tokens_per_s": 1234.5,
        "valid": True,
        "invalid_reasons": [],
    }
    return level | latencies | changes


def make_open_level(rate_per_s, **changes):
    return make_level(None, rate_per_s=rate_per_s, **({"arrivals": "poisson"} | changes))


def render(*levels, width=80, table=summary_table):
    console = Console(width=width, file=StringIO(), color_system=None)
    console.print(table(pd.DataFrame(levels)))
    return console.file.getvalue()


def row_of(text, load):
    """The one line about `load`, single spaces between its cells."""
    (row,) = [line for line in (" ".join(line.split()) for line in text.splitlines()) if line.startswith(load)]
    return row


def series_of(*levels):
    return split_series(pd.DataFrame(levels))


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
    formats = (format_seconds, format_rate, format_ratio, format_margin, format_percent, format_change)

    assert [show(missing) for show in formats] == ["-"] * len(formats)


def test_a_large_rate_separates_thousands():
    assert [format_rate(value) for value in (3.14, 99.99, 12345.6)] == ["3.1", "100", "12,346"]


def test_a_level_is_one_row_that_fits_eighty_columns():
    text = render(make_level(1000, output_tokens_per_s=12345.6))

    assert row_of(text, "1000") == "1000 users 17 3 12,346 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s yes"


def test_an_invalid_level_is_marked_and_its_reasons_stand_below():
    text = render(make_level(1), make_level(10, valid=False, invalid_reasons=["interrupted", "users held 2.0 of 10"]))

    marked = next(line for line in text.splitlines() if "NO" in line)
    assert marked.split()[:2] == ["10", "users"]
    assert "Not to be trusted" in text
    assert "quickstart, 10 users: interrupted" in text
    assert "quickstart, 10 users: users held 2.0 of 10" in text


def test_a_table_of_valid_levels_has_no_caption():
    assert "trusted" not in render(make_level(1))


def test_emulated_levels_are_announced_above_the_table():
    assert "EMULATED: not measured on GPUs" in render(make_level(1, engine="emulated"))
    assert "EMULATED" not in render(make_level(1))


def test_predicted_levels_are_announced_above_the_table():
    assert "PREDICTED: computed, not measured" in render(make_level(1, engine="predicted"))


def test_emulated_and_predicted_runs_in_one_table_are_told_apart():
    text = render(
        make_level(1, run_id="a", engine="predicted"), make_level(1, run_id="b", engine="emulated"), width=150
    )

    assert "runs named (emulated) are EMULATED: not measured on GPUs" in text
    assert "runs named (predicted) are PREDICTED: computed, not measured" in text


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
    row = "1 user 17 3 1,234 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s yes"
    for name in names:
        assert lines[lines.index(f"{name} (emulated), 20260101-120000-ab12") + 1] == row
    measured = lines[lines.index("baseline_llama3_8b_tp8, 20260101-120000-ab12") + 1]
    assert measured == "1000 users 12345 3 123,457 85.2 ms 200 ms 15.0 ms 20.0 ms 12.3 s yes"


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

    assert "quickstart, a, 1 user: died" in text
    assert "baseline, 1 user: died" in text


def test_a_load_is_users_or_a_rate_or_what_a_trace_brought():
    levels = [
        make_level(1),
        make_level(100),
        make_open_level(12.5, due_per_s=12.1),
        make_open_level(2000.0),
        make_open_level(None, due_per_s=3.2104, arrivals="trace"),
        make_open_level(None, arrivals="trace"),
    ]

    loads = ["1 user", "100 users", "12.5/s", "2000/s", "trace 3.21/s", "trace"]
    assert [describe_load(level) for level in levels] == loads
    assert [describe_load(level) for level in pd.DataFrame(levels).to_dict("records")] == loads
    text = render(*levels)
    assert all(row_of(text, f"{load} 17 3") for load in loads)


def test_a_share_below_one_is_never_shown_as_all():
    shares = {1.0: "100", 0.99996: "99.9", 0.57: "57", 0.123456: "12.3", 0.0: "0"}

    assert {share: format_percent(share) for share in shares} == shares


def test_with_an_slo_the_table_says_what_share_met_it():
    text = render(make_level(10, slo_attainment=0.9876), make_level(20), width=100)

    assert row_of(text, "10 users") == "10 users 17 3 1,234 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s 98.7 yes"
    assert row_of(text, "20 users").endswith("1.23 s - yes")
    assert "SLO" not in render(make_level(10), width=100)


@pytest.mark.parametrize(
    ("known", "cell"),
    [
        ({"client_cpu_share": 0.34, "client_margin": 4.08}, "34 %, 4.1x"),
        ({"client_cpu_share": 0.34}, "34 %, -"),
        ({"client_margin": 51.2}, "-, 51x"),
        ({}, "-"),
    ],
)
def test_the_clients_share_of_a_core_and_margin_stand_beside_the_level(known, cell):
    text = render(make_level(10, **known), make_level(20, client_cpu_share=0.5), width=100)

    assert row_of(text, "10 users") == f"10 users 17 3 1,234 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s {cell} yes"


def test_what_no_level_knows_of_its_client_has_no_column():
    assert "CPU" not in render(make_level(10), width=200)


@pytest.mark.parametrize("width", [80, 90, 100, 200])
def test_a_narrow_console_costs_columns_but_no_digit_and_no_verdict(width):
    changes = {"requests_ok": 12345, "output_tokens_per_s": 123456.7, "slo_attainment": 0.999, "client_cpu_share": 0.34}
    text = render(make_level(1000, **changes), make_level(2000, valid=False), width=width)

    kept = "1000 users 12345 3 123,457 85.2 ms 200 ms 15.0 ms 20.0 ms 1.23 s 99.9"
    assert row_of(text, "1000 users") == f"{kept} 34 %, - yes" if width > 90 else f"{kept} yes"
    assert row_of(text, "2000 users").endswith("NO")
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_client_that_was_the_bottleneck_is_listed_like_any_other_reason():
    reason = "client-bound: a client process used 97 % of its core (limit 85 %)"

    text = render(make_open_level(12.5, valid=False, invalid_reasons=[reason]), width=120)

    assert f"  quickstart, 12.5/s: {reason}" in text


def test_a_server_of_others_is_named_so_and_bears_no_mark():
    text = render(make_level(1, engine="external"))

    assert "quickstart (external)" in text
    assert "EMULATED" not in text
    several = render(make_level(1, engine="external", run_id="a"), make_level(1, run_id="b"), width=120)
    assert "quickstart (external), a" in several
    assert "quickstart, b" in several


def test_a_line_below_the_table_says_how_much_room_the_client_had():
    quiet = {"client_cpu_share": 0.12, "client_margin": 9.0, "kernel_stamped_share": 1.0}
    busy = {"client_cpu_share": 0.41, "client_margin": 2.41, "kernel_stamped_share": 1.0}

    lines = describe_clients(series_of(make_level(10, **quiet), make_level(100, **busy), make_level(50)))

    assert lines == ["client: at most 41 % of a core, 2.4x margin, arrivals stamped by the kernel"]


def test_each_run_has_its_own_line_about_its_client():
    first = make_level(10, run_id="a", client_workers=4, client_cpu_share=0.3, kernel_stamped_share=0.0)
    lines = describe_clients(
        series_of(first, make_level(10, run_id="b"), make_level(10, run_id="c", client_margin=3.0))
    )

    assert lines == [
        "client of quickstart, a: 4 processes, at most 30 % of a core, margin not calibrated, "
        "arrivals stamped by the event loop",
        "client of quickstart, c: 3.0x margin",
    ]


def test_requests_that_the_kernel_did_not_stamp_are_told():
    levels = [
        make_level(1, requests_ok=1, requests_failed=0, kernel_stamped_share=0.0),
        make_level(9, requests_ok=1999, requests_failed=0, kernel_stamped_share=1.0),
    ]

    (line,) = describe_clients(series_of(*levels))

    assert line == "client: arrivals stamped by the kernel for 99.9 % of the requests, else by the event loop"


AUDIT = {
    "due_per_s": 12.31,
    "gap_cv": 1.012,
    "dispersion_index": 0.9876,
    "arrival_ks_p": 0.4321,
    "send_late_p99_s": 0.00034,
    "in_flight_start": 5,
    "in_flight_end": 125,
}


def test_an_open_loop_shows_how_its_requests_came_beside_what_was_asked():
    text = render(make_open_level(12.5, **AUDIT), table=arrivals_table)

    assert row_of(text, "12.5/s") == "12.5/s poisson 12.3 1.01 0.988 0.432 0.34 ms +120"


def test_an_audit_that_says_nothing_is_dashes():
    assert row_of(render(make_open_level(12.5), table=arrivals_table), "12.5/s") == "12.5/s poisson - - - - - -"


@pytest.mark.parametrize(("end", "text"), [(5, "0"), (2, "-3"), (12005, "+12,000")])
def test_a_backlog_is_a_change_with_its_sign(end, text):
    table = render(make_open_level(12.5, **AUDIT | {"in_flight_end": end}), table=arrivals_table)

    assert row_of(table, "12.5/s").split()[-1] == text


def test_closed_loops_have_no_table_of_arrivals():
    assert arrivals_table(pd.DataFrame([make_level(10)])) is None
    both = render(make_level(10, run_id="a"), make_open_level(12.5, run_id="b", **AUDIT), table=arrivals_table)
    assert "users" not in both


def test_arrivals_at_emulated_experts_are_announced_too():
    assert "EMULATED: not measured on GPUs" in render(make_open_level(1.0, engine="emulated"), table=arrivals_table)


@pytest.mark.parametrize(
    ("kind", "met", "missed", "sentence"),
    [
        ("users", 560, 608.0, "560 users met the SLO, 608 users missed it (2 levels: why)"),
        ("rate", 12.5, None, "12.5/s met the SLO (2 levels: why)"),
        ("users", None, 1, "no load met the SLO, 1 user missed it (2 levels: why)"),
        ("rate", None, None, "no load met the SLO (2 levels: why)"),
    ],
)
def test_a_search_is_told_in_one_sentence(kind, met, missed, sentence):
    limit = FoundLimit(kind=kind, largest_met=met, smallest_missed=missed, levels=[{}, {}], reason="why")
    one, two = make_level(10, run_id="a"), make_level(10, run_id="b")

    assert describe_limits({"a": limit}, series_of(one)) == [f"search: {sentence}"]
    assert describe_limits({"a": limit}, series_of(one, two)) == [f"search of quickstart, a: {sentence}"]


def test_the_table_of_arrivals_says_from_when_latencies_count():
    assert "Latencies of open loops count from the scheduled time." in render(
        make_open_level(1.0), table=arrivals_table
    )
