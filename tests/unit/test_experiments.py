"""Every shipped experiment composes, is named after its file, fits its cluster and survives being saved."""

from __future__ import annotations

import pytest

from erhpc.composition import CONF_DIRECTORY, compose_experiment, to_config, to_yaml
from erhpc.config import POLICIES, RULES, ExperimentConfig
from erhpc.errors import ConfigError
from tests.unit.experiments import EXPERIMENTS, GPU_CLUSTER, LAPTOP, compose, plan

PAPER_LEVELS = [1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 700, 1000]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_named_after_its_file_and_opens_with_its_own_command(name):
    lines = (CONF_DIRECTORY / "experiment" / f"{name}.yaml").read_text().splitlines()

    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python -m erhpc.launch +experiment={name}"
    assert compose(name).name == name


@pytest.mark.parametrize("site", [LAPTOP, GPU_CLUSTER], ids=["laptop", "gpu_cluster"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_fits_its_cluster(name, site):
    planned = plan(name, site=site)

    assert planned.replicas
    assert planned.gpus_per_node <= planned.experiment.cluster.gpus_per_node
    assert all(replica.memory.kv_capacity_tokens >= 2048 for replica in planned.replicas)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_saved_configuration_reads_back_as_the_same_experiment(name, tmp_path):
    composed = compose_experiment([f"+experiment={name}"])
    experiment = to_config(composed, ExperimentConfig)
    (tmp_path / "config.yaml").write_text(to_yaml(experiment))

    again = to_config(compose_experiment([], tmp_path), ExperimentConfig)

    assert again == experiment


def test_the_paper_s_experiments_use_the_paper_s_levels():
    for name in EXPERIMENTS:
        if name not in ("quickstart", "vllm_cpu_tiny"):
            assert compose(name).workload.users == PAPER_LEVELS


@pytest.mark.parametrize("group", ["expert", "engine", "router", "placement", "workload", "cluster"])
def test_every_choice_of_every_group_composes(group):
    for path in (CONF_DIRECTORY / group).glob("*.yaml"):
        key = "/expert@experts.extra" if group == "expert" else group
        override = f"+expert@experts.extra={path.stem}" if group == "expert" else f"{key}={path.stem}"
        more = {"expert": ["router=round_robin"], "workload": ["workload.trace=given.csv"]}.get(group, [])
        more = ["router.embedding=given"] if override == "router=embedding" else more
        if override == "router=none":
            continue  # needs a single replica; the baselines compose it
        assert compose("quickstart", override, *more).experts


def test_every_policy_is_a_choice_of_router_and_sets_both_levels_where_it_can():
    others = {"embedding"}  # the policy `cluster`, with another classifier
    assert {path.stem for path in (CONF_DIRECTORY / "router").glob("*.yaml")} == set(POLICIES) | others
    assert compose("quickstart", "router=embedding", "router.embedding=given").router.policy == "cluster"
    for rule in RULES:
        router = compose("quickstart", f"router={rule}").router
        assert (router.policy, router.replica_policy) == (rule, rule)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["router.policy=fastest"], ["router.policy", "fastest", "cluster, round_robin"]),
        (["router=random", "router.overflow=next_nearest"], ["router.overflow=next_nearest", "router.policy=cluster"]),
        (["router=embedding"], ["router.method=embedding", "router.embedding=DIRECTORY"]),
        (["router.overflow=away"], ["router.overflow='away'", "none, wait, next_nearest"]),
        (["workload.users=[]"], ["workload.users", "[1,10,100]"]),
        (["router.default_expert=poet"], ["default_expert", "poet", "expert_0"]),
        (["cluster.ports=[9]"], ["cluster.ports", "[first,last]"]),
        (["router=none"], ["exactly one replica", "4"]),
        (["+foo=1"], ["foo", "no such key", "workload"]),
        (["experts.expert_0.quantization=int3"], ["experts.expert_0.quantization", "int3", "awq"]),
        (["experts.expert_1.tensor_parallel=0"], ["experts.expert_1.tensor_parallel=0", "at least 1"]),
        (["experts.expert_1.architecture.num_layers=0"], ["experts.expert_1.architecture.num_layers=0"]),
        (["experts.expert_1.architecture.num_attention_heads=0"], ["architecture.num_attention_heads=0", "at least 1"]),
        (["experts.expert_1.architecture.hidden_size=99"], ["hidden_size=99", "Set experts.expert_1.architecture"]),
        (["workload.output_tokens.mean=0.5"], ["workload.output_tokens.mean=0.5", "from 8 to 64"]),
        (["workload.input_tokens.kind=none"], ["workload.input_tokens.kind", "fixed, uniform, lognormal"]),
        (["workload.users=[0]"], ["workload.users=[0]", "from 1 to 1000000"]),
        (["workload.users=[1000001]"], ["workload.users=[1000001]", "from 1 to 1000000"]),
        (
            ["workload.output_tokens.high=8192"],
            ["workload.output_tokens.high=8192", "experts.expert_0.max_model_len=8192", "no room"],
        ),
        (
            ["workload.output_tokens={kind: fixed, mean: 9000, high: 9000}"],
            ["workload.output_tokens.mean=9000", "experts.expert_0.max_model_len=8192"],
        ),
        (
            ["workload=calibration", "workload.users=[1,2]"],
            ["workload.input_tokens_of_levels=[128, 128", "each of the 2 levels", "[1, 2]"],
        ),
        (["workload.input_tokens_of_levels=[9,9,9,9]"], ["workload.format=synthetic", "jsonl"]),
        (
            ["workload=synthetic", "workload.input_tokens_of_levels=[9,9,9,0]"],
            ["workload.input_tokens_of_levels=[9, 9, 9, 0]", "above 0"],
        ),
        (
            ["workload=calibration", "search.kind=users", "slo.ttft_s=1"],
            ["search.kind=users", "workload.input_tokens_of_levels"],
        ),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["cluster.cpus_per_node=0"], ["cluster.cpus_per_node=0", "at least 1"]),
        (["cluster.time_limit_min=0"], ["cluster.time_limit_min=0", "at least 1"]),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(overrides, words):
    with pytest.raises(ConfigError) as caught:
        compose("quickstart", *overrides)

    assert all(word in str(caught.value) for word in words)


def test_a_saved_configuration_names_files_by_paths_that_hold_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["workload.prompts=mine.jsonl", "router=embedding", "router.embedding=mine"]
    composed = compose_experiment(["+experiment=quickstart", *overrides])

    saved = to_yaml(to_config(composed, ExperimentConfig))

    assert f"prompts: {tmp_path}/mine.jsonl" in saved
    assert f"embedding: {tmp_path}/mine\n" in saved
