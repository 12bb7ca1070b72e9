"""Forecasts of a plan: levels, intervals, knees and their causes, SLO, routing, open loops, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from erhpc.config import PredictConfig, SloConfig, WorkloadConfig
from erhpc.errors import ConfigError, InputError
from erhpc.forecast.causes import find_knee
from erhpc.forecast.demand import AskedSource
from erhpc.forecast.outcome import read_level
from erhpc.forecast.prediction import list_load_points, predict
from erhpc.forecast.rendering import MARK, draw_forecast
from erhpc.forecast.routes import plan_routes
from erhpc.plan.levels import LoadPoint
from erhpc.results.record import BOUNDED_COLUMNS
from erhpc.results.summary import summarise_level
from erhpc.twin.records import Texts, Window, find_window, identify_level, to_part
from tests.unit.experiments import LAPTOP, plan
from tests.unit.test_predicted_records import predict as simulate_some

HERE = ("engine=emulated", "cluster=local", "workload=synthetic", "predict.draws=2")


def forecast(name, *overrides, classifier=None):
    return predict(plan(name, *HERE, *overrides), classifier)


def show(renderable):
    file = StringIO()
    Console(width=300, file=file).print(renderable)
    return file.getvalue()


@dataclass
class Found:
    cluster: int | None
    distances2: np.ndarray


class Lopsided:
    """A classifier of four clusters that finds the first in seven texts of ten."""

    num_clusters = 4

    def __init__(self) -> None:
        self.seen = set()

    def classify(self, text):
        self.seen.add(text)
        number = len(self.seen) % 10
        return Found(0 if number < 7 else number - 6, np.zeros(4, dtype=np.float32))


def test_every_level_has_its_numbers_within_an_interval():
    told = forecast("llama3_70b_tp4", "workload.users=[1,10,100]")

    assert [level.point for level in told.levels] == [LoadPoint(users=1), LoadPoint(users=10), LoadPoint(users=100)]
    for level in told.levels:
        assert set(level.bounds) == set(BOUNDED_COLUMNS)
        for name, (low, high) in level.bounds.items():
            assert 0 < low < level.row[name] < high < 10 * low


def test_the_same_seed_predicts_the_same():
    one, other = (forecast("llama3_70b_tp4", "workload.users=[10]") for _ in range(2))

    assert one.levels == other.levels


def test_a_predicted_level_reads_as_its_records_would():
    simulated = simulate_some()
    found = find_window(simulated)
    # Not at the very moment of an answer's end, which records round to nanoseconds.
    window = Window(start_s=found.start_s + 1e-4, end_s=found.end_s - 1e-4)
    plain = read_level(simulated, window, SloConfig())
    slo = SloConfig(ttft_s=plain["ttft_p90_s"], tpot_s=plain["tpot_p50_s"])
    part = to_part(simulated, window, Texts(prompt_ids=["a", "b", "c"], domains=[""] * 3), started_utc="2026")
    identity = identify_level(experiment="x", run_id="r", level=0, users=5, num_replicas=3, num_gpus=3)
    recorded = summarise_level(
        identity,
        [part],
        gateway_lag_p99_s=None,
        engine_lag_p99_s=None,
        reasons=[],
        workload=WorkloadConfig(),
        slo=slo,
        capacity_tokens_per_s=None,
    )

    read = read_level(simulated, window, slo)

    assert len(read) > 30
    assert 0 < read["slo_attainment"] < 1
    for name, value in read.items():
        # Tokens at the edges of the window are spread evenly, and count one by one in records.
        loose = 0.01 if "tokens_per_s" in name else 1e-5
        assert value == pytest.approx(recorded[name], rel=loose), name


def test_the_knee_is_where_throughput_begins_to_grow_less_than_half_as_fast_as_the_load():
    assert find_knee([1, 10, 100, 1000], [10, 99, 500, 700]) == 2
    assert find_knee([1, 10, 100], [10, 99, 500]) is None
    assert find_knee([5], [10]) is None


def test_too_few_seats_are_named_as_what_holds_a_level_back():
    told = forecast("baseline_llama3_8b_tp8", "workload.users=[25,100,400,800]", "experts.baseline.max_num_seqs=100")

    assert told.levels[told.knee].point.users == 100
    assert [level.cause and level.cause.word for level in told.levels] == [None, None, "max_num_seqs", "max_num_seqs"]


def test_too_small_a_kv_cache_is_named_as_what_holds_a_level_back():
    told = forecast("baseline_llama3_8b_tp8", "workload.users=[4,200]", "experts.baseline.kv_capacity_tokens=8192")

    assert told.levels[-1].cause.word == "KV cache"


def test_what_the_gpu_computes_is_named_where_nothing_else_is_short():
    told = forecast("baseline_llama3_70b_tp8", "workload.users=[20,50,100,200]")

    assert told.levels[-1].cause.word == "compute"


def test_an_api_server_that_cannot_stream_faster_is_named_with_what_relieves_it():
    settings = ("baseline_llama3_8b_tp8", "workload.users=[64,128,256,512]")
    told = forecast(*settings)
    relieved = forecast(*settings, "+experts.baseline.engine_args={stream-interval:8}")

    assert told.levels[-1].cause.word == "api_server"
    assert "stream-interval" in told.levels[-1].cause.detail
    assert "api_server" not in [level.cause and level.cause.word for level in relieved.levels]
    rates = [result.levels[-1].row["output_tokens_per_s"] for result in (told, relieved)]
    assert rates[0] < 0.75 * rates[1]


def test_a_skewed_router_is_named_and_costs_throughput():
    settings = ("llama3_70b_awq_tp2", "workload.users=[1,10,600]")
    even, skewed = forecast(*settings), forecast(*settings, classifier=Lopsided())

    assert skewed.levels[-1].cause.word == "routing skew"
    assert "expert_0-0 has" in skewed.levels[-1].cause.detail
    assert skewed.levels[-1].row["expert_share"]["expert_0"] > 0.5
    assert skewed.levels[-1].row["output_tokens_per_s"] < 0.8 * even.levels[-1].row["output_tokens_per_s"]
    assert any("balanced routing assumed" in notice for notice in even.notices)
    assert not any("balanced" in notice for notice in skewed.notices)


def test_prompts_go_where_the_classifier_sends_them_and_unknown_ones_to_the_default_expert():
    experiment = plan("llama3_70b_awq_tp2", *HERE, "router.default_expert=expert_2").experiment
    asked = AskedSource(experiment, engine="emulated").draw(LoadPoint(users=1))

    class Clueless(Lopsided):
        def classify(self, text):
            return Found(None, np.zeros(4, dtype=np.float32))

    assert set(plan_routes(experiment, Clueless()).find_pools(asked)) == {2}
    assert np.bincount(plan_routes(experiment, Lopsided()).find_pools(asked)).argmax() == 0


def test_policies_that_go_by_load_share_all_replicas_and_others_keep_experts_apart():
    for policy, num_pools in (("least_loaded", 1), ("power_of_two", 1), ("round_robin", 4), ("random", 4)):
        assert (
            len(plan_routes(plan("llama3_70b_awq_tp2", *HERE, f"router={policy}").experiment, None).pools) == num_pools
        )


def test_the_users_of_a_conversation_ask_ever_longer_prompts():
    here = (*HERE, "workload.turns.mean=4")
    single = AskedSource(plan("llama3_8b_tp1", *HERE).experiment, engine="emulated").draw(LoadPoint(users=1))
    spoken = AskedSource(plan("llama3_8b_tp1", *here).experiment, engine="emulated").draw(LoadPoint(users=1))

    assert set(single.prompt_tokens) == {256}
    assert spoken.prompt_tokens.max() > 3 * 256
    assert spoken.prompt_tokens.min() == 256


def test_the_largest_load_that_meets_the_slo_is_found():
    told = forecast("baseline_llama3_8b_tp8", "workload.users=[1,100,400,800]", "slo.ttft_s=1")

    assert told.find_largest_met(0.99).point.users == 100
    assert "SLO (TTFT <= 1 s for 0.99 of the requests): met up to 100 users" in show(
        draw_forecast(told, plan("baseline_llama3_8b_tp8", *HERE, "slo.ttft_s=1").experiment, None)
    )


def test_everything_that_is_shown_says_that_it_is_predicted():
    shown = show(
        draw_forecast(forecast("llama3_70b_tp4", "workload.users=[1]"), plan("llama3_70b_tp4").experiment, None)
    )

    assert MARK in shown
    assert "GPU-hours" in shown
    assert "balanced routing assumed" in shown


def test_an_open_loop_is_predicted_at_its_rates():
    told = forecast(
        "llama3_70b_tp4", "workload.arrivals.kind=poisson", "workload.rates_per_s=[2,200]", "workload.measure_s=60"
    )

    calm, flooded = told.levels
    assert calm.row["output_tokens_per_s"] == pytest.approx(2 * 256, rel=0.15)
    assert flooded.row["requests_per_s"] < 100
    assert any("first 4,000 arrivals" in notice for notice in told.notices)
    assert flooded.row["ttft_p50_s"] > 10 * calm.row["ttft_p50_s"]


def test_arrivals_after_the_window_keep_up_the_load_and_do_not_count():
    here = ("workload.arrivals.kind=poisson", "workload.rates_per_s=[10]", "workload.warmup_s=5")
    experiment = plan("llama3_70b_tp4", *HERE, *here, "workload.measure_s=15", "workload.drain_s=7").experiment

    asked = AskedSource(experiment, engine="emulated").draw(LoadPoint(rate_per_s=10.0))

    assert asked.num_counted == (asked.due_s < 20).sum()
    assert asked.due_s[-1] == pytest.approx(27, abs=1.5)


def test_a_trace_is_predicted_with_its_own_times_and_lengths(tmp_path):
    rows = [f"{number / 4},{200 + number},{20 + number % 5}" for number in range(400)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["Timestamp,Request tokens,Response tokens", *rows]))

    told = forecast("llama3_70b_tp4", "workload=trace", f"workload.trace={trace}", "workload.measure_s=60")

    assert told.levels[0].row["due_per_s"] == pytest.approx(4, rel=0.05)
    assert told.levels[0].row["output_tokens_per_s"] == pytest.approx(4 * 22, rel=0.05)


def test_requests_that_are_too_long_are_left_out_and_said(tmp_path):
    trace = tmp_path / "trace.csv"
    rows = [f"{number},{9000 if number % 2 else 100},20" for number in range(60)]
    trace.write_text("\n".join(["Timestamp,Request tokens,Response tokens", *rows]))

    told = forecast("llama3_70b_tp4", "workload=trace", f"workload.trace={trace}")

    assert any("30 of the requests drawn are longer than max_model_len=8192" in notice for notice in told.notices)


def test_a_window_without_a_request_is_refused(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("Timestamp,Request tokens,Response tokens\n0,100,20\n40,100,20\n")

    with pytest.raises(InputError, match="No request is sent between"):
        forecast("llama3_70b_tp4", "workload=trace", f"workload.trace={trace}")


def test_a_search_is_predicted_from_its_lowest_to_its_highest_load():
    experiment = plan("llama3_70b_tp4", *HERE, "search.kind=users", "search.high=20", "slo.ttft_s=1").experiment

    assert [point.users for point in list_load_points(experiment)] == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize(
    ("name", "overrides", "error", "said"),
    [
        ("vllm_cpu_tiny", (), ConfigError, "this plan is for CPUs"),
        (
            "llama3_8b_tp1",
            (*HERE, "workload.arrivals.kind=poisson", "workload.rates_per_s=[1]", "workload.turns.mean=3"),
            ConfigError,
            "conversations in an open loop are not predicted",
        ),
        ("llama3_8b_tp1", (*HERE, "workload.input_tokens.mean=9000"), InputError, "longer than max_model_len=8192"),
    ],
)
def test_what_cannot_be_predicted_is_refused_with_what_to_change(name, overrides, error, said):
    with pytest.raises(error, match=said):
        predict(plan(name, *overrides, site=LAPTOP))


def test_an_artefact_for_other_experts_is_refused():
    with pytest.raises(ConfigError, match="has 4 clusters and the experiment has 8 experts"):
        forecast("llama3_8b_tp1", classifier=Lopsided())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"draws": 1}, "predict.draws=1"),
        ({"requests_per_user": 0}, "predict.requests_per_user=0"),
        ({"users": 0}, "predict.users=0"),
        ({"quantizations": []}, "predict.quantizations is empty"),
        ({"quantizations": ["int3"]}, "predict.quantizations='int3'"),
    ],
)
def test_a_wrong_setting_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        PredictConfig(**settings)


def test_levels_with_prompts_of_their_own_length_are_predicted_with_them():
    told = forecast("llama3_70b_tp4", "workload.users=[4,4]", "workload.input_tokens_of_levels=[100,4000]")

    short, long = (level.row for level in told.levels)
    assert long["input_tokens_per_s"] > 10 * short["input_tokens_per_s"]
    assert long["ttft_p50_s"] > 5 * short["ttft_p50_s"]


def test_kernel_and_profile_are_those_of_the_experiment():
    settings = ("llama3_70b_awq_tp2", "workload.users=[300]")
    plain = forecast(*settings)
    slow = forecast(*settings, "engine.profile=vllm-v0", *(f"experts.expert_{k}.kernel=awq_legacy" for k in range(4)))

    assert (plain.profile, slow.profile) == ("vllm-v1-async", "vllm-v0")
    assert slow.levels[0].row["output_tokens_per_s"] < 0.6 * plain.levels[0].row["output_tokens_per_s"]
