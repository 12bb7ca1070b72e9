"""Fits five constants of the twin to what a run showed: host times of a step (c0, c1, ctp) and two shares of the GPU.

Least squares of the logarithm of predicted over observed, within bounds that no engine or kernel known here exceeds.
A constant that the rows don't determine keeps its value. Everything else of the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import exp, inf, log
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from erhpc.config import ArchitectureConfig
from erhpc.errors import InputError
from erhpc.twin.evidence import NORMAL_95, Evidence
from erhpc.twin.hardware import SHARES, Constants, known_profiles, load_constants, read_profile_evidence
from erhpc.twin.observations import Observation
from erhpc.twin.step_time import Batch, Roofline

Floats = npt.NDArray[np.float64]

HOST_TIMES = ("step_s", "seq_s", "tensor_parallel_s")
PARAMETERS = ("step_s", "seq_s", "kv_share", "compute_share", "tensor_parallel_s")
"""In the order in which one of two that only their sum shows is kept: the last is given up first."""
SHARE_WIDENING = 1.25
MAX_SHARE = 1.0
MAX_SIGMA = 0.25
"""Standard deviation of a logarithm, above which a constant counts as not determined: more than 50 % at 90 %."""
LEAST_ERROR = 0.005
"""Rows are not trusted further than this: what the client's clock and the medians leave."""
OUTLIER_ERROR = 0.03
"""Above it, an error counts by its size and no longer by its square."""
MAX_OUTSIDE_S = 1.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one constant. `reason` says why it kept its value; empty: it was fitted."""

    name: str
    before: Evidence
    after: Evidence
    reason: str = ""

    @property
    def is_at_bound(self) -> bool:
        """Whether the fit went as far as it may: the model or the rows are then wrong elsewhere."""
        low, high = find_bounds(self.name, self.before)
        return not self.reason and not low * 1.01 < self.after.value < high / 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The constants before and after, and how far each row was and is."""

    changes: tuple[Change, ...]
    before: Constants
    after: Constants
    outside_s: float
    """Time of a prompt outside steps, as these rows show it (HTTP, gateway); the profile's request_s stays."""
    rows: tuple[Row, ...]
    errors_before: tuple[float, ...]
    """Predicted over observed, less one; both sets with `outside_s`."""
    errors_after: tuple[float, ...]


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


def find_bounds(name: str, evidence: Evidence) -> tuple[float, float]:
    """How far a constant may go: host times as far as those of any engine known here, shares a quarter beyond."""
    if name in SHARES:
        return evidence.low / SHARE_WIDENING, min(MAX_SHARE, evidence.high * SHARE_WIDENING)
    low, high = _find_host_range(name)
    return min(low, evidence.low or low), max(high, evidence.high)


def fit_constants(rows: Sequence[Row], *, gpu: str, kernel: str, profile: str, evidence: Mapping[str, Evidence]) -> Fit:
    """Fit to the rows that are not held out.

    Args:
        rows: of all levels and runs, on one GPU type and kernel.
        gpu: its name or file.
        kernel: a name of erhpc/twin/data/kernels.toml.
        profile: the engine profile to start from.
        evidence: of every one of PARAMETERS, as `read_evidence_of` gives it.

    Raises:
        InputError: the rows hold no two batch sizes, or a time that is none.
    """
    used = [row for row in rows if not row.is_held_out]
    _check(used)
    start = load_constants(gpu, quantization=None, kernel=kernel, profile=profile)
    problem = _Problem(used, start, {name: evidence[name] for name in PARAMETERS})
    solution, sigmas, reasons = _settle(problem, used, start)
    after = problem.constants(solution.values)
    changes = tuple(
        Change(name=name, before=evidence[name], after=evidence[name], reason=reasons[name])
        if name in reasons
        else Change(
            name=name,
            before=evidence[name],
            after=_narrow(name, evidence[name], solution.values[name], sigmas[name]),
        )
        for name in PARAMETERS
    )
    before_s = predict_rows(rows, start, solution.outside_s)
    after_s = predict_rows(rows, after, solution.outside_s)
    return Fit(
        changes=changes,
        before=start,
        after=after,
        outside_s=solution.outside_s,
        rows=tuple(rows),
        errors_before=tuple(there / row.seconds - 1 for there, row in zip(before_s, rows, strict=True)),
        errors_after=tuple(there / row.seconds - 1 for there, row in zip(after_s, rows, strict=True)),
    )


