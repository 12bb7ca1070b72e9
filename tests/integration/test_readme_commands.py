"""Each README command is executed: verbatim where it is quick, else with overrides that shorten the run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest

from erhpc.results.store import read_levels, read_prediction, read_records
from tests import runs
from tests.readme import find_commands
from tests.standalone import null_expert

SHORT = [*runs.QUICK, "workload.users=[2]", "workload.measure_s=1"]
SHORT_LOAD = [
    "workload.warmup_s=0.5",
    "workload.warmup_max_s=1",
    "workload.measure_s=1",
    "workload.drain_s=5",
    "load.calibrate=false",
]
# `make test` runs this very test, so only its existence is checked; the others are covered where they are named.
ELSEWHERE = {
    "make test": None,
    "make check": None,
    "make vllm-env": None,
    "make embedding": ("tests/integration/test_fit.py", "Fetch it with .ci/embedding.sh"),
    "python -m erhpc.fit corpus=demo clusters=8 method=embedding embedding=DIR": (
        "tests/integration/test_fit.py",
        '"method=embedding", f"embedding={embedding}"',
    ),
    'make bench-load BENCH_ARGS="--clients erhpc --users 1,1000"': (
        "tests/integration/test_bench_mock.py",
        '"tests.bench.load", "--clients", "erhpc"',
    ),
    "make bench-gateway": (
        "tests/integration/test_bench_gateway.py",
        '"tests.bench.gateway", "--gateways", "fast,plain,processes,redirect"',
    ),
    "python -m erhpc.gateway --experts http://127.0.0.1:8001 code=http://127.0.0.1:8002 gateway.processes=2": (
        "tests/integration/test_gateway_verb.py",
        'gateway("--experts", first.url + "/v1", f"code={second.url}", *keys, "gateway.processes=2")',
    ),
    "sbatch sbatch/sweep.sh cluster=slurm": ("tests/slurm/test_runs.py", '"sbatch/sweep.sh", *overrides'),
    "python -m erhpc.launch +experiment=llama3_8b_tp1 workload=calibration": (
        "tests/integration/test_calibrate.py",
        '"workload=calibration"',
    ),
    "python -m erhpc.calibrate RUN": ("tests/integration/test_calibrate.py", 'run_verb("calibrate", run.root)'),
    "python -m erhpc.launch +experiment=vllm_cpu_tiny": (
        "tests/integration/test_vllm_run.py",
        '"launch", "+experiment=vllm_cpu_tiny"',
    ),
}
COMMANDS = find_commands()


def execute(command, *, timeout=280, **options):
    """Run a command line of the README in bash, in the environment it tells the reader to activate."""
    line = f". .venv/bin/activate && {command}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=timeout, check=False, cwd=runs.ROOT, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment():
    """Without the site's Slurm: these runs stay on this machine."""
    assert (runs.ROOT / ".venv/bin/activate").exists(), "the README's environment is not there: make demo or make test"
    return {**os.environ}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_the_make_targets_of_the_readme_exist(command):
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(command)[1:]], capture_output=True, text=True, check=False, cwd=runs.ROOT
    )

    assert done.returncode == 0, done.stderr


def test_every_command_of_the_readme_is_tested_somewhere():
    here = {command for command in COMMANDS if command in EXPECTED or command in ELSEWHERE}

    assert [command for command in COMMANDS if command not in here] == []
    for file, call in filter(None, ELSEWHERE.values()):
        assert call in (runs.ROOT / file).read_text()


def shorten(command, tmp_path):
    """The command as the README has it, plus overrides that make it quick and keep its results out of runs/."""
    return f"{command} {shlex.join([*SHORT, f'output_root={tmp_path}'])}"


def check_demo(command, tmp_path, environment):
    output = execute(command, env=environment)

    run = runs.find_run(output)
    assert "EMULATED" in output
    assert [level["users"] for level in runs.read_status(run)["levels"]] == [1, 10, 100, 1000]
    assert (run.report / "overview.png").exists()
    runs.assert_records_are_the_requests(run)
    shutil.rmtree(run.root)


def check_activation(command, tmp_path, environment):
    assert "/.venv/bin/python" in execute(f"{command} && command -v python", env=environment)


def check_plan(command, tmp_path, environment):
    output = execute(command, env=environment)

    assert "expert_0-0" in output
    assert "485,424" in output
    assert "vllm.entrypoints.openai.api_server" in output
    assert "PREDICTED: computed, not measured" in output
    assert "knee: 200 users" in output


def check_placements(command, tmp_path, environment):
    output = execute(command, env=environment)

    assert "PREDICTED: computed, not measured" in output
    assert " 1  4 experts: 1 replica of TP2 awq (as given)" in output
    assert "5 placements on 1 node(s) of 8 GPUs; 4 more do not fit" in output


def check_launch(command, tmp_path, environment):
    output = execute(shorten(command, tmp_path), env=environment)

    assert "finished" in output
    run = runs.only_run(tmp_path)
    runs.assert_records_are_the_requests(run)
    assert list(read_prediction(run.root)["users"]) == [2]
    assert "prediction beside measurement" in output


def load(command, tmp_path, environment, *overrides):
    """Run a command that loads a server, against one of its own; returns what it printed and its run."""
    with null_expert() as url:
        words = shlex.join([*SHORT_LOAD, f"output_root={tmp_path}", *overrides])
        output = execute(f"{command.replace('http://127.0.0.1:8000', url)} {words}", env=environment)
    return output, runs.find_run(output)


def check_load_of_users(command, tmp_path, environment):
    output, run = load(command, tmp_path, environment)

    levels = read_levels(run.root)
    assert list(levels["users"]) == [1, 10, 100]
    assert set(levels["engine"]) == {"emulated"}
    assert set(runs.choose_counted(read_records(run.root))["status"]) == {"ok"}
    assert "EMULATED: not measured on GPUs" in output
    assert "arrivals stamped by the kernel" in output


