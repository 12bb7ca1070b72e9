"""The verb `python -m erhpc.calibrate RUN...`: fits the twin's constants to measured runs and writes an engine profile.

It knows no record (`erhpc.twin.run_rows`), no rule of fitting (`erhpc.twin.fitting`) and no format
(`erhpc.twin.profile_file`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.table import Table
from rich.text import Text

import erhpc
from erhpc.composition import read_experiment
from erhpc.config import ExperimentConfig, ExpertConfig
from erhpc.console import open_console
from erhpc.errors import ConfigError, ErhpcError, InputError
from erhpc.plan.gpus import find_gpu
from erhpc.plan.plan import plan_from_json
from erhpc.results.atomic import write_atomically
from erhpc.results.paths import RunPaths
from erhpc.results.record import PREDICTED
from erhpc.twin.fitting import Fit, fit_constants, read_evidence_of
from erhpc.twin.hardware import DEFAULT_PROFILE, find_default_kernel
from erhpc.twin.profile_file import Origin, write_profile
from erhpc.twin.rows import Row
from erhpc.twin.run_rows import EMULATED, MEASURED, read_rows

EXIT_USER_ERROR = 2
MEANINGS = {
    "step_s": "c0: host, per step",
    "seq_s": "c1: host, per sequence",
    "tensor_parallel_s": "ctp: host, per step on several GPUs",
    "compute_share": "e_c: share of the peak FLOP/s",
    "kv_share": "e_kv: share of the bandwidth for KV",
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a run served: its experts, on which GPUs."""

    experts: Mapping[str, ExpertConfig]
    gpu: str
    profile: str
    """Engine profile it was emulated or predicted with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrate on the runs that `arguments` name; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        return _calibrate(options)
    except ErhpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def make_parser() -> argparse.ArgumentParser:
    """The command line of the verb."""
    parser = argparse.ArgumentParser(prog="python -m erhpc.calibrate", description=__doc__)
    parser.add_argument(
        "words", metavar="RUN | KEY=VALUE", nargs="+",
        help="folders of runs; for those of erhpc.load also what the server is: expert=llama3_8b cluster.gpu=h100_80 "
        "expert.tensor_parallel=1",
    )  # fmt: skip
    parser.add_argument("--profile", help=f"to start from: name or file; that of the runs, else {DEFAULT_PROFILE}")
    parser.add_argument("--kernel", help="that multiplies the matrices; the default of the quantization")
    parser.add_argument("--output", metavar="FILE", type=Path, help="(engine_profile.toml of the first run)")
    return parser


def _calibrate(options: argparse.Namespace) -> int:
    overrides = [word for word in options.words if "=" in word and not Path(word).exists()]
    runs = [RunPaths(Path(word).resolve()) for word in options.words if word not in overrides]
    if not runs:
        raise ConfigError("No run is given. Name the folder of one, e.g. runs/load/20260101-120000-abcd.")
    console = open_console()
    rows: list[Row] = []
    served: list[Served] = []
    kinds: list[str] = []
    for run in runs:
        served.append(find_served(run, overrides))
        found = read_rows(run, served[-1].experts)
        rows += found.rows
        kinds.append(found.kind)
        for notice in found.notices:
            console.print(Text(f"! {run.root.name}: {notice}", style="yellow"))
    gpu, kernel = agree(served, options.kernel)
    profile = options.profile or served[0].profile
    evidence = read_evidence_of(gpu, profile)
    fit = fit_constants(rows, gpu=gpu, kernel=kernel, profile=profile, evidence=evidence)
    origin = Origin(
        kind=next((kind for kind in (PREDICTED, EMULATED) if kind in kinds), MEASURED),
        runs=[run.root.name for run in runs],
        models=sorted({expert.model for one in served for expert in one.experts.values()}),
        gpu=gpu,
        kernel=kernel,
        version=erhpc.__version__,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )
    console.print(draw_constants(fit))
    console.print(draw_rows(fit))
    print(summarise(fit, origin))
    output = options.output or runs[0].engine_profile
    write_atomically(output, write_profile(fit, profile, origin).encode())
    print(f"written to {output}; use it with engine.profile={output}")
    return 0


def find_served(run: RunPaths, overrides: Sequence[str]) -> Served:
    """What a run served: by its plan, or by what was given of a server that erhpc did not start.

    Raises:
        ConfigError: nothing says it, or both do, or it was no GPU.
    """
    if run.plan.exists():
        if overrides:
            raise ConfigError(f"{run.root} says itself what it served. Leave out {' '.join(overrides)}.")
        plan = plan_from_json(run.plan.read_bytes())
        if not plan.is_emulated and plan.experiment.engine.device != "cuda":
            raise ConfigError(f"{run.root} ran on {plan.experiment.engine.device}: the twin knows GPUs only.")
        return _describe(plan.experiment)
    if not run.records.exists():
        raise InputError(f"{run.root} holds no records. Give the folder of a run that has been started.")
    if not any(override.startswith("expert=") for override in overrides):
        raise ConfigError(
            f"{run.root} does not say what the server is. Add the model's shape and its GPU: expert=llama3_8b "
            "cluster.gpu=h100_80 expert.tensor_parallel=1 expert.max_num_batched_tokens=8192."
        )
    given = [_to_override(override) for override in overrides]
    experiment = read_experiment([*given, "router=round_robin"])
    return _describe(experiment)


def _describe(experiment: ExperimentConfig) -> Served:
    return Served(experts=experiment.experts, gpu=experiment.cluster.gpu, profile=experiment.engine.profile)


def _to_override(given: str) -> str:
    """`expert=NAME` adds the one expert, `expert.KEY=VALUE` changes it; anything else is an override as it is."""
    if given.startswith("expert="):
        return f"+expert@experts.server={given.removeprefix('expert=')}"
    return f"experts.server{given.removeprefix('expert')}" if given.startswith("expert.") else given


def agree(served: Iterable[Served], kernel: str | None) -> tuple[str, str]:
    """The one GPU type and the one kernel of all runs. Raises ConfigError if they differ."""
    gpus = {find_gpu(one.gpu).name for one in served}
    experts = [expert for one in served for expert in one.experts.values()]
    kernels = {kernel} if kernel else {one.kernel or find_default_kernel(one.quantization) for one in experts}
    for what, found in (("GPU types", gpus), ("kernels", kernels)):
        if len(found) > 1:
            raise ConfigError(
                f"The runs have several {what}: {', '.join(sorted(map(str, found)))}. Calibrate on each by itself."
            )
    return gpus.pop(), str(kernels.pop())


def draw_constants(fit: Fit) -> Table:
    """Table with a line per constant that a calibration may change."""
    table = Table("constant", "meaning", "before", "after", "range (90 %)", "")
    for change in fit.changes:
        said = change.reason and f"not fitted: {change.reason}"
        said = said or ("at the bound: the model or the rows are wrong elsewhere" if change.is_at_bound else "fitted")
        after = change.after
        reach = f"{_show(after.low)} to {_show(after.high)}"
        cells = [change.name, MEANINGS[change.name], _show(change.before.value), _show(after.value), reach, said]
        table.add_row(*map(Text, cells))
    return table


def draw_rows(fit: Fit) -> Table:
    """Table with a line per row: what it is, how far the model was and is."""
    table = Table("run", "level", "GPUs", "step", "tokens", "observed", "error before", "after", "used")
    for row, before, after in zip(fit.rows, fit.errors_before, fit.errors_after, strict=True):
        step = f"decode of {row.num_seqs}" if row.kind == "decode" else "prompt"
        cells = [row.run, row.level, row.setting.tensor_parallel, step, f"{row.tokens:,.0f}", _show_ms(row.seconds)]
        cells += [f"{before:+.1%}", f"{after:+.1%}", "no" if row.is_held_out else "yes"]
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def summarise(fit: Fit, origin: Origin) -> str:
    """Errors of what the fit did not use, and what the numbers are worth."""
    lines = []
    for kind in ("decode", "prefill"):
        picked = [number for number, row in enumerate(fit.rows) if row.is_held_out and row.kind == kind]
        if picked:
            before, after = (
                [abs(errors[number]) for number in picked] for errors in (fit.errors_before, fit.errors_after)
            )
            lines.append(
                f"{kind}, {len(picked)} rows that the fit did not use: error before, median {median(before):.1%}, "
                f"largest {max(before):.1%}; after, median {median(after):.1%}, largest {max(after):.1%}"
            )
            if median(after) > median(before) + 0.001 or max(after) > max(before) + 0.001:
                lines.append(
                    f"! {kind}: worse than before in part. Something that the twin has no constant for decides."
                )
    lines.append(
        f"outside steps a prompt took {_show_ms(fit.outside_s)} here; request_s of the profile, "
        f"{_show_ms(fit.before.profile.request_s)}, is not fitted and stays"
    )
    if origin.kind != MEASURED:
        lines.append(f"{origin.kind.upper()}: not a measurement. The profile says what these results were made with.")
    return "\n".join(lines)


def _show(value: float) -> str:
    return f"{value:.3g}"


def _show_ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


if __name__ == "__main__":
    sys.exit(main())
