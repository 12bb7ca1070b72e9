"""Experiments for tests: composed from the real conf/, decided for a site that is described here."""

from __future__ import annotations

import functools

from erhpc.composition import CONF_DIRECTORY, compose_experiment, to_config
from erhpc.config import ExperimentConfig
from erhpc.plan.building import build_plan
from erhpc.plan.plan import Plan
from erhpc.plan.site import Site, decide_setting

EXPERIMENTS = sorted(path.stem for path in (CONF_DIRECTORY / "experiment").glob("*.yaml"))
GPU_CLUSTER = Site(slurm_answers=True, slurm_gpus_per_node=8, vllm_python="/vllm/bin/python")
LAPTOP = Site(vllm_cpu_python="/vllm-cpu/bin/python")


@functools.cache
def compose(name: str, *overrides: str) -> ExperimentConfig:
    return to_config(compose_experiment([f"+experiment={name}", *overrides]), ExperimentConfig)


def plan(name: str, *overrides: str, site: Site = LAPTOP) -> Plan:
    experiment = compose(name, *overrides)
    return build_plan(experiment, decide_setting(experiment, site), python="python")
