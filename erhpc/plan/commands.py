"""The exact command of every process: argv, environment, spec and readiness. Pure; placeholders stay open.

erhpc's own processes are all `python -m jobs.<kind> --spec FILE`; vLLM gets flags (`erhpc.plan.vllm_command`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from erhpc.config import AUTO_MODEL, ExperimentConfig
from erhpc.plan.gpus import find_gpu
from erhpc.plan.memory import CPU_KV_BYTES
from erhpc.plan.passes import REPLICA_VARIABLE
from erhpc.plan.plan import PlannedProcess, PlannedReplica, ReadyCheck
from erhpc.plan.ports import ENGINE_PORTS, STATUS_PORT
from erhpc.plan.specs import CalibrationSpec, ClientSpec, EmulatedExpertSpec, EmulatedExpertsSpec, Endpoint, GatewaySpec
from erhpc.plan.vllm_command import build_vllm_argv, build_vllm_environment
from erhpc.results.paths import RunPaths

RUN = RunPaths(Path("{run}"))
"""The run folder as a placeholder."""
GATEWAY_STATUS_URL = f"http://{{address0}}:{{port{STATUS_PORT}}}"
KEY_FILE = str(RUN.key)
GATEWAY_READY_S = 60.0
SEED_STRIDE = 1000
"""More levels than a run will ever have."""
CLIENT_STOP_S = 25.0
"""A client that is told to stop still writes its records; killing it would lose them. Within the 30 s that Slurm waits
between TERM and KILL (KillWait); a crowded node has taken more than 15."""


def command_emulated_experts(
    experiment: ExperimentConfig, replicas: Sequence[tuple[PlannedReplica, int]], python: str
) -> PlannedProcess:
    """The emulated server of replicas, each with its port, whose first legs are on one node."""
    (first, _), node = replicas[0], replicas[0][0].legs[0].node
    spec = EmulatedExpertsSpec(experts=[_emulated_spec(experiment, replica, port) for replica, port in replicas])
    others = f"-and-{len(replicas) - 1}-more" if len(replicas) > 1 else ""
    process = _own_process(f"expert-{first.replica}{others}", "emulated_expert", node, spec, python)
    return _serving(process, experiment, replicas)


def _emulated_spec(experiment: ExperimentConfig, replica: PlannedReplica, port: int) -> EmulatedExpertSpec:
    expert, engine = experiment.experts[replica.expert], experiment.engine
    return EmulatedExpertSpec(
        replica=replica.replica,
        model=replica.served_name,
        host=f"{{address{replica.legs[0].node}}}",
        port=f"{{port{port}}}",
        architecture=expert.architecture,
        dtype=expert.dtype,
        quantization=expert.quantization,
        kernel=expert.kernel,
        tensor_parallel=expert.tensor_parallel,
        gpu=find_gpu(experiment.cluster.gpu).name,
        profile=engine.profile,
        kv_capacity_tokens=replica.memory.kv_capacity_tokens,
        max_model_len=expert.max_model_len,
        max_num_seqs=expert.max_num_seqs,
        max_num_batched_tokens=expert.max_num_batched_tokens,
        engine_args=expert.engine_args,
        prefix_caching=engine.prefix_caching,
        speedup=engine.speedup,
        faults=[fault for fault in engine.faults if fault.hits(replica.replica)],
        aliases=list(_aliases(experiment, replica)),
        key_file=KEY_FILE,
    )


def command_vllm_expert(
    experiment: ExperimentConfig, replica: PlannedReplica, port: int, python: str
) -> list[PlannedProcess]:
    """The vLLM server of one replica: one process per leg, the first of which answers requests."""
    expert, engine = experiment.experts[replica.expert], experiment.engine
    synthetic = expert.weights is None
    head = f"{{address{replica.legs[0].node}}}"
    processes = []
    for number, leg in enumerate(replica.legs):
        name = f"expert-{replica.replica}" + (f"-leg{number}" if number else "")
        guarded = experiment.redirects and number == 0
        argv = build_vllm_argv(
            expert,
            python=python or "VLLM_PYTHON",
            model=str(RUN.model(replica.expert)) if synthetic else str(expert.weights),
            served_name=replica.served_name,
            aliases=_aliases(experiment, replica),
            host=head,
            port=f"{{port{port}}}",
            load_format="dummy" if synthetic and engine.synthetic_weights == "dummy" else None,
            device=engine.device,
            prefix_caching=engine.prefix_caching,
            admits_passes=guarded,
            leg=number,
            num_legs=len(replica.legs),
            head_address=head,
            rendezvous_port=f"{{port{port + ENGINE_PORTS}}}",
        )
        environment = build_vllm_environment(
            device=engine.device,
            tmp=f"{{tmp}}/{replica.replica}",
            # Between nodes the engine meets at the rendezvous port; an inherited VLLM_PORT would split it.
            engine_port=f"{{port{port + 1}}}" if len(replica.legs) == 1 else None,
            address=f"{{address{leg.node}}}",
            cpu_kv_gb=CPU_KV_BYTES // 1024**3,
        )
        process = PlannedProcess(
            name=name,
            kind="expert",
            node=leg.node,
            argv=argv,
            environment=environment | engine.environment | ({REPLICA_VARIABLE: replica.replica} if guarded else {}),
            python_path=str(RUN.guest_package) if guarded else None,
            gpus=leg.gpus,
            stop_timeout_s=engine.stop_timeout_s,
            replicas=(replica.replica,),
        )
        processes.append(_serving(process, experiment, [(replica, port)]) if number == 0 else process)
    return processes


def command_gateway(
    experiment: ExperimentConfig,
    replicas: tuple[PlannedReplica, ...],
    port: int,
    python: str,
    *,
    is_emulated: bool,
) -> PlannedProcess:
    """The gateway, on the first node; `port` is where it is asked, STATUS_PORT where it tells of itself."""
    spec = GatewaySpec(
        host="{address0}",
        port=f"{{port{port}}}",
        status_port=f"{{port{STATUS_PORT}}}",
        endpoints=[_endpoint(replica) for replica in replicas],
        router=experiment.router,
        limits=experiment.gateway,
        artefact=str(RUN.artefact) if experiment.router.policy == "cluster" else None,
        seed=experiment.seed,
        is_emulated=is_emulated,
        key_file=KEY_FILE,
    )
    process = _own_process("gateway", "gateway", 0, spec, python)
    return replace(
        process,
        ports=(port, STATUS_PORT),
        ready=(ReadyCheck(f"http://{{address0}}:{{port{port}}}", AUTO_MODEL, GATEWAY_READY_S),),
    )


def command_client(
    experiment: ExperimentConfig,
    replicas: tuple[PlannedReplica, ...],
    level: int,
    worker: int,
    node: int,
    gateway_port: int | None,
    python: str,
) -> PlannedProcess:
    """One client process of one level; without a gateway it asks the one replica."""
    direct = None if gateway_port is not None else _endpoint(replicas[0])
    spec = ClientSpec(
        url=direct.url if direct else f"http://{{address0}}:{{port{gateway_port}}}",
        model=direct.model if direct else AUTO_MODEL,
        level=level,
        worker=worker,
        num_workers=experiment.load.num_workers,
        workload=experiment.workload.at_level(level, experiment.longest_prompt_tokens),
        load=experiment.load,
        # A seed per level: no level repeats the order of prompts of another.
        seed=experiment.seed * SEED_STRIDE + level,
        output=str(RUN.part(level, worker)),
        direct=direct,
        key_file=KEY_FILE,
    )
    process = _own_process(f"client-{level:03d}-{worker}", "client", node, spec, python)
    return replace(process, stop_timeout_s=CLIENT_STOP_S, level=level)


def command_calibration(experiment: ExperimentConfig, node: int, python: str) -> PlannedProcess:
    """The process that measures the client against a null expert, where clients will run."""
    spec = CalibrationSpec(load=experiment.load, output=str(RUN.calibration))
    return _own_process("calibration", "calibration", node, spec, python)


def _own_process(name: str, kind: Any, node: int, spec: object, python: str) -> PlannedProcess:
    return PlannedProcess(
        name=name,
        kind="expert" if kind == "emulated_expert" else kind,
        node=node,
        argv=(python, "-m", f"jobs.{kind}", "--spec", str(RUN.spec(name))),
        spec=msgspec.to_builtins(spec),
    )


def _serving(
    process: PlannedProcess, experiment: ExperimentConfig, replicas: Sequence[tuple[PlannedReplica, int]]
) -> PlannedProcess:
    return replace(
        process,
        gpus=tuple(gpu for replica, _ in replicas for gpu in replica.legs[0].gpus),
        ports=tuple(port for _, port in replicas),
        ready=tuple(ReadyCheck(replica.url, replica.served_name, replica.load_timeout_s) for replica, _ in replicas),
        stop_timeout_s=experiment.engine.stop_timeout_s,
        replicas=tuple(replica.replica for replica, _ in replicas),
    )


def _aliases(experiment: ExperimentConfig, replica: PlannedReplica) -> tuple[str, ...]:
    """Names that a redirected request may use: it comes with the body that was meant for the gateway."""
    if not experiment.redirects:
        return ()
    return tuple(name for name in (AUTO_MODEL, replica.expert) if name != replica.served_name)


def _endpoint(replica: PlannedReplica) -> Endpoint:
    return Endpoint(replica=replica.replica, expert=replica.expert, model=replica.served_name, url=replica.url)