def read_evidence_of(gpu: str, profile: str) -> dict[str, Evidence]:
    """Value, range and source of each of PARAMETERS for a GPU type under an engine profile. Raises ConfigError."""
    return read_profile_evidence(profile, gpu, PARAMETERS)


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


@dataclass(frozen=True, slots=True)
class _Solution:
    values: dict[str, float]
    outside_s: float
    cost: float


class _Problem:
    """Rows, and the constants that may move."""

    def __init__(self, rows: Sequence[Row], start: Constants, evidence: Mapping[str, Evidence]) -> None:
        self._rows = rows
        self._start = start
        self._evidence = evidence
        self._logs = np.log([row.seconds for row in rows])
        # One prompt length can't tell what a prompt costs from what comes on top.
        lengths = {round(log(row.tokens), 1) for row in rows if row.kind == "prefill"}
        self._fits_outside = len(lengths) > 1

    def constants(self, values: Mapping[str, float]) -> Constants:
        """The constants with `values` in place of theirs."""
        host: dict[str, Any] = {name: values[name] for name in HOST_TIMES}
        shares: dict[str, Any] = {name: values[name] for name in SHARES}
        start = self._start
        return Constants(replace(start.gpu, **shares), start.kernel, replace(start.profile, **host))

    def solve(self, free: Sequence[str]) -> _Solution:
        """The best of several starts: a host that hides behind the GPU shows no slope to follow."""
        starts: list[dict[str, float]] = []
        if self._start.profile.overlaps:
            hidden = [name for name in ("step_s", "seq_s") if name in free]
            starts = [{name: value} for name in hidden for value in _spread(name, self._evidence[name])]
        # The first start is the constants as they are; another must be clearly better.
        best = self._solve_from(free, {})
        for start in starts:
            found = self._solve_from(free, start)
            if found.cost < 0.98 * best.cost:
                best = found
        return best

    def find_sigmas(self, free: Sequence[str], solution: _Solution) -> dict[str, float]:
        """Standard deviation of the logarithm of each free constant, given that all others are free as well."""
        vector = self._to_vector(free, solution.values, solution.outside_s)
        errors = self._errors(free, vector)
        freedom = max(1, errors.size - vector.size)
        # By the median, as outliers are not followed either.
        noise = max(LEAST_ERROR, float(1.4826 * np.median(np.abs(errors)) * np.sqrt(errors.size / freedom)))
        columns = np.array([self._slope(free, vector, number) for number in range(vector.size)]).T
        sigmas = {}
        for number, name in enumerate(free):
            others = np.delete(columns, number, axis=1)
            own = columns[:, number]
            if others.size:
                own = own - others @ np.linalg.lstsq(others, own, rcond=1e-9)[0]
            size = float(np.sqrt((own**2).sum()))
            sigmas[name] = noise / size if size > 1e-6 else inf
        return sigmas

    def _solve_from(self, free: Sequence[str], start: Mapping[str, float]) -> _Solution:
        # scipy takes most of a second to import.
        from scipy.optimize import least_squares

        values = {name: evidence.value for name, evidence in self._evidence.items()} | dict(start)
        bounds = [find_bounds(name, self._evidence[name]) for name in free]
        low = [log(bound) for bound, _ in bounds] + [0.0] * self._fits_outside
        high = [log(bound) for _, bound in bounds] + [MAX_OUTSIDE_S / self._outside_unit_s] * self._fits_outside
        vector = np.clip(self._to_vector(free, values, self._start.profile.request_s), low, high)
        if not vector.size:
            cost = float((self._errors(free, vector) ** 2).sum())
            return _Solution(values, self._start.profile.request_s, cost)
        found = least_squares(
            lambda moved: self._errors(free, moved),
            vector,
            bounds=(low, high),
            loss="soft_l1",
            f_scale=OUTLIER_ERROR,
            diff_step=1e-4,
            x_scale="jac",
            xtol=1e-5,
            ftol=1e-7,
            max_nfev=60,
        )
        return _Solution(*self._from_vector(free, found.x), float(found.cost))

    _outside_unit_s = 0.01
    """Keeps the time outside steps of the size of a logarithm."""

    def _to_vector(self, free: Sequence[str], values: Mapping[str, float], outside_s: float) -> Floats:
        outside = [outside_s / self._outside_unit_s] if self._fits_outside else []
        return np.array([*(log(values[name]) for name in free), *outside])

    def _from_vector(self, free: Sequence[str], vector: Floats) -> tuple[dict[str, float], float]:
        values = {name: evidence.value for name, evidence in self._evidence.items()}
        values |= {name: exp(float(value)) for name, value in zip(free, vector, strict=False)}
        outside_s = float(vector[-1]) * self._outside_unit_s if self._fits_outside else self._start.profile.request_s
        return values, outside_s

    def _errors(self, free: Sequence[str], vector: Floats) -> Floats:
        values, outside_s = self._from_vector(free, vector)
        predicted = predict_rows(self._rows, self.constants(values), outside_s)
        errors: Floats = np.log(predicted) - self._logs
        return errors

    def _slope(self, free: Sequence[str], vector: Floats, number: int, reach: float = 0.02) -> Floats:
        """How the errors follow one entry."""
        step = np.zeros_like(vector)
        step[number] = reach
        slope: Floats = (self._errors(free, vector + step) - self._errors(free, vector - step)) / (2 * reach)
        return slope


