"""Rows: one kind of step of one level, averaged, with what the model needs to predict it.

Pure. A fit uses some of them and is judged by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from erhpc.config import ArchitectureConfig
from erhpc.twin.hardware import Constants
from erhpc.twin.observations import Observation
from erhpc.twin.step_time import Batch, Roofline

MIN_ROW_STEPS = 16
MIN_ROW_SHARE = 0.1
"""Of the steps of a level: sequences that end one after the other are seen in passing only."""
HELD_OUT_EVERY = 3
"""Every third observation of a level is kept from the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What ran: all that a step time needs beside the constants, and the token budget that cuts prompts."""

    model: str
    architecture: ArchitectureConfig
    dtype: str
    tensor_parallel: int
    max_num_batched_tokens: int
    is_eager: bool = False
    api_servers: int = 1
    """Processes that stream the tokens, which come one by one."""

    def build(self, constants: Constants) -> Roofline:
        """The step time under some constants. Raises ConfigError for a shape that is none."""
        return Roofline(
            self.architecture,
            dtype=self.dtype,
            quantization=None,
            tensor_parallel=self.tensor_parallel,
            gpu="",
            constants=constants,
            is_eager=self.is_eager,
            stream_interval=1,
            api_servers=self.api_servers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of step of one level, averaged; what the fit uses, or what it is judged by."""

    run: str
    level: int
    setting: Setting
    kind: Literal["decode", "prefill"]
    num_seqs: int
    tokens: float
    seconds: float
    num_steps: float
    is_held_out: bool


def gather_rows(
    observations: Sequence[Observation], *, run: str, level: int, setting: Setting, hold_out: bool = False
) -> list[Row]:
    """Rows of a level: one per kind and number of sequences, apart for what is held out (all of it if `hold_out`)."""
    all_steps = sum(seen.num_steps for seen in observations if seen.kind == "decode")
    groups: dict[tuple[Literal["decode", "prefill"], int], list[Observation]] = {}
    for seen in observations:
        groups.setdefault((seen.kind, seen.num_seqs), []).append(seen)
    rows = []
    for (kind, num_seqs), group in groups.items():
        if kind == "decode" and sum(seen.num_steps for seen in group) < max(MIN_ROW_STEPS, MIN_ROW_SHARE * all_steps):
            continue
        kept = [seen for number, seen in enumerate(group) if (number + 1) % HELD_OUT_EVERY]
        parts = [(True, group)] if hold_out else [(False, kept), (True, group[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])]
        for is_held_out, part in parts:
            if part:
                tokens, seconds = _average_middle(part)
                rows.append(
                    Row(run=run, level=level, setting=setting, kind=kind, num_seqs=num_seqs, tokens=tokens,
                        seconds=seconds, num_steps=sum(seen.num_steps for seen in part), is_held_out=is_held_out)
                )  # fmt: skip
    return rows


def choose_held_out(sizes: Sequence[float]) -> set[float]:
    """Every second of the sizes (users, prompt lengths), never the smallest or the largest."""
    ordered = sorted(set(sizes))
    return set(ordered[1:-1:2])


def predict_rows(rows: Sequence[Row], constants: Constants, outside_s: float) -> list[float]:
    """Seconds of each row as the model has them."""
    built: dict[int, Roofline] = {}
    predicted = []
    for row in rows:
        step_time = built.get(id(row.setting))
        if step_time is None:
            step_time = built[id(row.setting)] = row.setting.build(constants)
        if row.kind == "decode":
            batch = Batch(row.num_seqs, round(row.tokens), num_logit_rows=row.num_seqs)
            predicted.append(step_time.step_s(batch))
        else:
            predicted.append(outside_s + _prefill_s(step_time, row))
    return predicted


def _prefill_s(step_time: Roofline, row: Row) -> float:
    """Seconds of the steps that compute a prompt, in chunks of the token budget."""
    tokens, budget = round(row.tokens), row.setting.max_num_batched_tokens
    seconds = 0.0
    for done in range(0, tokens, budget):
        chunk = min(budget, tokens - done)
        is_last = done + chunk == tokens
        seconds += step_time.step_s(Batch(0, 0, 1, chunk, chunk * (done + chunk / 2), int(is_last)))
    return seconds


def _average_middle(seen: Sequence[Observation]) -> tuple[float, float]:
    """Tokens and seconds, averaged over the middle half of the steps by their seconds: stalls don't count."""
    ordered = sorted(seen, key=lambda one: one.seconds)
    weights = np.array([one.num_steps for one in ordered])
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    is_middle = (middles >= 0.25) & (middles <= 0.75)
    chosen = weights * is_middle if is_middle.any() else weights
    tokens = float(np.average([one.tokens for one in ordered], weights=chosen))
    return tokens, float(np.average([one.seconds for one in ordered], weights=chosen))
