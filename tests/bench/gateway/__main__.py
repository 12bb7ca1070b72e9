"""What gateways cost and add, side by side on the same mock upstream.

    python -m tests.bench.gateway --gateways fast,nginx,sglang --repeats 3

The gateway has one core with all its processes, mock and driver have others, or share the other. The mock alone
(`direct`) is measured beside them: its times are what a gateway adds to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tests.bench.gateway.contestants import Contestant, contestants
from tests.bench.gateway.measurement import DIRECT, Cores, GatewayFailed, Row, measure
from tests.bench.gateway.phases import PHASES, Phase
from tests.bench.gateway.tables import all_tables
from tests.bench.load.case import Unavailable
from tests.bench.load.environments import cache_folder
from tests.bench.load.mock import NoCompiler, compile_mock

ALL = ("plain", "fast", "classify", "processes", "redirect", "nginx", "sglang", "vllm", "litellm", "floor")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit code 1 if nothing could be measured, or a gateway failed."""
    options = parse(arguments)
    cores = choose_cores()
    try:
        program = compile_mock(cache_folder())
    except NoCompiler as error:
        print(error)
        return 1
    chosen = dict(available(contestants(fitted_artefact()), options.gateways))
    print(f"{cores}; load average {os.getloadavg()[0]:.1f}", flush=True)
    rows: list[Row] = []
    failures = []
    names, began_s = [DIRECT, *chosen], time.monotonic()
    for repeat in range(options.repeats):
        for place, name in enumerate(names[repeat % len(names) :] + names[: repeat % len(names)]):
            spent_s = time.monotonic() - began_s
            done = repeat * len(names) + place
            print(f"[{spent_s:4.0f} s, {done} of {options.repeats * len(names)}] {name}, repeat {repeat}", flush=True)
            contestant = chosen.get(name)
            try:
                for row in measure(program, contestant, limit(options, contestant), cores, repeat):
                    rows.append(row)
                    print(f"  {row.phase:14} {msgspec.json.encode(row).decode()}", flush=True)
            except GatewayFailed as error:
                failures.append(f"failed in repeat {repeat}: {error}")
                print(failures[-1], flush=True)
            if options.output:
                options.output.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    print(all_tables(rows))
    print("\n".join([*failures, f"{time.monotonic() - began_s:.0f} s; load average {os.getloadavg()[0]:.1f}"]))
    return 0 if rows and not failures else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway", description=__doc__.splitlines()[0])
    words = lambda text: text.split(",")  # noqa: E731
    names = [phase.name for phase in PHASES]
    parser.add_argument("--gateways", type=words, default=ALL, help="of: " + ",".join(ALL))
    parser.add_argument("--phases", type=words, default=names, help="of: " + ",".join(names))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="length of every phase that has one")
    parser.add_argument("--max-users", type=int, help="no phase has more")
    parser.add_argument("--output", type=Path, help="all rows, as JSON")
    options = parser.parse_args(arguments)
    for given, known in ((options.gateways, ALL), (options.phases, names)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: not one of {','.join(known)}")
    return options


def limit(options: argparse.Namespace, contestant: Contestant | None) -> list[Phase]:
    """The phases asked for, with no more users than options and gateway allow."""
    limits = [options.max_users, contestant.max_users if contestant is not None else None]
    max_users = min((users for users in limits if users is not None), default=None)
    return [phase.limited(max_users, options.seconds) for phase in PHASES if phase.name in options.phases]


def choose_cores() -> Cores:
    """This process and the driver go to the last core, at once."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[-1]})
    return Cores(gateway=allowed[0], mock=allowed[min(1, len(allowed) - 1)], driver=allowed[-1])


def fitted_artefact() -> Path:
    """A classifier of eight clusters, fitted on the corpus that erhpc ships."""
    folder = cache_folder() / "router"
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "erhpc.fit", "clusters=8", f"output={folder}"], check=True)
    return folder


def available(found: dict[str, Contestant], names: Sequence[str]) -> Iterator[tuple[str, Contestant]]:
    """Those that are or can be installed; says why the others are not."""
    for name in names:
        try:
            found[name].prepare()
        except Unavailable as reason:
            print(f"skipped: {found[name].name}: {reason}", flush=True)
            continue
        yield name, found[name]


if __name__ == "__main__":
    raise SystemExit(main())
