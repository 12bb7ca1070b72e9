from __future__ import annotations

import struct
from dataclasses import replace
from math import isnan

import pytest

from erhpc.report.__main__ import main
from erhpc.report.figures import draw_expert_share, draw_overview
from erhpc.report.runs import MARK, PREDICTED_MARK, find_runs, load_levels
from erhpc.report.scales import choose_digits, choose_ticks
from erhpc.results.paths import RunPaths
from erhpc.results.record import LevelIdentity
from erhpc.results.store import append_level, empty_results

from .synthetic_results import make_part, summarise, write_run


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def levels_of(*runs):
    return load_levels(list(runs))


def png_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


def test_one_run_is_reported_into_its_own_folder(tmp_path, capsys):
    run = write_run(tmp_path / "runs" / "quickstart" / "20260101-120000-ab12")

    assert main([str(run.root)]) == 0

    printed = capsys.readouterr().out
    assert MARK in printed
    for name in ("overview.png", "expert_share.png"):
        assert str(run.report / name) in printed
        assert min(png_size(run.report / name)) > 500


def test_a_folder_of_runs_means_every_run_below_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "quickstart" / "20260101-120000-ab12", users=(1, 4))
    write_run(tmp_path / "runs" / "baseline" / "20260101-130000-cd34", experiment="baseline", engine="vllm", users=(1,))

    assert main(["runs"]) == 0

    printed = capsys.readouterr().out
    assert "quickstart (emulated)" in printed
    assert "20260101-130000-cd34" in printed
    assert (tmp_path / "report" / "overview.png").exists()


def test_figures_go_where_the_user_says(tmp_path):
    run = write_run(tmp_path / "run", users=(1,))

    assert main([str(run.root), "--output", str(tmp_path / "elsewhere")]) == 0

    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["expert_share.png", "overview.png"]
    assert not run.report.exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing", "missing is no folder"), ("bare", "bare holds no run"), ("waiting", "No levels in")],
)
def test_nothing_to_report_is_said_in_one_line(tmp_path, capsys, name, problem):
    (tmp_path / "bare").mkdir()
    (tmp_path / "waiting").mkdir()
    empty_results(RunPaths(tmp_path / "waiting"))

    assert main([str(tmp_path / name)]) == 2

    error = capsys.readouterr().err
    assert error.startswith("InputError: ")
    assert problem in error
    assert error.count("\n") == 1


def test_a_run_that_is_named_twice_or_linked_is_reported_once(tmp_path):
    run = write_run(tmp_path / "runs" / "20260101-120000-ab12", users=(1,))
    (tmp_path / "runs" / "latest").symlink_to(run.root)

    assert [found.root for found in find_runs([tmp_path / "runs", run.root])] == [run.root]


def test_a_run_without_levels_does_not_hide_the_others(tmp_path):
    finished = write_run(tmp_path / "finished", users=(1, 2))
    waiting = RunPaths(tmp_path / "waiting")
    waiting.root.mkdir()
    empty_results(waiting)

    assert levels_of(finished, waiting)["users"].tolist() == [1, 2]


def test_every_figure_of_emulated_results_carries_the_mark_in_every_panel(tmp_path):
    levels = levels_of(write_run(tmp_path / "run", users=(1, 4)))

    overview, shares = texts_of(draw_overview(levels)), texts_of(draw_expert_share(levels))

    assert MARK in overview
    assert MARK in shares
    assert (overview.count("EMULATED"), shares.count("EMULATED")) == (4, 1)
    assert "quickstart (emulated)" in overview


def test_predicted_results_never_look_like_measured_ones(tmp_path):
    predicted = write_run(tmp_path / "a", engine="predicted", users=(1, 4))
    measured = write_run(tmp_path / "b", engine="vllm", users=(1, 4))

    alone = [texts_of(draw(levels_of(predicted))) for draw in (draw_overview, draw_expert_share)]
    beside = texts_of(draw_overview(levels_of(predicted, measured)))

    assert all(PREDICTED_MARK in texts for texts in alone)
    assert [texts.count("PREDICTED") for texts in alone] == [4, 1]
    assert beside.count("PARTLY\nPREDICTED") == 4
    assert f"Series named (predicted) are {PREDICTED_MARK}" in beside
    assert {"quickstart (predicted), a", "quickstart, b"} <= set(beside)


def test_measured_results_carry_no_mark(tmp_path):
    levels = levels_of(write_run(tmp_path / "run", engine="vllm", users=(1, 4)))

    texts = [*texts_of(draw_overview(levels)), *texts_of(draw_expert_share(levels))]

    assert not [text for text in texts if "EMULATED" in text or "emulated" in text]