def check_load_of_rates(command, tmp_path, environment):
    output, run = load(command, tmp_path, environment)

    levels = read_levels(run.root)
    assert list(levels["rate_per_s"]) == [5, 20]
    assert set(levels["arrivals"]) == {"poisson"}
    assert set(read_records(run.root)["latency_from"]) == {"scheduled"}
    assert "arrivals" in output
    assert "backlog" in output


def check_load_of_a_trace(command, tmp_path, environment):
    """With a short trace in place of the public one."""
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{46 + number / 10:012.9f},{100 + number},{5 + number}" for number in range(30)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    command = command.replace("azure_llm_2023_conv.csv", shlex.quote(str(trace)))

    _, run = load(command, tmp_path, environment, "workload.measure_s=5")

    assert list(read_levels(run.root)["arrivals"]) == ["trace"]
    assert sorted(read_records(run.root)["max_tokens"]) == list(range(5, 35))


def check_search(command, tmp_path, environment):
    """With bounds that a busy machine meets too; a level that was not valid there is measured again."""
    output, run = load(command, tmp_path, environment, "search.high=20", "slo.ttft_s=10", "slo.tpot_s=1")

    assert set(read_levels(run.root)["users"]) == {10, 20}
    assert "search: 20 users met the SLO" in output
    assert run.search.exists()


def check_client_nodes(command, tmp_path, environment):
    output = execute(shorten(command, tmp_path), env=environment)

    assert "finished" in output
    records = runs.assert_records_are_the_requests(runs.only_run(tmp_path))
    assert set(records["worker"]) == {0, 1}  # of four processes, for two users


def check_detached(command, tmp_path, environment):
    """Also the three status commands, which need a run to look at."""
    output = execute(shorten(command, tmp_path), env=environment)
    run = str(runs.find_run(output).root)

    assert "follow it: python -m erhpc.status" in output
    assert execute("python -m erhpc.status --once RUN".replace("RUN", run), env=environment)
    assert "finished" in execute("python -m erhpc.status RUN".replace("RUN", run), env=environment)
    assert "finished" in execute("python -m erhpc.status --cancel RUN".replace("RUN", run), env=environment)


def check_covered_by_detached(command, tmp_path, environment):
    assert command.replace("RUN", "") != command


def check_multirun(command, tmp_path, environment):
    output = execute(shorten(command, tmp_path), env=environment)
    folders = [line.removeprefix("run: ") for line in output.splitlines() if line.startswith("run: ")]

    assert len(folders) == 2
    assert execute(f"python -m erhpc.status {shlex.join(folders)}", env=environment).count("finished") >= 2


def check_report(command, tmp_path, environment):
    run_output = execute(shorten("python -m erhpc.launch +experiment=quickstart", tmp_path), env=environment)
    assert "finished" in run_output

    output = execute(command.replace("runs/quickstart", str(tmp_path / "quickstart")), env=environment)

    assert "overview.png" in output


def check_fit(command, tmp_path, environment):
    output = execute(command.replace("runs/router", str(tmp_path / "router")), env=environment)

    assert "purity" in output
    assert (tmp_path / "router" / "classifier.json").exists()


def check_routing_quality(command, tmp_path, environment):
    output = execute(f"{command} output={tmp_path}/router", env=environment)

    for shown in ("replicas", "NMI", "entropy", "cbtm", "content_words", "full_text", "seeds 0 to 4"):
        assert shown in output


EXPECTED = {
    "make demo": check_demo,
    ". .venv/bin/activate": check_activation,
    "python -m erhpc.plan +experiment=llama3_70b_tp4 engine=vllm cluster=slurm": check_plan,
    "python -m erhpc.plan search +experiment=llama3_70b_awq_tp2 engine=emulated predict.users=200 slo.tpot_s=0.05": (
        check_placements
    ),
    "python -m erhpc.launch +experiment=llama3_70b_tp4": check_launch,
    "python -m erhpc.launch +experiment=llama3_8b_tp1 detach=true": check_detached,
    "python -m erhpc.load url=http://127.0.0.1:8000 users=[1,10,100]": check_load_of_users,
    "python -m erhpc.load url=http://127.0.0.1:8000 workload=open rates_per_s=[5,20]": check_load_of_rates,
    "python -m erhpc.load url=http://127.0.0.1:8000 workload=trace workload.trace=azure_llm_2023_conv.csv": (
        check_load_of_a_trace
    ),
    "python -m erhpc.load url=http://127.0.0.1:8000 search.kind=users search.low=10 slo.ttft_s=0.2 slo.tpot_s=0.03": (
        check_search
    ),
    "python -m erhpc.launch +experiment=llama3_8b_tp1 load.processes=4 load.nodes=1 cluster.max_nodes=2": (
        check_client_nodes
    ),
    "python -m erhpc.status RUN": check_covered_by_detached,
    "python -m erhpc.status --once RUN": check_covered_by_detached,
    "python -m erhpc.status --cancel RUN": check_covered_by_detached,
    "python -m erhpc.launch --multirun +experiment=llama3_8b_tp1,baseline_llama3_8b_tp8": check_multirun,
    "python -m erhpc.report runs/quickstart": check_report,
    "python -m erhpc.fit corpus=demo clusters=8 output=runs/router": check_fit,
    "python -m erhpc.fit corpus=demo clusters=8 replicas=16": check_routing_quality,
}


@pytest.mark.parametrize("command", EXPECTED)
def test_a_command_of_the_readme_does_what_the_readme_says(command, tmp_path, environment):
    assert command in COMMANDS

    EXPECTED[command](command, tmp_path, environment)
