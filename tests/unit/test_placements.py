"""Other placements of the same experts: which fit, which come first, and that they can be had."""

from __future__ import annotations

import pytest

from erhpc.errors import ConfigError, PlacementError
from erhpc.forecast.placements import Found, Placement, _rank, choose_point, search_placements
from tests.unit.experiments import plan

HERE = ("engine=emulated", "cluster=local", "workload=synthetic", "workload.output_tokens.mean=32")


def search(name, *overrides, gpus_per_node=8, **options):
    return search_placements(plan(name, *HERE, *overrides), gpus_per_node, **options)


def test_every_placement_that_fits_is_tried_and_what_does_not_fit_is_counted():
    found = search("llama3_70b_awq_tp2", "predict.users=20")

    # Of 70B in 16 bit, one GPU holds none; so too of fp8, which leaves no room for a sequence.
    assert {(placement.name, placement.num_gpus) for placement in found.placements} == {
        ("4 experts: 1 replica of TP1 awq", 4),
        ("4 experts: 2 replicas of TP1 awq", 8),
        ("4 experts: 1 replica of TP2 awq (as given)", 8),
        ("4 experts: 1 replica of TP2 bfloat16", 8),
        ("4 experts: 1 replica of TP2 fp8", 8),
    }
    assert found.num_misfits == 4


def test_a_placement_can_be_had_with_the_overrides_that_are_shown():
    for placement in search("llama3_70b_awq_tp2", "predict.users=20").placements:
        planned = plan("llama3_70b_awq_tp2", *HERE, *placement.overrides)

        assert planned.num_gpus == placement.num_gpus
        assert {replica.memory.kv_capacity_tokens for replica in planned.replicas} == set(
            placement.kv_capacity_tokens.values()
        )


def test_one_engine_without_a_router_gets_one_where_it_has_replicas():
    found = search("baseline_llama3_8b_tp8", "predict.users=20", "predict.quantizations=[none]")

    for placement in found.placements:
        assert ("router=least_loaded" in placement.overrides) == ("1 replica of" not in placement.name)
    assert plan("baseline_llama3_8b_tp8", *HERE, *found.placements[0].overrides).num_gpus == 8


def test_experts_of_two_models_are_varied_apart():
    found = search("mixed_8b_70b", "predict.users=10", "predict.quantizations=[none,awq]")

    names = {placement.name.removesuffix(" (as given)") for placement in found.placements}
    assert "4 experts: 1 replica of TP1 bfloat16, large: 1 replica of TP4 bfloat16" in names
    assert "4 experts: 1 replica of TP1 bfloat16, large: 4 replicas of TP1 awq" in names
    assert all(placement.num_gpus <= 8 for placement in found.placements)


def test_weights_of_ones_own_keep_their_quantisation():
    found = search("baseline_llama3_8b_tp8", "predict.users=5", "experts.baseline.weights=/models/8b")

    assert all("bfloat16" in placement.name for placement in found.placements)


def made(rate, num_gpus, attainment=1.0):
    row = {"output_tokens_per_s": rate, "slo_attainment": attainment}
    return Placement(name=f"{rate}", overrides=(), num_gpus=num_gpus, kv_capacity_tokens={}, row=row)


def test_the_slo_comes_before_tokens_and_tokens_before_gpus_which_decide_a_tie():
    missing, slow, fast, tied = made(9000, 1, 0.5), made(100, 1), made(4000, 8), made(4001, 4)

    assert sorted([missing, slow, fast, tied], key=lambda one: _rank(one, 0.99)) == [tied, fast, slow, missing]


def test_the_cheapest_that_meets_the_slo_has_the_fewest_gpus():
    found = Found(
        load="10 users",
        placements=[made(900, 8), made(300, 2, 0.9), made(500, 4)],
        num_nodes=1,
        gpus_per_node=8,
        num_fitting=3,
        num_misfits=0,
        notices=(),
    )

    assert found.find_cheapest(0.99).num_gpus == 4
    assert found.find_cheapest(0.85).num_gpus == 2


def test_looking_for_the_cheapest_stops_at_the_first_number_of_gpus_that_suffices():
    found = search("baseline_llama3_8b_tp8", "predict.users=10", "slo.tpot_s=0.05", until_met=True)

    assert {placement.num_gpus for placement in found.placements} == {1}
    assert found.find_cheapest(0.99).num_gpus == 1


def test_placements_are_compared_at_the_asked_users_else_at_the_largest_level():
    assert choose_point(plan("llama3_8b_tp1", *HERE).experiment).users == 1000
    assert choose_point(plan("llama3_8b_tp1", *HERE, "predict.users=70").experiment).users == 70
    opened = ("workload.arrivals.kind=poisson", "workload.rates_per_s=[1,30]")
    assert choose_point(plan("llama3_8b_tp1", *HERE, *opened).experiment).rate_per_s == 30


def test_users_in_an_open_loop_are_refused():
    opened = ("workload.arrivals.kind=poisson", "workload.rates_per_s=[1,30]", "predict.users=70")

    with pytest.raises(ConfigError, match=r"predict\.users=70 needs a closed loop"):
        search("llama3_8b_tp1", *opened)


def test_where_nothing_fits_the_error_says_what_to_change():
    with pytest.raises(PlacementError, match=r"Set placement\.nodes to more nodes"):
        search("llama3_70b_tp4", "predict.quantizations=[none]", gpus_per_node=1)


def test_too_many_placements_are_refused_with_how_to_narrow_them():
    with pytest.raises(ConfigError, match=r"more than 400 placements\. Narrow"):
        search("mixed_8b_70b", "cluster.max_nodes=64", "placement.nodes=64")


def test_another_quantisation_does_not_keep_the_kernel_of_the_given_one():
    found = search(
        "llama3_70b_awq_tp2", "predict.users=5", *(f"experts.expert_{k}.kernel=awq_legacy" for k in range(4))
    )

    other = next(placement for placement in found.placements if "fp8" in placement.name)
    assert "experts.expert_0.kernel=null" in other.overrides
    same = [placement for placement in found.placements if "awq" in placement.name]
    assert not any("kernel" in override for placement in same for override in placement.overrides)
