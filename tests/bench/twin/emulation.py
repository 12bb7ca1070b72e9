"""How far emulated experts are from the simulation of the same load: a table, one row per number of users.

    python -m tests.bench.twin.emulation --users 1,10,100,1000 --replicas 4

The replicas are those of conf/experiment/quickstart.yaml (Llama 3 70B AWQ on two A100 each), served by one process as
on a machine with few cores. Users are dealt to the replicas, each of which is asked directly by a client of its own
(`python -m erhpc.load`); the simulation is given the same users, prompts and answers. Compared are the requests sent
and answered in the window, each with itself, and the tokens within the window. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from erhpc.composition import compose_experiment, to_config
from erhpc.config import ExperimentConfig, LengthConfig, WorkloadConfig
from erhpc.experts.emulated_request import parse_ask
from erhpc.experts.emulated_serving import serve_as
from erhpc.load.population import STARTS_PER_S
from erhpc.plan.building import build_plan
from erhpc.plan.site import Site, decide_setting
from erhpc.plan.specs import EmulatedExpertSpec, EmulatedExpertsSpec
from erhpc.results.store import read_records
from erhpc.twin.demand import ClosedLoop, Demand, GatewayModel, ReplicaModel
from erhpc.twin.simulation import simulate
from erhpc.workload.pool import PromptPool
from erhpc.workload.requests import RequestSource

COLUMNS = {"tokens_per_s": 1, "ttft_mean_s": 1e3, "ttft_p50_s": 1e3, "itl_mean_s": 1e3}
"""What the table shows, and times what."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each client is told."""

    users: int
    warmup_s: float
    measure_s: float
    speedup: float = 1.0
    """Times of the emulated experts run so many times as fast; all other times here are theirs."""
    input_tokens: int = 256
    answer_low: int = 32
    answer_high: int = 96

    def to_workload(self) -> WorkloadConfig:
        return WorkloadConfig(
            users=[self.users],
            format="synthetic",
            input_tokens=LengthConfig(mean=self.input_tokens),
            output_tokens=LengthConfig(kind="uniform", low=self.answer_low, high=self.answer_high),
        )

    def to_overrides(self) -> list[str]:
        workload = self.to_workload()
        return [
            f"users=[{self.users}]",
            "workload=synthetic",
            f"workload.input_tokens.mean={workload.input_tokens.mean}",
            "workload.output_tokens.kind=uniform",
            f"workload.output_tokens.low={self.answer_low}",
            f"workload.output_tokens.high={self.answer_high}",
            f"workload.warmup_s={self.warmup_s / self.speedup}",
            f"workload.warmup_max_s={self.warmup_s / self.speedup}",
            f"workload.measure_s={self.measure_s / self.speedup}",
            "workload.drain_s=300",
            "load.calibrate=false",
        ]


@dataclass(frozen=True)
class Answered:
    """One request: when it was sent, and when its tokens came, seconds."""

    sent_s: float
    tokens_s: np.ndarray


Times = Mapping[tuple[int, int], Answered]
"""The answered requests of one replica by (user, sequence)."""


def list_specs(num_replicas: int, *, speedup: float = 1.0) -> list[EmulatedExpertSpec]:
    """Replicas of the quickstart as its plan has them, on ports of their own and open to all."""
    overrides = ["+experiment=quickstart", "cluster=local", "engine=emulated"]
    experiment = to_config(compose_experiment(overrides), ExperimentConfig)
    planned = build_plan(experiment, decide_setting(experiment, Site(num_cores=1)), python="python")
    (process,) = [process for process in planned.processes if process.kind == "expert"]
    specs = msgspec.convert(process.spec, EmulatedExpertsSpec).experts
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num_replicas)]
        ports = [probe.getsockname()[1] for probe in probes]
    return [
        replace(specs[index % len(specs)], host="127.0.0.1", port=port, key_file=None, speedup=speedup)
        for index, port in enumerate(ports)
    ]


@contextlib.contextmanager
def serving(specs: Sequence[EmulatedExpertSpec], folder: Path) -> Iterator[int]:
    """The process id of a process that serves the replicas."""
    path = folder / "experts.json"
    path.write_bytes(msgspec.json.encode(EmulatedExpertsSpec(experts=list(specs))))
    with subprocess.Popen([sys.executable, "-m", "jobs.emulated_expert", "--spec", str(path)]) as process:
        try:
            for spec in specs:
                _await_health(f"http://127.0.0.1:{spec.port}/health", process)
            yield process.pid
        finally:
            process.terminate()


