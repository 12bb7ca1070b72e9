"""Which runs a report is about, and their levels as one data frame.

It knows neither tables nor figures; the format of the files is `erhpc.results.store`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from erhpc.errors import InputError
from erhpc.results.paths import RunPaths
from erhpc.results.record import PREDICTED
from erhpc.results.store import read_levels

EMULATED = "emulated"
EXTERNAL = "external"
"""The engine of a server that erhpc did not start: it may be anything, and is measured, not emulated."""
MARK = "EMULATED: not measured on GPUs"
"""What everything that shows an emulated result says."""
PREDICTED_MARK = "PREDICTED: computed, not measured"
"""What everything that shows a prediction of the twin says."""
MARKS = {EMULATED: MARK, PREDICTED: PREDICTED_MARK}
"""The engines that no measurement on a GPU stands behind, and what is said of each."""


def find_runs(folders: Iterable[Path]) -> list[RunPaths]:
    """The runs that `folders` are, or that lie below them, each once, in the order given and then by name.

    Raises:
        InputError: a folder does not exist, or neither is nor contains a run.
    """
    runs: dict[Path, RunPaths] = {}
    for folder in folders:
        found = list(_find_below(folder))
        if not found:
            problem = "holds no run (no levels.parquet in it or below it)" if folder.is_dir() else "is no folder"
            raise InputError(
                f"{folder} {problem}. Give run folders, runs/<experiment>/<time>-<id>, or a folder of runs."
            )
        runs |= {run.root.resolve(): run for run in found}
    return list(runs.values())


def load_levels(runs: Sequence[RunPaths]) -> pd.DataFrame:
    """The levels of all runs, one row each, with LEVEL_COLUMNS; runs that finished no level add none.

    Raises:
        InputError: no run has finished a level.
        SchemaMismatch: another version of erhpc wrote a run.
    """
    frames = [frame for frame in (read_levels(run.root) for run in runs) if len(frame)]
    if not frames:
        names = ", ".join(str(run.root) for run in runs) or "nothing"
        raise InputError(f"No levels in {names}. A run has its first level when its first load is done.")
    return pd.concat(frames, ignore_index=True)


def describe_mark(levels: pd.DataFrame, shown: str) -> str | None:
    """What must be said of `levels` of which not all were measured, a line per engine; None if all were.

    `shown` is what those not measured are shown as, e.g. "runs".
    """
    marks = _list_marks(levels)
    if len(marks) == 1 and levels["engine"].isin(marks).all():
        return next(iter(marks.values()))
    return "\n".join(f"{shown} named ({engine}) are {mark}" for engine, mark in marks.items()) or None


def describe_watermark(levels: pd.DataFrame) -> str | None:
    """`describe_mark` in a word or two, to be written across a panel."""
    marks = _list_marks(levels)
    words = [engine.upper() for engine in marks]
    if words and not levels["engine"].isin(marks).all():
        words.insert(0, "PARTLY")
    return "\n".join(words) or None


def _list_marks(levels: pd.DataFrame) -> dict[str, str]:
    return {engine: mark for engine, mark in MARKS.items() if (levels["engine"] == engine).any()}


def _find_below(folder: Path) -> Iterator[RunPaths]:
    if not folder.is_dir():
        return
    if RunPaths(folder).levels.exists():
        yield RunPaths(folder)
        return
    for child in sorted(folder.iterdir()):
        # A link such as runs/latest would show its run twice, or lead out of the folder.
        if child.is_dir() and not child.is_symlink():
            yield from _find_below(child)
