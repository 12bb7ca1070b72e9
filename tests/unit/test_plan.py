"""Plans: placement, memory, ports, commands, durations, and what does not fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.config import ArchitectureConfig, ExpertConfig, PlacementConfig
from erhpc.errors import ConfigError, PlacementError
from erhpc.plan.gpus import GPU_FILES, GPUS
from erhpc.plan.memory import compute_weights_bytes, count_linear_weights, fit_memory
from erhpc.plan.placeholders import Bindings
from erhpc.plan.placement import Leg, place_replicas
from erhpc.plan.plan import plan_from_json
from erhpc.plan.ports import build_port_map
from erhpc.plan.site import Site
from erhpc.twin.hardware import DEFAULT_PROFILE
from tests.unit.experiments import EXPERIMENTS, GPU_CLUSTER, LAPTOP, compose, plan


def expert(tensor_parallel=1, replicas=1, **settings):
    shape = ArchitectureConfig(
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_kv_heads=8,
        vocab_size=128256,
    )
    return ExpertConfig(model="m", architecture=shape, tensor_parallel=tensor_parallel, replicas=replicas, **settings)


def place(experts, strategy="packed", nodes=None, gpus_per_node=8, max_nodes=4):
    placement = PlacementConfig(strategy=strategy, nodes=nodes)
    return place_replicas(experts, placement, gpus_per_node=gpus_per_node, max_nodes=max_nodes, on_gpus=True)


def test_a_level_s_clients_ask_for_prompts_of_its_length_and_no_longer_than_the_experts_take():
    planned = plan("quickstart", "workload=calibration", "experts.expert_0.max_model_len=4096")
    asked = [planned.clients(level.level)[0].spec["workload"] for level in planned.levels]

    longest = 4096 - 128 - 64
    assert [one["input_tokens"]["mean"] for one in asked] == [128, 128, 128, 1024, 1024, 1024, longest]
    assert all(one["input_tokens_of_levels"] == [] for one in asked)
    assert [notice for notice in planned.notices if f"16000 cut to {longest}" in notice]
    assert plan("quickstart").notices == plan("quickstart", "workload=synthetic").notices


def test_llama_weights_and_kv_room_agree_with_published_figures():
    assert count_linear_weights(expert().architecture) == pytest.approx(6.979e9, rel=1e-3)
    assert compute_weights_bytes(expert()) == pytest.approx(16.06e9, rel=1e-2)
    assert compute_weights_bytes(expert(quantization="awq")) == pytest.approx(5.73e9, rel=1e-2)
    # 70B on four H100: 30,425 blocks of 16 tokens were measured.
    seventy = plan("llama3_70b_tp4", "cluster.gpu=h100_80").replicas[0]
    assert seventy.memory.kv_capacity_tokens / 16 == pytest.approx(30425, rel=0.01)


def test_packed_fills_a_node_before_the_next_and_spread_takes_the_emptiest():
    experts = {"a": expert(4), "b": expert(4)}

    num_packed, packed = place(experts)
    num_spread, spread = place(experts, "spread", nodes=2)

    assert (num_packed, [r.legs for r in packed]) == (1, [(Leg(0, (0, 1, 2, 3)),), (Leg(0, (4, 5, 6, 7)),)])
    assert (num_spread, [r.legs[0].node for r in spread]) == (2, [0, 1])


def test_one_per_node_gives_every_replica_a_node_of_its_own():
    num_nodes, placed = place({"a": expert(1, replicas=3)}, "one_per_node")

    assert num_nodes == 3
    assert [replica.legs[0].node for replica in placed] == [0, 1, 2]


def test_a_replica_larger_than_a_node_gets_whole_nodes():
    num_nodes, placed = place({"big": expert(16), "small": expert(2)})

    assert num_nodes == 3
    assert [(leg.node, len(leg.gpus)) for leg in placed[0].legs] == [(0, 8), (1, 8)]
    assert placed[1].legs[0].node == 2


@given(
    sizes=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=12),
    strategy=st.sampled_from(["packed", "spread", "one_per_node"]),
)
def test_no_gpu_is_held_twice_and_every_replica_is_placed(sizes, strategy):
    experts = {f"e{index}": expert(size) for index, size in enumerate(sizes)}

    num_nodes, placed = place(experts, strategy, max_nodes=len(sizes))

    held = [(leg.node, gpu) for replica in placed for leg in replica.legs for gpu in leg.gpus]
    assert len(held) == len(set(held)) == sum(sizes)
    assert {node for node, _ in held} <= set(range(num_nodes))
    assert [replica.expert for replica in placed] == list(experts)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experts.expert_0.tensor_parallel=3"], ["expert_0", "64 attention heads", "1, 2, 4, 8"]),
        (["experts.expert_0.tensor_parallel=1"], ["expert_0", "GiB missing", "tensor_parallel"]),
        (["experts.expert_0.replicas=9"], ["GPUs missing", "cluster.max_nodes"]),
        (["cluster.gpus_per_node=4", "experts.expert_0.tensor_parallel=8", "cluster.max_nodes=1"], ["do not fit"]),
        (["cluster.gpus_per_node=6", "experts.expert_0.tensor_parallel=8"], ["multiple", "6"]),
        (["cluster.ports=[20000,20003]"], ["20000", "needs 5", "[20000,32000]"]),
        (["cluster.gpu=tpu"], ["tpu", "a100_80"]),
        (["cluster.time_limit_min=5"], ["time_limit_min=5", "measure_s"]),
        (["placement=spread", "placement.nodes=9"], ["placement.nodes=9", "cluster.max_nodes"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_missing_and_what_to_change(overrides, words):
    with pytest.raises(ConfigError) as caught:
        plan("llama3_70b_tp4", *overrides)

    assert [word for word in words if word not in str(caught.value)] == []


def test_auto_takes_vllm_on_slurm_where_gpus_are_and_says_so():
    planned = plan("llama3_70b_tp4", site=GPU_CLUSTER)

    assert (planned.cluster, planned.engine, planned.requests_gpus) == ("slurm", "vllm", True)
    assert any("engine=auto took vllm" in notice for notice in planned.notices)
    assert planned.gpu_hours(3600) == 8


def test_auto_takes_emulated_experts_elsewhere_and_says_so_loudly():
    planned = plan("llama3_70b_tp4")

    assert (planned.cluster, planned.engine, planned.requests_gpus) == ("local", "emulated", False)
    assert any("EMULATED" in notice for notice in planned.notices)
    assert planned.gpu_hours(3600) == 0


def test_vllm_without_a_gpu_on_this_machine_is_refused():
    with pytest.raises(ConfigError, match="engine=vllm_cpu"):
        plan("llama3_70b_tp4", "engine=vllm", site=Site())


def test_a_server_across_nodes_has_one_command_per_node_and_one_rendezvous():
    planned = plan(
        "baseline_llama3_70b_tp8", "experts.baseline.tensor_parallel=16", "cluster.max_nodes=2", site=GPU_CLUSTER
    )

    head, leg = [process for process in planned.processes if process.kind == "expert"]
    assert (head.node, leg.node) == (0, 1)
    assert "--headless" in leg.argv
    assert "--headless" not in head.argv
    assert len(head.ready) == 1
    assert leg.ready == ()
    assert "VLLM_PORT" not in head.environment


def test_users_of_a_baseline_talk_to_its_replica_and_others_to_the_gateway():
    baseline, routed = plan("baseline_llama3_70b_tp4"), plan("llama3_70b_tp4")

    assert baseline.gateway is None
    assert baseline.clients(0)[0].spec["direct"]["replica"] == "baseline-0"
    assert routed.gateway is not None
    assert routed.clients(0)[0].spec["direct"] is None
    assert routed.clients(0)[0].spec["model"] == "auto"


def test_replicas_know_redirected_requests_and_their_passes():
    relayed, redirected = (
        plan("llama3_70b_tp4", f"gateway.data_path={path}", site=GPU_CLUSTER).process("expert-expert_1-0")
        for path in ("relay", "redirect")
    )

    added = [word for word in redirected.argv if word not in relayed.argv]
    assert added == ["auto", "--middleware", "erhpc.experts.pass_guard.PassGuard"]
    assert redirected.environment == relayed.environment | {"ERHPC_REPLICA": "expert_1-0"}
    assert (relayed.python_path, redirected.python_path) == (None, "{run}/guest")


def test_only_the_leg_that_speaks_http_lets_passes_in_and_only_where_there_is_a_gateway():
    wide = ("experts.baseline.tensor_parallel=16", "cluster.max_nodes=2", "gateway.data_path=redirect")

    def guarded(*overrides):
        planned = plan("baseline_llama3_70b_tp8", *wide, *overrides, site=GPU_CLUSTER)
        return ["--middleware" in process.argv for process in planned.processes if process.kind == "expert"]

    assert guarded("router=round_robin") == [True, False]
    assert guarded() == [False, False]


def test_an_emulated_replica_answers_to_auto_where_clients_are_redirected():
    redirected = plan("quickstart", "gateway.data_path=redirect")
    replicas = [process for process in redirected.processes if process.kind == "expert"]

    assert [process.spec["experts"][0]["aliases"] for process in replicas] == [["auto"]] * 4
    assert plan("quickstart").process(replicas[0].name).spec["experts"][0]["aliases"] == []


def test_what_a_gateway_that_sees_no_answers_cannot_do_is_said_aloud():
    def said(*overrides):
        notices = plan("quickstart", "gateway.data_path=redirect", *overrides).notices
        return [notice for notice in notices if "data_path" in notice]

    told = "gateway.data_path=redirect: the gateway does not see how loaded the replicas are: "
    assert said() == []
    assert said("experts.expert_0.replicas=2") == [f"{told}router.replica_policy=least_loaded takes turns."]
    assert said("router=least_loaded") == [f"{told}router.policy=least_loaded takes turns."]
    assert said("router.overflow=next_nearest") == [f"{told}router.overflow=next_nearest sees only who is down."]
    assert plan("quickstart", "router=least_loaded").notices == plan("quickstart").notices


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_processes_of_a_run_share_a_port_and_no_key_is_on_a_command_line(name):
    planned = plan(name, site=GPU_CLUSTER)

    taken = [port for process in planned.processes for port in process.ports]
    assert len(taken) == len(set(taken))
    assert all(0 < port < planned.ports.width for port in taken)
    assert not any("key" in word for process in planned.processes for word in process.argv)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_plan_reads_back_from_json_as_it_was(name):
    planned = plan(name, site=GPU_CLUSTER)

    assert plan_from_json(planned.to_json()) == planned


def test_the_band_of_a_job_follows_its_number_and_wraps_around():
    ports = build_port_map([20000, 20099], num_replicas=7, engine_ports=0)

    bands = list(ports.bands_for(23))

    assert ports.width == 10
    assert bands[0] == 3
    assert sorted(bands) == list(range(10))
    assert ports.base(bands[0]) == 20030


def test_placeholders_are_filled_and_other_braces_stay():
    bindings = Bindings("/r", "/t", ["10.0.0.1", "10.0.0.2"], 20000)

    filled = bindings.fill('{"a": {"b": 1}, "url": "http://{address1}:{port12}/", "run": "{run}/{tmp}"}')

    assert filled == '{"a": {"b": 1}, "url": "http://10.0.0.2:20012/", "run": "/r//t"}'


def test_a_model_that_leaves_no_room_for_one_sequence_does_not_fit():
    with pytest.raises(PlacementError, match="GiB missing"):
        fit_memory("math", expert(max_model_len=2_000_000), GPUS["a100_40"])


def test_a_longer_sweep_asks_for_a_longer_walltime():
    short, long = plan("quickstart"), plan("quickstart", "workload.users=[1,2,3,4,5,6,7,8]")

    assert long.walltime_s > short.walltime_s > short.expected_s
    assert compose("quickstart").workload.measure_s * 4 < short.expected_s


def test_the_cpu_build_of_vllm_is_not_taken_for_gpus():
    built = Site(slurm_answers=True, slurm_gpus_per_node=8, vllm_cpu_python="/cpu/bin/python")

    on_gpus = plan("llama3_70b_tp4", site=built)
    on_cpu = plan("vllm_cpu_tiny", site=built)

    assert all(process.argv[0] != "/cpu/bin/python" for process in on_gpus.processes)
    assert on_cpu.processes[0].argv[0] == "/cpu/bin/python"


def test_a_walltime_that_the_site_cuts_is_said_aloud():
    planned = plan("quickstart", "cluster.time_limit_min=3")

    assert planned.walltime_s == 180
    assert any("walltime cut" in notice for notice in planned.notices)


def test_experts_that_exceed_the_memory_of_this_machine_are_refused_on_the_cpu():
    laptop = Site(memory_bytes=24 * 1024**3, vllm_cpu_python="/cpu/bin/python")

    assert plan("vllm_cpu_tiny", site=laptop).replicas
    with pytest.raises(PlacementError, match="GiB of main memory") as caught:
        plan("llama3_70b_tp4", "engine=vllm_cpu", "cluster=local", site=laptop)
    assert "engine=emulated" in str(caught.value)


def test_vllm_uses_the_gpus_of_a_site_that_gives_them_unasked():
    planned = plan("llama3_70b_tp4", "cluster.request_gpus=false", site=GPU_CLUSTER)

    assert planned.engine == "vllm"
    assert not planned.requests_gpus
    assert planned.uses_gpus
    assert not plan("llama3_70b_tp4").uses_gpus


def test_a_gpu_file_of_one_s_own_is_fitted_and_handed_to_emulated_experts_by_its_whole_path(tmp_path, monkeypatch):
    text = (GPU_FILES / "a100_80.toml").read_text().replace("total_gib = 79.1", "total_gib = 47.5")
    (tmp_path / "l40s.toml").write_text(text)
    monkeypatch.chdir(tmp_path)

    usual, own = plan("quickstart"), plan("quickstart", "cluster.gpu=l40s.toml")

    assert own.replicas[0].memory.kv_capacity_tokens < usual.replicas[0].memory.kv_capacity_tokens
    assert {spec["gpu"] for spec in list_emulated(own)} == {str(tmp_path / "l40s.toml")}


def list_emulated(planned):
    return [spec for process in planned.processes if process.kind == "expert" for spec in process.spec["experts"]]


def list_groups(planned):
    return [process.replicas for process in planned.processes if process.kind == "expert"]


@pytest.mark.parametrize(("num_cores", "sizes"), [(None, [1] * 4), (4, [1] * 4), (3, [4]), (2, [4]), (1, [4])])
def test_emulated_replicas_share_processes_where_there_are_more_of_them_than_cores(num_cores, sizes):
    planned = plan("quickstart", site=replace(LAPTOP, num_cores=num_cores))

    assert [len(group) for group in list_groups(planned)] == sizes
    assert [spec["replica"] for spec in list_emulated(planned)] == [replica.replica for replica in planned.replicas]
    for process in planned.processes:
        assert len(process.ready) == len(process.ports) or process.kind != "expert"


def test_eight_replicas_on_six_cores_are_three_processes():
    planned = plan("llama3_8b_tp1", site=replace(LAPTOP, num_cores=6))

    assert [len(group) for group in list_groups(planned)] == [3, 3, 2]


def test_a_replica_that_is_to_crash_has_a_process_of_its_own():
    planned = plan("quickstart", "engine.faults=[{kind:crash,replica:expert_1}]", site=replace(LAPTOP, num_cores=2))

    assert list_groups(planned) == [("expert_0-0", "expert_2-0", "expert_3-0"), ("expert_1-0",)]
    assert [len(spec["faults"]) for spec in list_emulated(planned)] == [0, 0, 0, 1]


def test_kernel_and_profile_reach_the_emulated_experts():
    planned = plan("quickstart", "experts.expert_0.kernel=awq_legacy", "engine.profile=vllm-v0-online")

    assert [spec["kernel"] for spec in list_emulated(planned)] == ["awq_legacy", None, None, None]
    assert {spec["profile"] for spec in list_emulated(planned)} == {"vllm-v0-online"}
    assert {spec["profile"] for spec in list_emulated(plan("quickstart"))} == {DEFAULT_PROFILE}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engine.speedup=4", "runs 4 times as fast. Every level will be marked invalid"),
        (
            "engine.faults=[{kind:hang},{kind:slow}]",
            r"engine.faults \(hang, slow\). Every level will be marked invalid",
        ),
    ],
)
def test_a_rehearsal_is_said_aloud(override, said):
    assert any(re.search(said, notice) for notice in plan("quickstart", override).notices)
    assert any("vLLM runs as ever" in notice for notice in plan("llama3_70b_tp4", override, site=GPU_CLUSTER).notices)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.faults=[{kind:explode}]", ["explode", "hang"]),
        ("engine.faults=[{kind:slow_start}]", ["duration_s"]),
        ("engine.faults=[{kind:slow,factor:0.5}]", ["factor=0.5"]),
        ("engine.speedup=0", ["speedup=0"]),
    ],
)
def test_a_fault_that_cannot_be_is_refused(override, words):
    with pytest.raises(ConfigError) as caught:
        plan("quickstart", override)

    assert [word for word in words if word not in str(caught.value)] == []


PREFIXES = ("router=prefix_affinity",)
REPLICAS_ONLY = ("router=round_robin", "router.replica_policy=prefix_affinity")


def find_affinity(planned):
    return [notice for notice in planned.notices if "prefix_affinity" in notice]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [(PREFIXES, "router.policy and router.replica_policy"), (REPLICAS_ONLY, "router.replica_policy")],
)
def test_affinity_to_prefixes_that_no_replica_keeps_is_said_to_gain_nothing(overrides, key):
    (notice,) = find_affinity(plan("llama3_70b_tp4", *overrides, site=GPU_CLUSTER))

    assert notice.startswith(f"{key}=prefix_affinity gains nothing here")
    assert "Set engine.prefix_caching=true" in notice


@pytest.mark.parametrize("overrides", [PREFIXES, REPLICAS_ONLY])
def test_affinity_with_a_prefix_cache_is_not_spoken_of(overrides):
    assert find_affinity(plan("llama3_70b_tp4", *overrides, "engine.prefix_caching=true", site=GPU_CLUSTER)) == []


def test_affinity_that_nobody_asked_for_is_not_spoken_of():
    assert find_affinity(plan("llama3_70b_tp4", site=GPU_CLUSTER)) == []
    unused = ("router=none", "router.replica_policy=prefix_affinity")
    assert find_affinity(plan("baseline_llama3_70b_tp4", *unused, site=GPU_CLUSTER)) == []


def test_emulated_experts_gain_nothing_by_affinity_whatever_is_set():
    (notice,) = find_affinity(plan("llama3_70b_tp4", *PREFIXES, "engine.prefix_caching=true"))

    assert "emulated experts have no prefix cache" in notice


def test_each_process_of_the_gateway_is_given_a_core():
    one, four = (plan("quickstart", f"gateway.processes={number}") for number in (1, 4))

    assert four.cpus_per_node == one.cpus_per_node + 3