def _await_health(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer")


def measure(specs: Sequence[EmulatedExpertSpec], loads: Sequence[Load], folder: Path) -> list[Times]:
    """Put a load on each replica at the same time; what the clients saw, since the first request was due."""
    clients = []
    for spec, load in zip(specs, loads, strict=True):
        url, output = f"url=http://127.0.0.1:{spec.port}", f"output_root={folder / str(spec.port)}"
        command = [sys.executable, "-m", "erhpc.load", url, *load.to_overrides(), output]
        clients.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [client.communicate()[0] for client in clients]
    runs = [re.search(r"^run: (.+)$", output, re.MULTILINE) for output in outputs]
    for client, output in zip(clients, outputs, strict=True):
        if client.returncode:
            raise RuntimeError(f"a client failed:\n{output}")
    return [_read_times(Path(run[1]), load.speedup) for run, load in zip(runs, loads, strict=True) if run]


def _read_times(run: Path, speedup: float) -> Times:
    columns = ["user", "sequence", "scheduled_monotonic_ns", "sent_monotonic_ns", "first_token_monotonic_ns"]
    frame = read_records(run, [*columns, "token_gaps_us", "status"])
    begin_ns = frame["scheduled_monotonic_ns"].min()
    times = {}
    for row in frame[frame["status"] == "ok"].itertuples():
        gaps_s = np.cumsum([0, *row.token_gaps_us]) / 1e6
        first_s = (row.first_token_monotonic_ns - begin_ns) / 1e9
        sent_s = (row.sent_monotonic_ns - begin_ns) / 1e9
        times[row.user, row.sequence] = Answered(sent_s * speedup, (first_s + gaps_s) * speedup)
    return times


def predict(spec: EmulatedExpertSpec, load: Load, requests_per_user: int) -> Times:
    """The same load in the simulation."""
    workload, serving = load.to_workload(), serve_as(spec)
    pool = PromptPool([], workload, 0)
    sources = [RequestSource(user, 0, spec.model, workload, pool) for user in range(load.users)]
    asks = [
        parse_ask("chat", source.draw().body, spec) for _ in range(requests_per_user) for source in sources
    ]  # row i * users + k is request i of user k
    demand = Demand(
        prompt_tokens=[ask.prompt_tokens for ask in asks], answer_tokens=[ask.answer_tokens for ask in asks]
    )
    model = ReplicaModel(replica=spec.replica, expert="", limits=serving.limits, step_time=serving.step_time)
    loop = ClosedLoop(users=load.users, num_requests=len(asks), ramp_s=load.users / STARTS_PER_S * load.speedup)
    found = simulate([[model]], demand, loop, GatewayModel(latency_s=serving.request_s))
    return {
        (user, sequence): Answered(sent_s, found.token_times_s(number))
        for number, (user, sequence, sent_s) in enumerate(
            zip(found.user.tolist(), found.sequence.tolist(), found.sent_s.tolist(), strict=True)
        )
    }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Emulated and predicted, by name."""

    emulated: dict[str, float]
    predicted: dict[str, float]

    def deviation(self, name: str) -> float:
        return self.emulated[name] / self.predicted[name] - 1


def compare(pairs: Sequence[tuple[Times, Times]], load: Load) -> Comparison:
    """Pool the replicas' requests, (emulated, predicted) of each: those sent and answered in the window of `load`.

    Of the emulated ones what is sent after the window is cut with the last answer of it.
    """
    start_s, end_s = load.warmup_s, load.warmup_s + load.measure_s
    sides = []
    for side in (0, 1):
        ttft_s, spans_s, num_gaps, num_tokens = [], 0.0, 0, 0
        for pair in pairs:
            for key, answered in pair[side].items():
                num_tokens += int(((answered.tokens_s >= start_s) & (answered.tokens_s < end_s)).sum())
                if all(key in times and _is_within(times[key], start_s, end_s) for times in pair):
                    ttft_s.append(answered.tokens_s[0] - answered.sent_s)
                    spans_s += answered.tokens_s[-1] - answered.tokens_s[0]
                    num_gaps += len(answered.tokens_s) - 1
        sides.append(
            {
                "tokens_per_s": num_tokens / load.measure_s,
                "ttft_mean_s": float(np.mean(ttft_s)),
                "ttft_p50_s": float(np.median(ttft_s)),
                "itl_mean_s": spans_s / num_gaps,
                "requests": float(len(ttft_s)),
            }
        )
    return Comparison(emulated=sides[0], predicted=sides[1])


def _is_within(answered: Answered, start_s: float, end_s: float) -> bool:
    return start_s <= answered.sent_s and answered.tokens_s[-1] < end_s


def run_level(
    users: int, num_replicas: int, *, warmup_s: float, measure_s: float, folder: Path, speedup: float = 1.0
) -> tuple[Comparison, float]:
    """Measure and predict one number of users, dealt to the replicas; the server's share of a core, too."""
    specs = list_specs(min(num_replicas, users), speedup=speedup)
    loads = [
        Load(users=len(range(index, users, len(specs))), warmup_s=warmup_s, measure_s=measure_s, speedup=speedup)
        for index in range(len(specs))
    ]
    folder.mkdir()
    with serving(specs, folder) as pid:
        before_s, begun_s = _read_cpu_s(pid), time.monotonic()
        measured = measure(specs, loads, folder)
        cpu_share = (_read_cpu_s(pid) - before_s) / (time.monotonic() - begun_s)
    pairs = []
    for spec, load, times in zip(specs, loads, measured, strict=True):
        requests_per_user = max(sequence for _, sequence in times) + 3
        pairs.append((times, predict(spec, load, requests_per_user)))
    return compare(pairs, loads[0]), cpu_share


def _read_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1,10,100,1000", help="levels, by commas")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--warmup-s", type=float, default=60)
    parser.add_argument("--measure-s", type=float, default=60)
    parser.add_argument("--speedup", type=float, default=1, help="below 1: a slow or busy machine weighs less")
    options = parser.parse_args()
    print("emulated, predicted and their deviation; the window of each level is the same in both")
    print(f"{'users':>6} {'tokens/s':>24} {'TTFT mean, ms':>26} {'TTFT p50, ms':>26} {'ITL mean, ms':>24}  CPU")
    with tempfile.TemporaryDirectory() as folder:
        for users in map(int, options.users.split(",")):
            found, cpu_share = run_level(
                users,
                options.replicas,
                warmup_s=options.warmup_s,
                measure_s=options.measure_s,
                speedup=options.speedup,
                folder=Path(folder, str(users)),
            )
            emulated, predicted = found.emulated, found.predicted
            cells = [
                f"{scale * emulated[name]:8.1f} {scale * predicted[name]:8.1f} {found.deviation(name):+6.1%}"
                for name, scale in COLUMNS.items()
            ]
            print(f"{users:>6} {'   '.join(cells)}  {cpu_share:4.0%}", flush=True)


if __name__ == "__main__":
    main()
