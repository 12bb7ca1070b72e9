"""The errors per slice that must not get worse, as recorded with the constants that are shipped."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from erhpc.twin.validation import SliceError

RECORDED_FILE = Path(__file__).with_name("errors.csv")
_FIELDS = ("profile", "gpu", "kernel", "measure", "facts", "median", "p90")


def read_errors() -> dict[tuple[str, ...], tuple[int, float, float]]:
    """Number of facts, median and 90th percentile of the absolute errors, by slice."""
    with RECORDED_FILE.open(newline="", encoding="utf-8") as file:
        return {
            (row["profile"], row["gpu"], row["kernel"], row["measure"]): (
                int(row["facts"]), float(row["median"]), float(row["p90"]),
            )
            for row in csv.DictReader(file)
        }  # fmt: skip


def write_errors(errors: Sequence[SliceError]) -> None:
    """Make these errors the recorded ones."""
    with RECORDED_FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_FIELDS)
        writer.writerows((*error.name, error.num_facts, f"{error.median:.4f}", f"{error.p90:.4f}") for error in errors)
