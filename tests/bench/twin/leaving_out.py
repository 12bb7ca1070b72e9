"""What becomes of the errors when the fitted numbers are fitted again without one source: do they generalise?

Cheap: how each prediction follows each fitted number is asked once, by a small step; a robust least-squares problem
with the numbers' own ranges as a prior is then solved per source, and the left-out rows are predicted anew. A number
that no other source tells keeps its value, and is named: for its rows this check says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
import numpy.typing as npt

from erhpc.twin.evidence import NORMAL_95, Evidence
from erhpc.twin.measured import Fact
from erhpc.twin.validation import Comparison, choose_constants, compare_facts, is_own
from tests.bench.twin.constants import Constant, list_fitted

STEP = 0.03
"""Change of a number's logarithm by which its effect is seen."""
NOISE = 0.05
"""Error of a row that is nobody's fault; larger ones count by their size only."""
LEAST_TOLD = 0.05
"""Effect, summed in squares over rows, below which they don't tell a number."""
ROUNDS = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One source, its errors with the shipped numbers and with numbers fitted without it."""

    source: str
    shipped: Sequence[Comparison]
    refitted: Sequence[Comparison]
    values: Mapping[Constant, float]
    """The numbers that its rows depend on, as the others have them."""
    untold: Sequence[Constant]
    """Those of them that no other source tells."""


def name_source(fact: Fact) -> str:
    """Who measured it, and on what: the machines of one publisher differ in host and version."""
    if is_own(fact):
        return "own measurement"
    if "argonne" in fact.source:
        return f"LLM-Inference-Bench {fact.gpu} {fact.profile}"
    if "AccelMark" in fact.source:
        return f"AccelMark {fact.gpu} vLLM {'0.20' if 'vllm020' in fact.source else '0.7'}"
    return f"TensorRT-LLM {fact.profile.removeprefix('trt-llm-')}"


class Refit:
    """How the predictions of some facts follow the fitted numbers."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        """Facts that are left out are skipped, and what this project measured is never fitted to."""
        self._facts = [fact for fact in facts if not fact.left_out]
        self._fitted = list_fitted()
        self._shipped = compare_facts(self._facts)
        self._errors = _read_logs(self._shipped)
        self._slopes = np.array([self._follow(constant.evidence) for constant in self._fitted]).T
        self._sources = np.array([name_source(fact) for fact in self._facts])
        self._usable = np.array([not is_own(fact) for fact in self._facts])

    def list_sources(self) -> list[str]:
        """All sources, in the order of their names."""
        return sorted(set(self._sources.tolist()))

    def fit_all(self) -> dict[Constant, float]:
        """The fitted numbers as all rows together have them; the shipped ones are these, rounded."""
        return self._to_values(self._solve(self._usable))

    def leave_out(self, source: str) -> LeftOut:
        """Fit without a source and predict it."""
        is_left = self._sources == source
        used = self._usable & ~is_left
        moved = self._solve(used)
        values = self._to_values(moved)
        concerned = [
            constant
            for constant, effect in zip(self._fitted, (self._slopes[is_left] ** 2).sum(axis=0), strict=True)
            if effect >= LEAST_TOLD
        ]
        told = dict(zip(self._fitted, (self._slopes[used] ** 2).sum(axis=0), strict=True))
        chosen = {constant.evidence: value for constant, value in values.items()}
        facts = [fact for fact, left in zip(self._facts, is_left, strict=True) if left]
        return LeftOut(
            source=source,
            shipped=[comparison for comparison, left in zip(self._shipped, is_left, strict=True) if left],
            refitted=compare_facts(facts, choose=lambda evidence: chosen.get(evidence, evidence.value)),
            values={constant: values[constant] for constant in concerned},
            untold=[constant for constant in concerned if told[constant] < LEAST_TOLD],
        )

    def _follow(self, moved: Evidence) -> Floats:
        """Change of the logarithm of each prediction per change of that of one number."""
        concerned = [_depends(fact, moved) for fact in self._facts]
        slope = np.zeros(len(self._facts))
        if any(concerned):
            facts = [fact for fact, is_concerned in zip(self._facts, concerned, strict=True) if is_concerned]
            there = compare_facts(
                facts, choose=lambda evidence: evidence.value * exp(STEP) if evidence == moved else evidence.value
            )
            slope[concerned] = (_read_logs(there) - self._errors[concerned]) / STEP
        return slope

    def _solve(self, used: npt.NDArray[np.bool_]) -> Floats:
        """Changes of the numbers' logarithms: large errors weigh less, and the ranges hold the numbers together."""
        slopes, errors = self._slopes[used], self._errors[used]
        ranges = [log(one.evidence.high / one.evidence.low) / (2 * NORMAL_95) for one in self._fitted]
        prior = np.diag((NOISE / np.array(ranges)) ** 2)
        moved = np.zeros(len(self._fitted))
        for _ in range(ROUNDS):
            weights = 1 / np.sqrt(1 + ((errors + slopes @ moved) / NOISE) ** 2)
            normal = (slopes * weights[:, None]).T @ slopes + prior
            moved = -np.linalg.solve(normal, (slopes * weights[:, None]).T @ errors)
        reach = np.array([[log(one.evidence.low / one.evidence.value), log(one.evidence.high / one.evidence.value)]
                          for one in self._fitted])  # fmt: skip
        clipped: Floats = np.clip(moved, reach[:, 0], reach[:, 1])
        return clipped

    def _to_values(self, moved: Floats) -> dict[Constant, float]:
        return {one: one.evidence.value * exp(change) for one, change in zip(self._fitted, moved.tolist(), strict=True)}


def _depends(fact: Fact, evidence: Evidence) -> bool:
    """Whether the constants of a fact contain that one."""
    asked: list[Evidence] = []

    def note(one: Evidence) -> float:
        asked.append(one)
        return one.value

    choose_constants(fact, note)
    return evidence in asked


def _read_logs(comparisons: Sequence[Comparison]) -> Floats:
    return np.log([comparison.predicted / comparison.fact.value for comparison in comparisons])
