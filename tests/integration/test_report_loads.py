"""Reports on open loops, servers of others, SLOs and searches; closed loops as such are `test_report`'s."""

from __future__ import annotations

import pandas as pd
import pytest

from erhpc.config import SloConfig
from erhpc.report.__main__ import main
from erhpc.report.figures import draw_expert_share, draw_overview, write_figures
from erhpc.report.runs import MARK, find_runs, load_levels
from erhpc.report.searches import list_largest_loads, load_limits
from erhpc.results.record import LEVEL_COLUMNS

from .open_loop_results import write_open_run, write_search
from .synthetic_results import write_run

SLO = SloConfig(ttft_s=0.2)
UNKNOWN = {
    column.name: None
    for column in LEVEL_COLUMNS
    if column.kind in ("float64", "int32") and column.name not in ("level", "users", "requests_ok", "requests_failed")
}


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def titles_of(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def lines_of(axes):
    """The curves of a panel, as lists of x and y."""
    return [
        (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines if line.get_linestyle() == "-"
    ]


def report(*folders, output):
    assert main([*(str(folder) for folder in folders), "--output", str(output)]) == 0
    return sorted(path.name for path in output.iterdir())


def test_an_open_loop_is_drawn_against_the_rate_that_was_asked_for(tmp_path):
    levels = load_levels([write_open_run(tmp_path / "run", rates_per_s=(12.5, 2.0, 30.0))])

    overview = draw_overview(levels)

    assert {axes.get_xlabel() for axes in overview.axes} == {"offered load: requests per second"}
    assert [label.get_text() for label in overview.axes[0].get_xticklabels()] == ["2", "12.5", "30"]
    ((loads, throughput),) = lines_of(overview.axes[0])
    assert loads == [2.0, 12.5, 30.0]
    assert throughput == sorted(levels["output_tokens_per_s"])


def test_an_open_loop_says_that_latencies_count_from_the_scheduled_time(tmp_path):
    opened = draw_overview(load_levels([write_open_run(tmp_path / "open")]))
    closed = draw_overview(load_levels([write_run(tmp_path / "closed")]))

    assert [title for title in titles_of(opened) if "from the scheduled time" in title] == [
        "TTFT from the scheduled time, p50 and p99",
        "E2E from the scheduled time, p50",
    ]
    assert not [text for text in texts_of(closed) if "scheduled" in text]


def test_a_trace_at_its_own_rate_is_drawn_where_its_requests_were_due(tmp_path, capsys):
    run = write_open_run(tmp_path / "run", rates_per_s=(None,))
    due_per_s = load_levels([run])["due_per_s"].item()

    assert lines_of(draw_overview(load_levels([run])).axes[0])[0][0] == [due_per_s]
    report(run.root, output=tmp_path / "out")
    assert f"trace {due_per_s:.3g}/s" in capsys.readouterr().out


def test_closed_and_open_loops_share_a_report_but_no_axis(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a")
    write_open_run(tmp_path / "runs" / "b")

    files = report(tmp_path / "runs", output=tmp_path / "out")

    assert files == ["expert_share.png", "overview.png", "overview_rate.png"]
    printed = capsys.readouterr().out
    assert "40 users" in printed
    assert "12.5/s" in printed
    with pytest.raises(ValueError, match="3 levels of closed loops and 3 of open ones have no common axis"):
        draw_overview(load_levels(find_runs([tmp_path / "runs"])))


def test_a_figure_of_an_earlier_report_does_not_outlive_its_levels(tmp_path):
    closed, opened = write_run(tmp_path / "a"), write_open_run(tmp_path / "b")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").touch()

    assert report(closed.root, output=tmp_path / "out") == ["expert_share.png", "mine.png", "overview.png"]
    assert report(opened.root, output=tmp_path / "out") == ["mine.png", "overview_rate.png"]


def test_a_server_of_others_is_shown_as_such_and_bears_no_mark(tmp_path, capsys):
    run = write_open_run(tmp_path / "run")
    levels = load_levels([run])

    texts = texts_of(draw_overview(levels))

    assert levels["num_gpus"].isna().all()
    assert "chat (external)" in texts
    assert "External server under load: chat, run run" in texts
    assert not [text for text in texts if "EMULATED" in text or "Expert Router" in text]
    report(run.root, output=tmp_path / "out")
    assert "chat (external)" in capsys.readouterr().out


def test_an_open_loop_on_emulated_experts_bears_the_mark_in_every_panel(tmp_path):
    texts = texts_of(draw_overview(load_levels([write_open_run(tmp_path / "run", engine="emulated", slo=SLO)])))

    assert MARK in texts
    assert texts.count("EMULATED") == 6


def test_experts_that_are_not_known_are_no_missing_answers(tmp_path):
    runs = [write_open_run(tmp_path / "a"), write_run(tmp_path / "b")]

    shares = draw_expert_share(load_levels(runs))

    assert texts_of(shares).count("experts not known") == 3
    assert "no answer" not in texts_of(shares)
    assert [axes.get_xlabel() for axes in shares.axes] == ["offered load: requests per second", "concurrent users"]


def test_the_arrivals_and_the_client_are_reported_below_the_table(tmp_path, capsys):
    run = write_open_run(tmp_path / "run", rates_per_s=(12.5, 60.0), client_cpu_share=0.413, client_margin=2.44)
    (_, backlog) = load_levels([run])["in_flight_end"] - load_levels([run])["in_flight_start"]

    report(run.root, output=tmp_path / "out")

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table = next(index for index, line in enumerate(lines) if line.startswith("12.5/s"))
    client = lines.index("client: at most 41 % of a core, 2.4x margin, arrivals stamped by the kernel")
    arrivals = lines.index("arrivals (external)")
    assert table < client < arrivals
    assert lines[table].endswith("41 %, 2.4x yes")
    assert backlog > 50
    (overloaded,) = [line for line in lines[arrivals:] if line.startswith("60/s poisson")]
    assert overloaded.endswith(f"+{backlog}")


def test_with_an_slo_goodput_is_drawn_beside_throughput_and_what_share_met_it(tmp_path):
    levels = load_levels([write_open_run(tmp_path / "run", slo=SLO)])

    overview = draw_overview(levels)

    assert titles_of(overview)[:2] == [
        "Throughput: answer tokens per second",
        "Goodput: requests per second that met the SLO",
    ]
    assert lines_of(overview.axes[1])[0][1] == levels["goodput_per_s"].tolist()
    assert titles_of(overview)[-1] == "SLO: share of requests that met it"
    assert lines_of(overview.axes[-1])[0][1] == levels["slo_attainment"].tolist()
    assert overview.axes[-1].get_yscale() == "linear"


def test_a_share_of_zero_is_drawn_and_a_goodput_of_zero_is_said(tmp_path):
    levels = load_levels([write_open_run(tmp_path / "run", slo=SLO, goodput_per_s=0.0, slo_attainment=0.0)])

    overview = draw_overview(levels)

    assert "0 at every level" in [text.get_text() for text in overview.axes[1].texts]
    assert lines_of(overview.axes[-1])[0][1] == [0.0] * 3


@pytest.mark.parametrize("kind", ["users", "rate"])
def test_what_a_search_found_is_said_and_marked_in_every_panel(tmp_path, capsys, kind):
    run = write_run(tmp_path / "run") if kind == "users" else write_open_run(tmp_path / "run")
    write_search(run, kind=kind, met=10, missed=40.0, num_levels=3)

    report(run.root, output=tmp_path / "out")

    met, missed = ("10 users", "40 users") if kind == "users" else ("10/s", "40/s")
    sentence = f"search: {met} met the SLO, {missed} missed it (3 levels: the two are as near as asked)"
    assert sentence in capsys.readouterr().out.splitlines()
    overview = draw_overview(load_levels([run]), list_largest_loads(load_limits([run])))
    for axes in overview.axes:
        assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == ":"] == [[10.0, 10.0]]
    assert "largest load that met the SLO: 10" in texts_of(overview)


def test_searches_of_several_runs_bear_their_names_and_colours(tmp_path, capsys):
    runs = [write_run(tmp_path / "runs" / name, experiment=name) for name in ("a", "b", "c")]
    write_search(runs[1], kind="users", met=None, missed=1)
    write_search(runs[2], kind="users", met=10, missed=40)

    report(tmp_path / "runs", output=tmp_path / "out")

    printed = capsys.readouterr().out
    assert "search of b (emulated): no load met the SLO, 1 user missed it" in printed
    assert "search of c (emulated): 10 users met the SLO" in printed
    assert "search of a" not in printed
    throughput = draw_overview(load_levels(runs), list_largest_loads(load_limits(runs))).axes[0]
    colours = {line.get_linestyle(): line.get_color() for line in throughput.lines}
    assert colours[":"] == [line for line in throughput.lines if line.get_linestyle() == "-"][-1].get_color()


def test_a_run_keeps_its_search_when_its_folder_is_renamed(tmp_path):
    run = write_run(tmp_path / "run")
    write_search(run, kind="users", met=10, missed=40)

    run.root.rename(tmp_path / "the-best-one")

    assert list(load_limits(find_runs([tmp_path / "the-best-one"]))) == ["run"]


def test_a_damaged_search_is_named(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    run.search.write_text('{"kind": "moon"}')

    assert main([str(run.root)]) == 2

    error = capsys.readouterr().err
    assert error.startswith(f"InputError: {run.search} holds no result of a search")
    assert error.count("\n") == 1


@pytest.mark.parametrize("write", [write_run, write_open_run])
def test_a_level_of_which_nothing_is_known_can_be_reported(tmp_path, write):
    levels = load_levels([write(tmp_path / "run")])
    unknown = levels.assign(**{name: pd.array([None] * len(levels), dtype="Float64") for name in UNKNOWN})

    write_figures(unknown, tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == (
        ["expert_share.png", "overview.png"] if write is write_run else ["overview_rate.png"]
    )
    assert texts_of(draw_overview(unknown)).count("no values") == 4
