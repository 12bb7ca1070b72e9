"""How right erhpc's client and its peers are: each against a mock that knows when it sent each token.

    python -m tests.bench.load --clients erhpc,vllm --users 1,1000 --repeats 3

Clients run one after the other, in rotated order, each pinned to one core while the mock has another.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tests.bench.load import truth as truths
from tests.bench.load.case import Case, Client, Unavailable
from tests.bench.load.environments import cache_folder, model_directory
from tests.bench.load.erhpc_client import ERHPC_CLIENTS
from tests.bench.load.measurement import Measurement, compare
from tests.bench.load.mock import Mock, NoCompiler, compile_mock, serving
from tests.bench.load.peers import PEERS
from tests.bench.load.process import ClientFailed, run_client
from tests.bench.load.tables import level_tables
from tests.bench.load.verdict import extrapolation, verdict_tables

CLIENTS: dict[str, Client] = {**ERHPC_CLIENTS, **PEERS}
LEVELS = (1, 50, 200, 500, 1000, 2000)
OVERTIME_S = 400
"""How much longer than its seconds a client may take: start-up, a client that is late, its own summing up."""
MODEL = "mock"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the measurements if asked to; exit code 1 if there is not one."""
    options = parse(arguments)
    cores = choose_cores(options)
    clients = dict(available_clients(options.clients))
    try:
        program = compile_mock(cache_folder())
    except NoCompiler as error:
        print(error)
        return 1
    measurements: list[Measurement] = []
    print(describe(options, cores))
    for repeat, users, name in schedule(options.repeats, options.users, list(clients)):
        measurement = measure(clients[name], program, options, cores, users, repeat)
        if measurement is None:
            continue
        measurements.append(measurement)
        if options.output:
            options.output.write_bytes(msgspec.json.format(msgspec.json.encode(measurements)))
    for users in options.users:
        print(level_tables(measurements, users))
    print(verdict_tables(measurements))
    print(extrapolation(measurements, options.tokens, options.ttft_ms, options.gap_ms))
    return 0 if measurements else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__.splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument(
        "--clients", type=lambda text: text.split(","), default=["erhpc", *PEERS], help=",".join(CLIENTS)
    )
    parser.add_argument("--users", type=numbers, default=list(LEVELS), help="levels, e.g. 1,50,1000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=16.0, help="length of each measurement")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--ttft-ms", type=float, default=100.0)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--client-core", type=int)
    parser.add_argument("--mock-core", type=int)
    parser.add_argument("--favour", action="store_true", help="let clients come before other processes of this machine")
    parser.add_argument("--output", type=Path, help="JSON file of all measurements, rewritten after each")
    options = parser.parse_args(arguments)
    if unknown := set(options.clients) - set(CLIENTS):
        parser.error(f"no client is called {', '.join(sorted(unknown))}; there are {', '.join(CLIENTS)}")
    return options


def choose_cores(options: argparse.Namespace) -> tuple[int, int]:
    """The client's core and the mock's: the last and the first that this process may use, unless given."""
    allowed = sorted(os.sched_getaffinity(0))
    client = allowed[-1] if options.client_core is None else options.client_core
    mock = allowed[0] if options.mock_core is None else options.mock_core
    # The bench itself looks at the client's costs twice a second; the client is not to feel that.
    os.sched_setaffinity(0, {mock})
    return client, mock


def describe(options: argparse.Namespace, cores: tuple[int, int]) -> str:
    """What is measured, and on what."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{cores[0]}/topology/thread_siblings_list")
    shared = cores[0] == cores[1] or str(cores[1]) in siblings.read_text().strip().replace("-", ",").split(",")
    return (
        f"mock: TTFT {options.ttft_ms:g} ms, gap {options.gap_ms:g} ms, {options.tokens} tokens, on core {cores[1]}; "
        f"client on core {cores[0]}{' (THE SAME PHYSICAL CORE)' if shared else ''}; about {options.seconds:g} s each; "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def available_clients(names: Sequence[str]) -> Iterator[tuple[str, Client]]:
    """Those that are or can be installed; says why the others are not."""
    for name in names:
        try:
            CLIENTS[name].prepare()
        except Unavailable as reason:
            print(f"skipped: {CLIENTS[name].name}: {reason}")
            continue
        yield name, CLIENTS[name]


def schedule(repeats: int, levels: Sequence[int], names: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Repeat, users and client of each measurement; another client begins in each repeat."""
    for repeat in range(repeats):
        shift = repeat % max(1, len(names))
        for users in levels:
            for name in (*names[shift:], *names[:shift]):
                yield repeat, users, name


def measure(
    client: Client, program: Path, options: argparse.Namespace, cores: tuple[int, int], users: int, repeat: int
) -> Measurement | None:
    """One measurement against a fresh mock, one line printed; None if the client failed."""
    limit_s = options.seconds + OVERTIME_S
    with (
        tempfile.TemporaryDirectory(prefix="erhpc-bench-") as folder,
        serving(
            program,
            ttft_ms=options.ttft_ms,
            gap_ms=options.gap_ms,
            lifetime_s=limit_s + 60,
            core=cores[1],
            model=MODEL,
        ) as mock,
    ):
        case = build_case(mock, options, users, Path(folder))
        try:
            cost = run_client(
                client.command(case), environment(case), case.folder, cores[0], limit_s, favoured=options.favour
            )
            measurement = compare(client.name, repeat, case, client.read_report(case), mock.truth(), cost)
        except (ClientFailed, OSError, ValueError, KeyError, IndexError) as error:
            print(f"{client.name:<20} {users:>6,} users, repeat {repeat}: failed: {error!r}", flush=True)
            return None
    print(one_line(measurement), flush=True)
    return measurement


def build_case(mock: Mock, options: argparse.Namespace, users: int, folder: Path) -> Case:
    """The case of one level."""
    rate = truths.possible_tokens_per_s(users, options.tokens, options.ttft_ms, options.gap_ms)
    per_user = max(1, round(rate * options.seconds / options.tokens / users))
    return Case(
        url=mock.url, model=MODEL, model_directory=model_directory(), users=users, tokens=options.tokens,
        seconds=options.seconds, requests=users * per_user, folder=folder,
    )  # fmt: skip


def environment(case: Case) -> dict[str, str]:
    """Nobody goes to the network, and everybody has one core."""
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    quiet = dict.fromkeys(("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"), "1")
    nowhere = {"HF_HOME": str(case.folder / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    return offline | quiet | nowhere | {"OMP_NUM_THREADS": "1", "NO_PROXY": "*", "no_proxy": "*"}


def one_line(measurement: Measurement) -> str:
    """What came out, for whoever watches."""
    reported, true = measurement.reported_ttft.mean_ms, measurement.true_ttft.mean_ms
    error = f"{reported - true:+.2f}" if reported is not None and true is not None else "?"
    return (
        f"{measurement.client:<20} {measurement.users:>6,} users, repeat {measurement.repeat}: TTFT mean {error} ms, "
        f"held {measurement.held:.1f}, {measurement.cpu_us_per_token:.1f} us/token, "
        f"mock late p99 {measurement.mock_late_p99_ms:.2f} ms"
    )


if __name__ == "__main__":
    raise SystemExit(main())
