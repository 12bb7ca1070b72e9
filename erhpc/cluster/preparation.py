"""Makes the run folder and everything in it that must exist before the job is queued.

Missing files are found here, on the login node, not after hours in a queue.
"""

from __future__ import annotations

import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from erhpc.config import DEMO_CORPUS, ExperimentConfig, FitConfig, WorkloadConfig
from erhpc.corpus.dataset import find_split
from erhpc.corpus.domains import check_domains
from erhpc.corpus.prompts import demo_text, hash_source, read_prompts
from erhpc.errors import ConfigError, InputError
from erhpc.experts.emulated_serving import serve_as
from erhpc.experts.model_directory import write_model_directory
from erhpc.experts.vllm import write_guest_package
from erhpc.plan.plan import Plan
from erhpc.plan.specs import EmulatedExpertsSpec
from erhpc.results import store
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.provenance import collect_provenance, write_manifest
from erhpc.results.record import SCHEMA_VERSION
from erhpc.routing.artefact import read_artefact
from erhpc.routing.embedding import check_embedding
from erhpc.workload.tokenizer import read_tokenizer
from erhpc.workload.traces import read_trace


def prepare_run(plan: Plan, yaml: str, now: datetime) -> RunPaths:
    """Create `<output_root>/<experiment>/<time>-<id>/` for a plan; nothing is left behind when it cannot be completed.

    Raises:
        InputError: a prompt file, artefact, model directory or interpreter is missing or malformed.
        ConfigError: the artefact does not match the experts.
    """
    experiment = plan.experiment
    check_inputs(plan)
    name = f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run = RunPaths(Path(experiment.output_root).resolve() / experiment.name / name)
    try:
        run.root.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"output_root={experiment.output_root}: {run.root} cannot be made: {error.strerror}. "
            "Choose a folder that you may write to and that the nodes see."
        ) from error
    try:
        _fill(plan, yaml, run)
    except BaseException:
        shutil.rmtree(run.root)
        raise
    return run


def check_inputs(plan: Plan) -> None:
    """Raise InputError for the first file the run needs and has not, ConfigError for what does not fit.

    That is: an artefact for another number of experts, or emulated experts of which the twin has no model.
    """
    experiment = plan.experiment
    if plan.is_emulated:
        _check_emulation(plan)
    check_workload(experiment.workload)
    for name, expert in experiment.experts.items():
        if plan.engine == "vllm" and expert.weights is not None and not Path(expert.weights, "config.json").is_file():
            raise InputError(
                f"experts.{name}.weights={expert.weights} is no model directory (it has no config.json). "
                "Give a directory with config.json, tokenizer and weights, or null for a synthetic one."
            )
    keys = experiment.gateway.keys
    if experiment.router.policy != "none" and keys is not None and not os.access(keys, os.R_OK):
        raise InputError(f"gateway.keys={keys} cannot be read. Give a file of lines `NAME KEY`, or leave it out.")
    if experiment.router.policy == "cluster" and experiment.router.artefact is not None:
        _check_artefact(experiment, Path(experiment.router.artefact))
    if experiment.router.needs_embedding:
        check_embedding(Path(experiment.router.embedding or ""))
    python = next((process.argv[0] for process in plan.processes if process.kind == "expert"), "")
    if plan.engine == "vllm" and not os.access(python, os.X_OK):
        raise InputError(
            f"engine.python={experiment.engine.python!r}: no vLLM interpreter at {python!r}. Set engine.python or "
            "$ERHPC_VLLM_PYTHON to the python of an environment that has vllm; `make vllm-env` builds one for CPUs."
        )


def check_workload(workload: WorkloadConfig) -> None:
    """Raise InputError if prompts, trace or tokenizer cannot be read, or no prompt is of a domain of the mixture."""
    if workload.trace is not None:
        read_trace(workload.trace, workload.trace_format)
    if workload.tokenizer is not None:
        read_tokenizer(workload.tokenizer)
    if workload.format != "synthetic":
        columns = {"prompt_column": workload.prompt_column, "domain_column": workload.domain_column}
        check_domains(workload.mixture, read_prompts(workload.prompts, workload.format, **columns))