def _settle(
    problem: _Problem, rows: Sequence[Row], start: Constants
) -> tuple[_Solution, dict[str, float], dict[str, str]]:
    """The solution in which every free constant is determined, how well, and why the others are not free."""
    free = list(PARAMETERS)
    reasons: dict[str, str] = {}
    if all(row.setting.tensor_parallel == 1 for row in rows):
        free.remove("tensor_parallel_s")
        reasons["tensor_parallel_s"] = "one GPU per replica"
    solution = problem.solve(free)
    while unknown := [name for name, sigma in problem.find_sigmas(free, solution).items() if sigma > MAX_SIGMA]:
        # Of two that only their sum shows, the one goes without which the rows are explained best, else the last.
        without = {name: problem.solve([kept for kept in free if kept != name]) for name in reversed(unknown)}
        least = min(found.cost for found in without.values())
        worst = next(name for name, found in without.items() if found.cost <= 1.02 * least + 1e-9)
        solution = without[worst]
        free.remove(worst)
        reasons[worst] = _explain_undetermined(worst, start)
    return solution, problem.find_sigmas(free, solution), reasons


def _check(rows: Sequence[Row]) -> None:
    decodes = [row for row in rows if row.kind == "decode"]
    sizes = sorted({row.num_seqs for row in decodes})
    if len(sizes) < 2:
        found = f"only of {sizes[0]} sequence(s)" if sizes else "none"
        raise InputError(
            f"Decode steps of at least two batch sizes are needed, and the valid levels show {found}. Measure with "
            "workload=calibration, or give more runs."
        )
    bad = [row for row in rows if not (0 < row.seconds < inf and 0 < row.tokens < inf)]
    if bad:
        raise InputError(
            f"{bad[0].run}, level {bad[0].level}: {bad[0].kind} of {bad[0].tokens} tokens in {bad[0].seconds} s is no "
            "measurement. Calibrate on another run."
        )


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


def _spread(name: str, evidence: Evidence) -> list[float]:
    """Larger values of a host time to start from."""
    _, high = find_bounds(name, evidence)
    return [(evidence.value * high) ** 0.5, high / 2, 0.95 * high]


@cache
def _find_host_range(name: str) -> tuple[float, float]:
    """The lowest and the highest that the evidence of any shipped profile allows."""
    known = [read_profile_evidence(profile, None, (name,))[name] for profile in known_profiles()]
    return min(found.low for found in known if found.low > 0), max(found.high for found in known)


def _narrow(name: str, evidence: Evidence, value: float, sigma: float) -> Evidence:
    """The fitted value with the range that the rows leave, never narrower than 2 %."""
    reach = exp(NORMAL_95 * max(sigma, LEAST_ERROR * 2))
    high = min(value * reach, MAX_SHARE) if name in SHARES else value * reach
    return Evidence(value, value / reach, high, evidence.source)


def _explain_undetermined(name: str, constants: Constants) -> str:
    if name in HOST_TIMES and constants.profile.overlaps:
        return "the host hides behind the GPU in these rows"
    return "these rows don't tell it from the others"
