"""Reads what the steps of a run took from its folder: levels that can be trusted, requests by replica, rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from erhpc.config import ExpertConfig
from erhpc.errors import InputError
from erhpc.results.paths import RunPaths
from erhpc.results.record import PREDICTED
from erhpc.results.store import read_levels, read_records
from erhpc.twin.observations import Span, observe
from erhpc.twin.rows import Row, Setting, choose_held_out, gather_rows
from erhpc.twin.serving import count_api_servers

MEASURED, EMULATED = "measured", "emulated"
MAX_CLOCK_OFFSET_S = 0.001
"""Requests of clients whose clocks differ by more can't be put beside each other."""
_TIMES = ("sent_monotonic_ns", "first_token_monotonic_ns", "last_token_monotonic_ns", "end_monotonic_ns")
_COUNTS = ("tokens_in", "tokens_out")
_NAMES = ("level", "expert", "replica", "phase", "status", "token_gaps_us")
_NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """What one run shows."""

    rows: Sequence[Row]
    kind: str
    """measured, emulated or predicted."""
    notices: Sequence[str]
    """What was left out, and why."""


def read_rows(run: RunPaths, experts: Mapping[str, ExpertConfig]) -> RunRows:
    """Rows of every valid level of a run that served `experts`.

    Raises:
        InputError: the run has no record, no valid level, records of another expert, or tokens that nobody counted.
        SchemaMismatch: another version of erhpc wrote it.
    """
    levels, records = read_levels(run.root), read_records(run.root, [*_NAMES, *_TIMES, *_COUNTS])
    if not len(levels) or not len(records):
        raise InputError(f"{run.root} has no {'records' if len(levels) else 'levels'}. Give a run that has measured.")
    users = levels["users"].to_numpy(dtype=np.float64, na_value=np.nan)
    usable: dict[int, float] = {}
    notices = []
    for row, number_of_users in zip(levels.to_dict("records"), users.tolist(), strict=True):
        reasons = find_reasons(row)
        if reasons:
            notices.append(f"level {row['level']} is left out: {'; '.join(reasons)}")
        else:
            usable[int(row["level"])] = number_of_users
    if not usable:
        raise InputError(f"{run.root} has no valid level: {'; '.join(notices)}. Measure again.")
    settings = {name: make_setting(expert) for name, expert in experts.items()}
    held_out = choose_held_out([size for size in usable.values() if not isnan(size)])
    rows: list[Row] = []
    for (level, expert, _), group in records.groupby(["level", "expert", "replica"], dropna=False):
        if level in usable:
            rows += gather_rows(
                observe(_make_spans(run, {name: group[name] for name in group.columns})),
                run=run.root.name,
                level=int(level),
                setting=_choose_setting(run, settings, expert),
                hold_out=usable[int(level)] in held_out,
            )
    engines = set(levels["engine"])
    kind = next((engine for engine in (PREDICTED, EMULATED) if engine in engines), MEASURED)
    return RunRows(rows=rows, kind=kind, notices=notices)


def find_reasons(level: Mapping[str, Any]) -> list[str]:
    """Why a level says nothing of steps; empty if it does."""
    reasons = [] if level["valid"] else [*level["invalid_reasons"]] or ["invalid"]
    offset_s = level["clock_offset_s"]
    if isinstance(offset_s, float) and offset_s > MAX_CLOCK_OFFSET_S:
        reasons.append(f"clocks of its clients differ by {offset_s:.3g} s; measure with clients on one node")
    return reasons


def make_setting(expert: ExpertConfig) -> Setting:
    """What the step time of an expert depends on beside the constants."""
    return Setting(
        model=expert.model,
        architecture=expert.architecture,
        dtype=expert.dtype,
        tensor_parallel=expert.tensor_parallel,
        max_num_batched_tokens=expert.max_num_batched_tokens,
        is_eager=bool(expert.engine_args.get("enforce-eager")),
        api_servers=count_api_servers(expert.engine_args),
    )


def _choose_setting(run: RunPaths, settings: Mapping[str, Setting], expert: Any) -> Setting:
    if expert in settings:
        return settings[expert]
    if len(settings) == 1:
        return next(iter(settings.values()))
    raise InputError(f"{run.root} has records of expert {expert!r}. Known: {', '.join(settings)}.")


def _make_spans(run: RunPaths, columns: Mapping[str, Any]) -> list[Span]:
    """The requests of one replica in one level."""
    integers = {
        name: columns[name].to_numpy(dtype=np.int64, na_value=_NONE).tolist() for name in (*_TIMES, *_COUNTS)
    }  # fmt: skip
    known = [tokens for tokens in integers["tokens_in"] if tokens > 0]
    if not known:
        raise InputError(
            f"{run.root}: the server told nobody how many tokens a prompt has (usage of stream_options). "
            "Calibrate on a server that does."
        )
    usual = int(np.median(known))
    sent, first, last, end = (integers[name] for name in _TIMES)
    return [
        Span(
            sent_ns=sent[number],
            first_ns=None if first[number] == _NONE else first[number],
            last_ns=end[number] if first[number] == _NONE else last[number],
            gaps_us=gaps,
            # Of a request that was cut nobody knows; it is as long as the others, more or less.
            tokens_in=tokens_in if tokens_in > 0 else usual,
            tokens_out=tokens_out,
            is_measured=phase == "measure" and status == "ok" and tokens_in > 0,
        )
        for number, (gaps, tokens_in, tokens_out, phase, status) in enumerate(
            zip(columns["token_gaps_us"], integers["tokens_in"], integers["tokens_out"], columns["phase"],
                columns["status"], strict=True)
        )
    ]  # fmt: skip
