"""`python -m erhpc.load` measures levels, searches, and judges by the clock."""

from __future__ import annotations

import json

import numpy as np
import pytest

from erhpc.results.store import read_levels, read_records
from tests import runs
from tests.standalone import TTFT_MS, find_run, load, null_expert

pytestmark = pytest.mark.timeout(200)


def test_levels_of_users_are_measured_and_reported(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[1,8]")

    run = find_run(done)
    levels, records = read_levels(run.root), runs.choose_counted(read_records(run.root))
    assert list(levels["users"]) == [1, 8]
    assert levels["valid"].all(), list(levels["invalid_reasons"])
    assert set(levels["engine"]) == {"emulated"}  # as the null expert says of itself
    assert levels["num_gpus"].isna().all()
    assert set(records["status"]) == {"ok"}
    assert set(records["stamped_by"]) == {"kernel"}
    assert levels["ttft_p50_s"].to_numpy() == pytest.approx(np.full(2, TTFT_MS / 1000), abs=0.005)
    assert "null" in done.stdout  # the model that the server lists
    assert "EMULATED" in done.stdout
    assert (run.report / "overview.png").exists()
    assert not run.key.exists()
    manifest = json.loads(run.manifest.read_text())
    assert (manifest["url"], manifest["model"], manifest["engine"]) == (url, "null", "emulated")


def test_levels_of_an_open_loop_are_measured_by_their_rate(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "rates_per_s=[20,80]", "workload.arrivals.kind=poisson", "load.processes=2")

    run = find_run(done)
    levels = read_levels(run.root)
    assert list(levels["rate_per_s"]) == [20, 80]
    assert levels["users"].isna().all()
    assert list(levels["client_workers"]) == [2, 2]
    assert set(read_records(run.root)["latency_from"]) == {"scheduled"}
    assert levels["gap_cv"].between(0.4, 1.6).all()
    assert (run.report / "overview_rate.png").exists()


def test_a_client_knows_what_it_costs_and_how_far_it_is_off(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[4]", "load.calibrate=true")

    run = find_run(done)
    calibration = json.loads(run.calibration.read_text())
    level = read_levels(run.root).iloc[0]
    assert 0 < calibration["us_per_token"] < 1000
    assert abs(calibration["ttft_error_mean_s"]) < 0.005
    assert level["client_margin"] == pytest.approx(
        calibration["capacity_tokens_per_s"] / level["output_tokens_per_s"], rel=1e-6
    )
    assert level["client_margin"] > 10


def test_a_search_finds_the_largest_number_of_users_within_the_slo(tmp_path):
    # Every answer takes TTFT_MS: a bound below it is missed at once, one above it is met up to the end.
    with null_expert() as url:
        found = load(url, tmp_path, "search.kind=users", "search.high=4", "slo.ttft_s=1.0")
        missed = load(url, tmp_path, "search.kind=users", "search.high=4", f"slo.ttft_s={TTFT_MS / 2000}")

    result = json.loads(find_run(found).search.read_text())
    assert (result["largest_met"], result["smallest_missed"]) == (4, None)
    assert list(read_levels(find_run(found).root)["users"]) == [1, 2, 4]
    assert "4 users met the SLO" in found.stdout
    assert json.loads(find_run(missed).search.read_text())["largest_met"] is None
    assert "no load met the SLO" in missed.stdout


def test_a_sweep_stops_when_the_slo_is_missed_too_often(tmp_path):
    with null_expert() as url:
        done = load(url, tmp_path, "users=[1,2,3,4]", f"slo.ttft_s={TTFT_MS / 2000}", "stop.slo_misses=2")

    assert list(read_levels(find_run(done).root)["users"]) == [1, 2]
    assert "missed the SLO" in done.stdout
