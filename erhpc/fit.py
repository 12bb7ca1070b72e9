"""The verb `python -m erhpc.fit corpus=FILE.jsonl clusters=8`: fits the classifier of a router, shows its clusters and
how well this and other ways of fitting keep the domains of unseen prompts apart.

It knows no rule of fitting (`erhpc.routing.fitting`), no formula of quality (`erhpc.routing.evaluation`) and no format
(`erhpc.routing.artefact`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from erhpc.composition import verb
from erhpc.config import FitConfig
from erhpc.console import open_console
from erhpc.corpus.prompts import Prompt, read_prompts
from erhpc.errors import InputError
from erhpc.routing.artefact import Cluster, Fitted
from erhpc.routing.evaluation import Quality, Trial, compare_methods
from erhpc.routing.fitting import fit_to
from erhpc.routing.quality import apportion_replicas, compute_entropy_bits


@verb(FitConfig, "fit")
def main(settings: FitConfig, _yaml: str) -> None:
    """Fit, write the artefact, print what the clusters are and how the ways of fitting compare."""
    prompts = read_prompts(settings.corpus)
    unseen = None if settings.test_corpus is None else read_prompts(settings.test_corpus)
    fitted = fit_to(Path(settings.output), prompts, settings)
    console = open_console()
    console.print(draw_clusters(fitted))
    print(summarise(fitted, len(prompts)))
    if settings.quality_fits and (fitted.purity is not None or unseen is not None):
        try:
            # CPU time: a busy machine does not make a method look dear.
            trials = compare_methods(prompts, settings, clock=time.thread_time_ns, unseen=unseen)
        except InputError as error:
            # The artefact is written and good; there is only nothing to judge it by.
            print(f"quality: not measured. {error}")
        else:
            console.print(draw_trials(trials))
            print(explain_trials(settings, prompts, unseen))


def draw_clusters(fitted: Fitted) -> Table:
    """Table with a line per cluster; what was not labelled has no column."""
    table = Table("cluster", "share", "top terms")
    table.add_column("replicas", justify="right")
    replicas = suggest_replicas(fitted)
    if fitted.purity is not None:
        table.add_column("domain")
        table.add_column("purity", justify="right")
    for number, cluster in enumerate(fitted.clusters):
        cells = [str(number), f"{cluster.share:.1%}", " ".join(cluster.top_terms), str(replicas[number])]
        cells += [] if fitted.purity is None else _domain_cells(cluster)
        table.add_row(*map(Text, cells))
    return table


def suggest_replicas(fitted: Fitted) -> tuple[int, ...]:
    """Replicas for the expert of each cluster, by its share of the corpus."""
    return apportion_replicas(_list_expert_shares(fitted), fitted.settings.num_replicas)


def summarise(fitted: Fitted, num_prompts: int) -> str:
    """What holds for all clusters together, and where the artefact is."""
    words, dimensions = fitted.classifier.rows.shape
    settings = fitted.settings
    shares = _list_expert_shares(fitted)
    busiest = max(share / replicas for share, replicas in zip(shares, suggest_replicas(fitted), strict=True))
    tokens = "subwords" if settings.method == "embedding" else "words"
    lines = [
        f"{num_prompts} prompts, {words} {tokens}, {dimensions} dimensions, method {settings.method}, "
        f"{_name_rule(settings.balanced)} k-means",
        f"entropy of the shares: {compute_entropy_bits(cluster.share for cluster in fitted.clusters):.2f} of "
        f"{math.log2(len(shares)):.2f} bits",
        f"replicas={settings.num_replicas} shared out by them: the busiest then gets {busiest:.1%} of the prompts, "
        f"{1 / settings.num_replicas:.1%} if all got as many",
        f"no known word: {fitted.zero_share:.1%} of the prompts (they go to router.default_expert)",
        f"written to {settings.output}; use it with router.artefact={settings.output}",
    ]
    if fitted.purity is not None:
        lines.insert(1, f"purity: {fitted.purity:.1%} of these prompts share their cluster's main domain")
    return "\n".join(lines)


def draw_trials(trials: Sequence[Trial]) -> Table:
    """Table with a line per way of fitting: means over its fits, of the purity also the range."""
    table = Table(
        "method", "k-means", "purity (range)", "NMI", "entropy", "no word", "us", "us p99", "shares of clusters, %"
    )
    for trial in trials:
        purities = [quality.purity for quality in trial.qualities]
        most_bits = math.log2(len(trial.qualities[0].shares))
        table.add_row(
            trial.method,
            _name_rule(trial.balanced),
            f"{statistics.mean(purities):.3f} ({min(purities):.3f} to {max(purities):.3f})",
            f"{_average(trial, lambda quality: quality.nmi):.3f}",
            f"{_average(trial, lambda quality: quality.entropy_bits):.2f} of {most_bits:.2f}",
            f"{_average(trial, lambda quality: quality.zero_share):.1%}",
            f"{_average(trial, lambda quality: quality.classify_us):.0f}",
            f"{_average(trial, lambda quality: quality.classify_p99_us):.0f}",
            _list_shares(trial),
        )
    return table


def explain_trials(settings: FitConfig, prompts: Sequence[Prompt], unseen: Sequence[Prompt] | None) -> str:
    """What the columns of `draw_trials` mean."""
    seeds = f"seeds {settings.seed} to {settings.seed + settings.quality_fits - 1}"
    judged = (
        f"{settings.held_out:.0%} of {len(prompts)} prompts, held out anew for each seed"
        if unseen is None
        else f"the {len(unseen)} prompts of {settings.test_corpus}"
    )
    return "\n".join(
        [
            f"means over fits with {seeds}, judged on {judged}; no fit sees a label",
            "purity: share of the judged prompts whose domain is the commonest among the fitted prompts of their "
            "cluster; a prompt with no known word counts as wrong; range: worst and best fit",
            "NMI: normalised mutual information of clusters and domains; entropy: of the shares, in bits, and its "
            "most; us: CPU time to classify a prompt, mean; shares: largest cluster first",
        ]
    )


def _list_expert_shares(fitted: Fitted) -> list[float]:
    """Share of the corpus that each expert gets.

    Prompts with no known word count for the first expert, which gets them unless router.default_expert says otherwise.
    """
    shares = [cluster.share for cluster in fitted.clusters]
    shares[0] += fitted.zero_share
    return shares


def _domain_cells(cluster: Cluster) -> list[str]:
    return [cluster.domain or "-", "-" if cluster.purity is None else f"{cluster.purity:.1%}"]


def _name_rule(balanced: bool) -> str:
    return "balanced" if balanced else "plain"


def _average(trial: Trial, value: Callable[[Quality], float]) -> float:
    return statistics.mean(map(value, trial.qualities))


def _list_shares(trial: Trial) -> str:
    """Mean share of the largest cluster, of the second largest, and so on."""
    ranks = zip(*(sorted(quality.shares, reverse=True) for quality in trial.qualities), strict=True)
    return " ".join(f"{100 * statistics.mean(rank):.0f}" for rank in ranks)


if __name__ == "__main__":
    main()