def _check_emulation(plan: Plan) -> None:
    """What an emulated expert would refuse when it starts, refused before anything is submitted."""
    for process in plan.processes:
        if process.kind == "expert":
            for spec in msgspec.convert(process.spec, EmulatedExpertsSpec).experts:
                serve_as(spec)


def _check_artefact(experiment: ExperimentConfig, artefact: Path) -> None:
    found, num_experts = read_artefact(artefact).num_clusters, len(experiment.experts)
    if found != num_experts:
        raise ConfigError(
            f"router.artefact={artefact} has {found} clusters and the experiment has {num_experts} experts. "
            f"Fit one that matches: python -m erhpc.fit corpus=FILE.jsonl clusters={num_experts} output=DIR."
        )


def _fill(plan: Plan, yaml: str, run: RunPaths) -> None:
    experiment = plan.experiment
    for folder in (run.logs, run.parts, run.submission):
        folder.mkdir()
    write_atomically(run.plan, plan.to_json())
    write_atomically(run.config, yaml.encode())
    write_atomically(run.key, secrets.token_hex(32).encode(), mode=0o600)
    if experiment.router.policy == "cluster":
        prepare_artefact(experiment, run.artefact)
    if plan.engine == "vllm":
        _write_models(experiment, run)
    if plan.engine == "vllm" and experiment.redirects:
        write_guest_package(run.guest_package)
    store.empty_results(run)
    write_manifest(run.manifest, _describe(plan, run))


def _describe(plan: Plan, run: RunPaths) -> dict[str, Any]:
    """The manifest as far as the submitting host knows it; rank 0 adds the nodes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": plan.experiment.name,
        "run_id": run.root.name,
        "engine": plan.engine,
        "cluster": plan.cluster,
        "seed": plan.experiment.seed,
        "num_gpus": plan.num_gpus,
        "notices": plan.notices,
        "config": msgspec.to_builtins(plan.experiment),
        "plan": run.plan.name,
        "inputs": _describe_inputs(plan.experiment),
        "submitted_from": collect_provenance(),
        "nodes": {},
    }


def _describe_inputs(experiment: ExperimentConfig) -> dict[str, Any]:
    """SHA-256 of every file the results depend on: without its text a prompt's id says nothing."""
    named = {"workload.prompts": experiment.workload.prompts, "router.corpus": experiment.router.corpus}
    if experiment.workload.format == "synthetic":
        del named["workload.prompts"]
    return {key: describe_source(source) for key, source in named.items()}


def describe_source(source: str) -> dict[str, Any]:
    """What identifies the texts of a source: its SHA-256 and, of a dataset, which split and files are read."""
    described: dict[str, Any] = {"source": source, "sha256": hash_source(source)}
    if source != DEMO_CORPUS and Path(source).is_dir():
        split = find_split(source)
        files = [path.relative_to(source).as_posix() for path in split.files]
        described |= {"split": split.name, "other_splits": list(split.others), "files": files}
    return described


def prepare_artefact(experiment: ExperimentConfig, folder: Path) -> None:
    """Put the router's classifier into `folder`: a copy of the configured one, or one fitted on the corpus."""
    # scikit-learn takes a second to import, and only what fits a classifier should wait for it.
    from erhpc.routing.fitting import fit_to

    router = experiment.router
    if router.artefact is None:
        settings = FitConfig(
            corpus=router.corpus,
            clusters=len(experiment.experts),
            method=router.method,
            embedding=router.embedding,
            balanced=router.balanced,
            dimensions=router.dimensions,
            seed=experiment.seed,
            output=str(folder),
        )
        fit_to(folder, read_prompts(router.corpus), settings)
    else:
        shutil.copytree(router.artefact, folder)


def _write_models(experiment: ExperimentConfig, run: RunPaths) -> None:
    for name, expert in experiment.experts.items():
        if expert.weights is None:
            write_model_directory(
                run.model(name),
                expert.architecture,
                dtype=expert.dtype,
                quantization=expert.quantization,
                max_model_len=expert.max_model_len,
                weights=experiment.engine.synthetic_weights,
                seed=experiment.seed,
                training_text=demo_text(),
            )
