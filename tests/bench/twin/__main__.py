"""How far predicted step times are from published measurements: a table per slice.

python -m tests.bench.twin                        the shipped table of facts, and each source predicted without it
python -m tests.bench.twin --constants            every constant, what it rests on, and why if it was fitted
python -m tests.bench.twin --rows FILE            collected rows in the form of measured_serving.csv
python -m tests.bench.twin --rows FILE --write    the same, and make them the shipped table
python -m tests.bench.twin --record               take today's errors as those that must not get worse
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from erhpc.twin.measured import MEASURED_FILE, Fact, read_facts, write_facts
from erhpc.twin.validation import Comparison, SliceError, compare_facts, explain_left_out, is_own, slice_of, summarise
from tests.bench.twin.constants import list_constants, list_sharers
from tests.bench.twin.leaving_out import Refit
from tests.bench.twin.own import read_own_facts
from tests.bench.twin.published import interpret_rows
from tests.bench.twin.recorded import write_errors

DRAWS = 12


def is_vllm_16_bit(fact: Fact) -> bool:
    return fact.profile.startswith("vllm") and fact.kernel == "plain" and not is_own(fact)


def family(fact: Fact) -> tuple[str, ...]:
    if is_own(fact):
        return ("own: vLLM over HTTP",)
    return ("vLLM 16 bit" if is_vllm_16_bit(fact) else "other engines and quantised",)


def print_table(title: str, comparisons: Sequence[Comparison], key: Callable[[Fact], tuple[str, ...]]) -> None:
    print(f"\n{title}\n{'':58}  facts  median    p90   bias  in 90 % interval")
    for error in summarise(comparisons, key):
        print(_line(error))


def _line(error: SliceError) -> str:
    numbers = f"{error.num_facts:5}  {error.median:6.1%} {error.p90:6.1%} {error.bias:+6.1%}"
    return f"{'  '.join(f'{part:14}' for part in error.name):58}  {numbers}  {error.coverage:6.0%}"


def print_left_out(facts: Sequence[Fact], refused: Counter[str]) -> None:
    reasons = Counter(fact.left_out for fact in facts if fact.left_out) + refused
    print(f"\n{sum(reasons.values())} numbers not compared:")
    for reason, count in reasons.most_common():
        print(f"  {count:4}  {reason}")


def print_sources(refit: Refit) -> None:
    """Each source as predicted with the shipped numbers, and with numbers fitted without it."""
    print("\nWithout their source: the fitted numbers fitted again without it (own measurements set none of them)")
    print(f"{'':42}  facts  median    p90  without: median    p90   told by no other source")
    for source in refit.list_sources():
        left = refit.leave_out(source)
        (shipped,), (refitted,) = (summarise(side, lambda _: ("",)) for side in (left.shipped, left.refitted))
        untold = ", ".join(f"{constant.entry} {constant.name}" for constant in left.untold)
        print(f"{source:42}  {shipped.num_facts:5}  {shipped.median:6.1%} {shipped.p90:6.1%}          "
              f"{refitted.median:6.1%} {refitted.p90:6.1%}   {untold}")  # fmt: skip
    print(f"\n{'fitted to all of them':42}  shipped     fit")
    for constant, value in refit.fit_all().items():
        print(f"{f'{constant.kind} {constant.entry} {constant.name}':42}  {constant.evidence.value:7.3g} {value:7.3g}")


def print_constants() -> None:
    """Every constant of GPUs, kernels and profiles."""
    for constant in list_constants():
        known = constant.evidence
        sharers = f" (shared by {', '.join(list_sharers(constant.name))})" if constant.kind == "shared" else ""
        reason = f"; {known.reason}" if known.reason else ""
        print(f"{constant.kind:8} {constant.entry:15} {constant.name:22} {known.value:9.4g} [{known.low:.4g}, "
              f"{known.high:.4g}] {known.basis:10} {known.source}{reason}{sharers}")  # fmt: skip
    counts = Counter(constant.evidence.basis for constant in list_constants())
    print(f"\n{len(list_constants())} constants: {', '.join(f'{count} {basis}' for basis, count in counts.items())}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="collected rows instead of the shipped table")
    parser.add_argument("--write", action="store_true", help="write the facts of --rows to the shipped table")
    parser.add_argument("--record", action="store_true", help="record the errors of the shipped table")
    parser.add_argument("--each", action="store_true", help="print every fact, too")
    parser.add_argument("--constants", action="store_true", help="print the constants, and nothing else")
    parser.add_argument("--without-sources", action="store_true", help="don't predict each source from the others")
    parser.add_argument("--draws", type=int, default=DRAWS, help="sets of constants behind each interval")
    options = parser.parse_args(arguments)
    if options.constants:
        print_constants()
        return
    refused: Counter[str] = Counter()
    if options.rows is None:
        facts = read_facts()
    else:
        found, refused = interpret_rows(options.rows)
        facts = [replace(fact, left_out=explain_left_out(fact)) for fact in found]
    if options.write:
        write_facts(MEASURED_FILE, [*facts, *read_own_facts()])
    comparisons = compare_facts(facts, draws=options.draws)
    if options.each:
        for c in comparisons:
            f = c.fact
            print(f"{f.profile:14} {f.gpu:9} {f.kernel:12} {f.model} TP{f.tensor_parallel} {f.load} {f.level:g} "
                  f"{f.input_tokens}/{f.output_tokens} {f.measure} {f.value:g}: {c.predicted:.4g} {c.error:+.0%} "
                  f"[{c.low:.4g}, {c.high:.4g}]{'' if c.is_covered else ' !'}")  # fmt: skip
    print_table("By engine profile, GPU, kernel and number", comparisons, slice_of)
    print_table("By kind of load", comparisons, lambda fact: (*family(fact), fact.load, fact.measure))
    print_table("All", comparisons, family)
    print_table("", comparisons, lambda _: ("all",))
    print_left_out(facts, refused)
    left_out = [replace(fact, left_out="") for fact in facts if fact.left_out]
    print_table(
        "Left out, for the record", compare_facts(left_out), lambda fact: (fact.profile, fact.load, fact.measure)
    )
    if options.rows is None and not options.without_sources:
        print_sources(Refit(facts))
    if options.record:
        write_errors(summarise(comparisons))


if __name__ == "__main__":
    main()
