"""The command line and environment of one vLLM server, as pure functions.

This module starts nothing and never imports vLLM: vLLM lives in an environment of its own. Hosts, ports and folders
are texts here, because a plan is made before they are known and holds placeholders such as `{port3}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from erhpc.config import ExpertConfig
from erhpc.errors import ConfigError

LOOPBACK = "127.0.0.1"
KEEP_ALIVE_S = 600
"""vLLM closes idle connections after this long; its own 5 s would cut those that a gateway keeps for reuse."""
PASS_GUARD = "erhpc.experts.pass_guard.PassGuard"
"""vLLM adds it outermost, so that it comes before its own check of the key."""
OWNED_FLAGS = {
    *("host", "port", "uds", "model", "served-model-name", "api-key"),
    *("max-model-len", "max-num-seqs", "max-num-batched-tokens", "tensor-parallel-size"),
    *("enable-prefix-caching", "no-enable-prefix-caching"),
    *("nnodes", "node-rank", "master-addr", "master-port", "headless"),
}
"""Flags that follow from the plan; setting one by hand would contradict it, or show a key in `ps`."""


def build_vllm_argv(
    expert: ExpertConfig,
    *,
    python: str,
    model: str,
    served_name: str,
    aliases: Sequence[str] = (),
    host: str,
    port: str,
    load_format: str | None,
    device: str,
    prefix_caching: bool = False,
    admits_passes: bool = False,
    leg: int = 0,
    num_legs: int = 1,
    head_address: str | None = None,
    rendezvous_port: str | None = None,
) -> tuple[str, ...]:
    """Return the command that serves `expert`; a server that spans nodes has one leg, and one command, per node.

    Args:
        python: interpreter of the vLLM environment.
        model: directory of the model.
        served_name: what answers call the model; requests may use one of `aliases` too.
        load_format: `dummy` where the directory has no weights; None: as vLLM finds them.
        device: cuda or cpu.
        prefix_caching: whether repeated prompts are answered from the cache.
        admits_passes: whether requests with a pass (`erhpc.plan.passes`) are let in, as redirected clients send them.
        leg: 0 answers HTTP; the others only compute.
        head_address, rendezvous_port: of leg 0, where all legs meet; needed when num_legs > 1.

    Raises:
        ConfigError: engine_args holds a flag that erhpc sets, or the legs do not divide the GPUs.
    """
    _check_engine_args(expert.engine_args)
    settings: dict[str, Any] = {
        "load-format": load_format,
        "max-model-len": expert.max_model_len,
        "max-num-seqs": expert.max_num_seqs,
        "max-num-batched-tokens": expert.max_num_batched_tokens,
        "tensor-parallel-size": expert.tensor_parallel,
        "dtype": expert.dtype,
        # Said either way: vLLM's own default differs between versions and devices.
        "enable-prefix-caching": prefix_caching,
        "no-enable-prefix-caching": not prefix_caching,
    }
    settings |= _device_flags(expert, device)
    settings |= _leg_flags(expert, leg, num_legs, head_address, rendezvous_port)
    api_servers = {name.replace("_", "-"): value for name, value in expert.engine_args.items()}.get("api-server-count")
    if leg > 0 or api_servers is not None:
        # Only `vllm serve` heeds --headless and --api-server-count; the module of the API server would open a second
        # HTTP port, or be a single process.
        entry = [python, "-m", "vllm.entrypoints.cli.main", "serve", model]
    else:
        entry = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    if leg == 0:
        settings |= {"host": host, "port": port, "enable-log-requests": False, "disable-uvicorn-access-log": True}
        settings |= {"middleware": PASS_GUARD if admits_passes else None}
    names = ("--served-model-name", served_name, *aliases)
    return (*entry, *names, *render_flags(settings), *render_flags(expert.engine_args))


def render_flags(args: Mapping[str, Any]) -> list[str]:
    """Render {flag: value} as command-line words: True is a bare flag, False and None are nothing, lists are JSON."""
    words: list[str] = []
    for name, value in args.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(_render_value(value))
    return words


def _render_value(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return msgspec.json.encode(value).decode()
    return str(value)


def _device_flags(expert: ExpertConfig, device: str) -> dict[str, Any]:
    if device == "cpu":
        # Compiling takes longer than a short run on the CPU, and the size of the KV cache comes from the environment.
        return {"enforce-eager": True}
    return {"gpu-memory-utilization": expert.gpu_memory_utilization}


def _leg_flags(
    expert: ExpertConfig, leg: int, num_legs: int, head_address: str | None, rendezvous_port: str | None
) -> dict[str, Any]:
    if num_legs == 1:
        return {}
    if expert.tensor_parallel % num_legs:
        raise ConfigError(
            f"expert.tensor_parallel={expert.tensor_parallel} cannot be spread over {num_legs} nodes: every node must "
            "hold the same number of GPUs. Choose a multiple, or another placement."
        )
    if head_address is None or rendezvous_port is None:
        raise ValueError("a server with several legs needs head_address and rendezvous_port")
    return {
        "nnodes": num_legs,
        "node-rank": leg,
        "master-addr": head_address,
        "master-port": rendezvous_port,
        "headless": leg > 0,
    }


def _check_engine_args(engine_args: Mapping[str, Any]) -> None:
    given = {name.replace("_", "-") for name in engine_args}
    taken = sorted(given & OWNED_FLAGS)
    if taken:
        raise ConfigError(
            f"expert.engine_args sets {', '.join(taken)}, which erhpc sets itself. Use the fields of the expert "
            "(tensor_parallel, max_model_len, ...) instead; ports, names and keys come with the plan."
        )


def build_vllm_environment(
    *,
    device: str,
    tmp: str,
    engine_port: str | None,
    address: str | None = None,
    cpu_kv_gb: int = 1,
) -> dict[str, str]:
    """Return the variables one server needs beside those it inherits.

    Args:
        tmp: an own, short, node-local folder that exists; Unix sockets and compile caches go there.
        engine_port: first of the ports vLLM may use between its own processes; None for servers that span nodes.
        address: where vLLM's own processes reach each other; None: the loopback of a single node, vLLM's guess across
            nodes.
        cpu_kv_gb: size of the KV cache in whole GiB (cpu only).
    """
    environment = {
        "TMPDIR": tmp,
        "VLLM_RPC_BASE_PATH": tmp,
        # Servers that share a cache can read each other's half-written kernels.
        "VLLM_CACHE_ROOT": f"{tmp}/vllm",
        "VLLM_CONFIG_ROOT": f"{tmp}/vllm-config",
        "TRITON_CACHE_DIR": f"{tmp}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp}/inductor",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if engine_port is not None:
        environment["VLLM_PORT"] = engine_port
        address = address or LOOPBACK
    if address is not None:
        environment["VLLM_HOST_IP"] = address
    if device == "cpu":
        environment |= {"VLLM_CPU_KVCACHE_SPACE": str(cpu_kv_gb), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment
