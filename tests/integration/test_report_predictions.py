"""What was predicted of a run is shown beside what was measured, and never as measured."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from erhpc.errors import SchemaMismatch
from erhpc.forecast.saving import save_prediction
from erhpc.report.__main__ import main
from erhpc.report.figures import PREDICTED_LABEL, PREDICTED_NOTE, draw_overview
from erhpc.report.predictions import PREFIX, load_predictions, match_predictions
from erhpc.report.runs import PREDICTED_MARK, load_levels
from erhpc.results.record import PREDICTION_COLUMNS
from erhpc.results.store import read_levels, read_prediction
from tests.unit.experiments import plan

from .synthetic_results import write_run

OVERRIDES = ("engine=emulated", "cluster=local", "workload=synthetic", "predict.draws=2", "workload.users=[1,10]")


@pytest.fixture
def run(tmp_path):
    """A run of three levels, of which the first two were predicted."""
    written = write_run(tmp_path / "runs" / "llama3_70b_tp4" / "one", experiment="llama3_70b_tp4", users=(1, 10, 20))
    assert save_prediction(plan("llama3_70b_tp4", *OVERRIDES), written, datetime(2026, 1, 1, tzinfo=UTC)) is None
    return written


def find_texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_a_prediction_is_saved_beside_the_plan_with_the_columns_of_a_level(run):
    saved = read_prediction(run.root)

    assert list(saved.columns) == [column.name for column in PREDICTION_COLUMNS]
    assert set(saved["engine"]) == {"predicted"}
    assert list(saved["users"]) == [1, 10]
    assert (saved["ttft_p50_low_s"] < saved["ttft_p50_s"]).all()
    assert (saved["output_tokens_high_per_s"] > saved["output_tokens_per_s"]).all()
    assert set(read_levels(run.root)["engine"]) == {"emulated"}  # it is no level of the run


def test_measured_levels_are_matched_with_what_was_predicted_for_their_load(run):
    levels, predictions = load_levels([run]), load_predictions([run])

    matched = match_predictions(levels, predictions)

    assert list(matched["users"]) == [1, 10]
    assert list(matched[PREFIX + "ttft_p50_s"]) == list(predictions["ttft_p50_s"])


def test_the_report_shows_both_and_their_ratio(run, capsys):
    assert main([str(run.root)]) == 0

    printed = capsys.readouterr().out
    table = printed.partition("prediction beside measurement")[2]
    measured, predicted = read_levels(run.root)["output_tokens_per_s"][0], read_prediction(run.root)
    assert PREDICTED_MARK in table
    assert f"{measured / predicted['output_tokens_per_s'][0]:.3g}" in table
    assert table.count(" users ") == 1  # of 20 users nothing was predicted


def test_every_panel_says_which_line_is_predicted(run):
    levels, predictions = load_levels([run]), load_predictions([run])

    texts = find_texts(draw_overview(levels, predictions=predictions))

    assert texts.count(PREDICTED_NOTE) == 4
    assert PREDICTED_LABEL in texts
    assert PREDICTED_NOTE not in find_texts(draw_overview(levels))


def test_a_run_without_a_prediction_is_reported_without(tmp_path, capsys):
    run = write_run(tmp_path / "run", users=(1,))

    assert load_predictions([run]) is None
    assert main([str(run.root)]) == 0
    assert "prediction" not in capsys.readouterr().out


def test_a_run_that_cannot_be_predicted_starts_all_the_same_and_says_why(tmp_path):
    run = write_run(tmp_path / "run", users=(1,))

    reason = save_prediction(plan("vllm_cpu_tiny"), run, datetime(2026, 1, 1, tzinfo=UTC))

    assert "this plan is for CPUs" in reason
    assert not run.prediction.exists()


def test_nothing_is_predicted_where_that_is_not_wanted(tmp_path):
    run = write_run(tmp_path / "run", users=(1,))

    unwanted = plan("llama3_70b_tp4", *OVERRIDES, "predict.enabled=false")
    assert save_prediction(unwanted, run, datetime(2026, 1, 1, tzinfo=UTC)) is None
    assert not run.prediction.exists()


def test_a_prediction_of_another_version_is_refused(tmp_path):
    run = write_run(tmp_path / "run", users=(1,))
    pd.DataFrame({"users": [1]}).to_parquet(run.prediction)

    with pytest.raises(SchemaMismatch):
        load_predictions([run])
