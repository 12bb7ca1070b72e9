"""Run folders whose records the simulation made: a measurement whose constants are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from erhpc.config import ArchitectureConfig, SloConfig, WorkloadConfig
from erhpc.results.paths import RunPaths
from erhpc.results.store import append_level, empty_results
from erhpc.results.summary import summarise_level
from erhpc.twin.demand import ClosedLoop, Demand, ReplicaModel
from erhpc.twin.hardware import Constants, load_constants
from erhpc.twin.records import Texts, find_window, identify_level, to_part
from erhpc.twin.scheduler import Limits
from erhpc.twin.simulation import simulate
from erhpc.twin.step_time import Roofline

LLAMA3_8B = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)
LEVELS = ((1, 128), (16, 128), (64, 128), (1, 1024), (16, 1024), (64, 1024), (1, 16000))
"""Users and prompt tokens, as conf/workload/calibration.yaml has them."""


def change_constants(factors: dict[str, float], **chosen) -> Constants:
    """Shipped constants times `factors`, by their names in the profile or the GPU."""
    known = load_constants("a100_80", quantization=None, **chosen)
    parts = {}
    for part in ("gpu", "profile"):
        found = getattr(known, part)
        parts[part] = replace(found, **{n: getattr(found, n) * f for n, f in factors.items() if hasattr(found, n)})
    return Constants(parts["gpu"], known.kernel, parts["profile"])


def write_run(
    folder: Path, constants: Constants, *, levels=LEVELS, tensor_parallel=1, requests=6, engine="predicted", reasons=()
) -> RunPaths:
    """A run of one replica of Llama 3 8B whose steps take what `constants` say."""
    run = RunPaths(folder)
    folder.mkdir(parents=True)
    empty_results(run)
    step_time = Roofline(
        LLAMA3_8B, dtype="bfloat16", quantization=None, tensor_parallel=tensor_parallel, gpu="", constants=constants
    )
    limits = Limits(max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=17000, kv_capacity_tokens=400_000)
    replica = ReplicaModel(replica="server-0", expert="server", limits=limits, step_time=step_time)
    for level, (users, tokens) in enumerate(levels):
        demand = Demand(prompt_tokens=[tokens], answer_tokens=[128])
        predicted = simulate([[replica]], demand, ClosedLoop(users=users, num_requests=users * requests))
        texts = Texts(prompt_ids=["p"], domains=[""])
        part = to_part(predicted, find_window(predicted), texts, started_utc="2026-01-01T00:00:00Z")
        identity = identify_level(
            experiment="x", run_id=folder.name, level=level, users=users, num_replicas=1, num_gpus=1
        )
        identity = replace(identity, engine=engine)
        row = summarise_level(
            identity,
            [part],
            gateway_lag_p99_s=None,
            engine_lag_p99_s=None,
            reasons=list(reasons),
            workload=WorkloadConfig(),
            slo=SloConfig(),
            capacity_tokens_per_s=None,
        )
        append_level(run, identity, [part], row)
    return run
