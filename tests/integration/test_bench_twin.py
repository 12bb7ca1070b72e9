"""The bench of the simulation runs, and what it prints are predictions: not how fast it is."""

from __future__ import annotations

import re
import subprocess
import sys

from tests import runs


def test_the_bench_plays_an_experiment_of_conf_at_the_levels_of_the_paper():
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.bench.twin.simulation", "--experiments", "mixed_8b_70b",
            "--requests-per-user", "1", "--repeats", "1", "--without-large",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rates = re.search(r"PREDICTED tokens/s: ([\d ]+)", done.stdout)
    assert rates is not None
    assert len(rates.group(1).split()) == 12
    assert re.search(r"^1 experiments: \d+\.\d\d s of one core$", done.stdout, re.MULTILINE)