def test_emulated_and_measured_results_in_one_figure_are_told_apart(tmp_path):
    levels = levels_of(
        write_run(tmp_path / "a", users=(1, 4)), write_run(tmp_path / "b", engine="vllm", users=(1, 4), speed=2.0)
    )

    texts = texts_of(draw_overview(levels))

    assert f"Series named (emulated) are {MARK}" in texts
    assert {"quickstart (emulated), a", "quickstart, b"} <= set(texts)


def test_runs_of_one_experiment_have_a_colour_and_a_legend_entry_each(tmp_path):
    runs = [write_run(tmp_path / name, users=(1, 4), speed=speed) for name, speed in (("a", 1.0), ("b", 2.0))]
    other = write_run(tmp_path / "c", experiment="baseline", users=(1, 4))

    overview = draw_overview(levels_of(*runs, other))

    entries = {handle.get_label(): handle.get_color() for handle in overview.legends[0].legend_handles}
    names = ["quickstart (emulated), a", "quickstart (emulated), b", "baseline (emulated)"]
    assert list(entries)[:3] == names
    assert len({entries[name] for name in names}) == 3
    drawn = [line for line in overview.axes[0].lines if line.get_linestyle() == "-"]
    assert [line.get_color() for line in drawn] == [entries[name] for name in names]


def test_an_invalid_level_is_drawn_hollow(tmp_path):
    levels = levels_of(write_run(tmp_path / "run", users=(1, 4, 9), reasons=("replica math-0 died",)))

    throughput = draw_overview(levels).axes[0]

    hollow = [line for line in throughput.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in hollow] == [[9.0]]


def write_answerless_run(folder, users=(3,)):
    paths = RunPaths(folder)
    for level, count in enumerate(users):
        identity = LevelIdentity(
            experiment="quickstart", run_id="a", engine="vllm", level=level, users=count, num_replicas=4, num_gpus=8
        )
        row = summarise(identity, [replace(make_part(1), records=[])], reasons=["replica law-0 died"])
        append_level(paths, identity, [], row)
    return paths


def test_a_level_without_any_answer_can_be_reported(tmp_path, capsys):
    run = write_answerless_run(tmp_path)

    assert main([str(run.root)]) == 0

    assert "quickstart, 3 users: replica law-0 died" in capsys.readouterr().out


def test_panels_without_any_answer_say_so_and_have_no_value_axis(tmp_path):
    overview = draw_overview(levels_of(write_answerless_run(tmp_path, users=(1, 10))))

    assert texts_of(overview).count("no answers") == 4
    assert [axes.get_yticks().tolist() for axes in overview.axes] == [[]] * 4


def test_a_level_of_zero_tokens_per_second_leaves_a_gap_in_the_line(tmp_path):
    levels = levels_of(write_run(tmp_path / "run", users=(1, 4, 9)))
    levels.loc[levels["users"] == 4, "output_tokens_per_s"] = 0.0

    throughput = draw_overview(levels).axes[0]

    drawn = throughput.lines[0].get_ydata()
    assert [value > 0 for value in drawn] == [True, False, True]
    assert isnan(drawn[1])
    assert throughput.get_ylim()[0] > 1


def test_a_few_levels_stand_in_the_middle_of_the_panel_of_shares(tmp_path):
    for users in ((1,), (1, 10), (1, 10, 100)):
        shares = draw_expert_share(levels_of(write_run(tmp_path / str(len(users)), users=users))).axes[0]

        low, high = shares.get_xlim()
        assert low + high == pytest.approx(len(users) - 1)


def test_the_mark_on_bars_lets_them_be_seen(tmp_path):
    shares = draw_expert_share(levels_of(write_run(tmp_path / "run", users=(1, 4))))

    (mark,) = [text for text in shares.axes[0].texts if text.get_text() == "EMULATED"]
    assert mark.get_bbox_patch() is None
    assert mark.get_alpha() < 0.4


def test_the_levels_of_the_run_are_the_ticks_of_the_axis(tmp_path):
    levels = levels_of(write_run(tmp_path / "run", users=(1, 3, 7)))

    axes = draw_overview(levels).axes[0]

    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "7"]


def test_levels_too_close_to_be_labelled_keep_the_larger_one():
    assert choose_ticks([1, 2, 900, 950, 1000]) == [1, 2, 1000]


@pytest.mark.parametrize("low", [1.0, 1.7, 2.3, 4.6, 7.0, 9.3])
@pytest.mark.parametrize("span", [1.3, 1.9, 4.0, 60.0, 3000.0])
def test_every_axis_bears_at_least_two_labels(low, span):
    digits = choose_digits(span)

    labels = [digit * 10**power for power in range(6) for digit in digits if low <= digit * 10**power <= low * span]

    assert len(labels) >= 2
