"""How long the twin takes to play the paper's grid, and a level a hundred times as large. Prints seconds, asserts none.

    python -m tests.bench.twin.simulation --requests-per-user 3

The grid: the experiments of conf/experiment on eight A100 (as the plan places them) at the user levels of
conf/workload/paper.yaml. Prompts are the demo corpus, routed by a classifier fitted on it; reading, fitting and
planning are not timed. Every level sends `--requests-per-user` requests per user, and at least 100; its time is the
best of `--repeats`, as neighbours on the machine only ever add to it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator

from erhpc.cluster.preparation import prepare_artefact
from erhpc.composition import CONF_DIRECTORY, compose_experiment, to_config
from erhpc.config import ExperimentConfig
from erhpc.corpus.prompts import read_prompts
from erhpc.plan.building import build_plan
from erhpc.plan.plan import Plan
from erhpc.plan.site import Site, decide_setting
from erhpc.routing.artefact import read_artefact
from erhpc.twin.decode_times import DecodeTimes
from erhpc.twin.demand import ClosedLoop, Demand, GatewayModel, ReplicaModel
from erhpc.twin.serving import describe_serving
from erhpc.twin.simulation import Prediction, simulate
from erhpc.workload.lengths import draw_tokens

LEFT_OUT = ("vllm_cpu_tiny",)
"""Experiments that no GPU model is known of."""
NUM_ROWS = 4096
GATEWAY = GatewayModel(service_s=0.2e-3, latency_s=10e-3)
"""About what a request costs erhpc's gateway, and vLLM's HTTP server (../shared/facts-latency-model.md, 3.6)."""
MOST_USERS, MANY_REPLICAS = 100_000, 1_000


def main() -> None:
    """Time the grid, then the large level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=lambda names: names.split(","), help="names, comma-separated; all")
    parser.add_argument("--requests-per-user", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--asynchronous", action="store_true", help="with asynchronous scheduling")
    parser.add_argument("--without-large", action="store_true", help="the grid only")
    options = parser.parse_args()
    known = sorted(path.stem for path in (CONF_DIRECTORY / "experiment").glob("*.yaml"))
    names = options.experiments or [name for name in known if name not in LEFT_OUT]
    times_s = [
        time_experiment(name, options.requests_per_user, options.repeats, asynchronous=options.asynchronous)
        for name in names
    ]
    print(f"{len(names)} experiments: {sum(times_s):.2f} s of one core")
    if not options.without_large:
        time_large(asynchronous=options.asynchronous)


def time_experiment(name: str, requests_per_user: int, repeats: int, *, asynchronous: bool) -> float:
    """Play all levels of an experiment; how long it took at best, CPU seconds."""
    experiment = compose(name)
    plan = build_plan(experiment, decide_setting(experiment, Site(slurm_answers=False)), python="python")
    models = list_replicas(plan, asynchronous=asynchronous)
    names = list(experiment.experts)
    pools = [[model for model in models if model.expert == expert] for expert in names]
    demand = build_demand(experiment)
    took_s, num_requests, rates = 0.0, 0, []
    for users in experiment.workload.users:
        load = ClosedLoop(users=users, num_requests=max(users * requests_per_user, 100))
        tries_s = []
        for _ in range(repeats):
            begun_s = time.process_time()
            prediction = simulate(pools, demand, load, GATEWAY)
            tries_s.append(time.process_time() - begun_s)
        took_s += min(tries_s)
        num_requests += load.num_requests
        rates.append(measure_rate(prediction))
    shown = " ".join(f"{rate:.0f}" for rate in rates)
    print(f"{name:26} {took_s:6.3f} s, {took_s / num_requests * 1e6:5.1f} us per request; PREDICTED tokens/s: {shown}")
    return took_s


def time_large(*, asynchronous: bool) -> None:
    """100,000 users of 1,000 replicas of one expert."""
    experiment = compose("llama3_8b_tp1")
    plan = build_plan(experiment, decide_setting(experiment, Site(slurm_answers=False)), python="python")
    model = list_replicas(plan, asynchronous=asynchronous)[0]
    load = ClosedLoop(users=MOST_USERS, num_requests=3 * MOST_USERS, ramp_s=60)
    demand = build_demand(experiment)
    begun_s = time.process_time()
    everywhere = Demand(prompt_tokens=demand.prompt_tokens, answer_tokens=demand.answer_tokens)
    simulate([[model] * MANY_REPLICAS], everywhere, load, GatewayModel(latency_s=10e-3))
    print(
        f"{MOST_USERS:,} users, {MANY_REPLICAS:,} replicas, 3 requests per user: {time.process_time() - begun_s:.0f} s"
    )


def compose(name: str) -> ExperimentConfig:
    """An experiment of conf/ as this machine would emulate it, with the paper's workload."""
    changes = [f"+experiment={name}", "engine=emulated", "cluster=local", "workload=paper"]
    return to_config(compose_experiment(changes), ExperimentConfig)


def list_replicas(plan: Plan, *, asynchronous: bool) -> list[ReplicaModel]:
    """The replicas of a plan; those of equal experts share one model of step times."""
    step_times: dict[str, DecodeTimes] = {}
    models = []
    for replica in plan.replicas:
        expert = plan.experiment.experts[replica.expert]
        serving = describe_serving(
            expert,
            gpu=plan.experiment.cluster.gpu,
            profile=plan.experiment.engine.profile,
            kv_capacity_tokens=replica.memory.kv_capacity_tokens,
        )
        limits = replace(serving.limits, asynchronous=asynchronous)
        step_time = step_times.setdefault(repr(expert), DecodeTimes(serving.step_time, limits.kv_capacity_tokens))
        models.append(ReplicaModel(replica=replica.replica, expert=replica.expert, limits=limits, step_time=step_time))
    return models


def build_demand(experiment: ExperimentConfig) -> Demand:
    """Requests as the workload draws them; each goes where the fitted classifier sends its prompt."""
    random = Generator(PCG64(experiment.seed))
    prompts = read_prompts(experiment.workload.prompts)
    chosen = random.integers(len(prompts), size=NUM_ROWS)
    pools = route([prompt.text for prompt in prompts], experiment)
    return Demand(
        # About four characters are a token, and a chat template adds some.
        prompt_tokens=np.array([len(prompts[index].text) // 4 + 10 for index in chosen]),
        answer_tokens=np.array([draw_tokens(experiment.workload.output_tokens, random) for _ in chosen]),
        pool=np.array(pools)[chosen],
    )


def route(texts: Sequence[str], experiment: ExperimentConfig) -> list[int]:
    """Index of the expert of each text."""
    if experiment.router.policy != "cluster":
        return [0] * len(texts)
    with tempfile.TemporaryDirectory() as folder:
        prepare_artefact(experiment, Path(folder, "artefact"))
        classifier = read_artefact(Path(folder, "artefact"))
    return [classifier.classify(text).cluster or 0 for text in texts]


def measure_rate(prediction: Prediction) -> float:
    """Tokens per second while the level was full: between the first and the last quarter of the tokens."""
    ends_s = np.sort(prediction.last_token_s)
    first, last = len(ends_s) // 4, 3 * len(ends_s) // 4
    order = np.argsort(prediction.last_token_s, kind="stable")
    tokens = prediction.tokens_out[order][first:last].sum()
    return float(tokens / (ends_s[last] - ends_s[first]))


if __name__ == "__main__":
    main()
