"""The verb `python -m erhpc.fit corpus=FILE.jsonl clusters=8`: fits the classifier of a router and shows its clusters.

It knows no rule of fitting (`erhpc.routing.fitting`) and no format (`erhpc.routing.artefact`).
"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from erhpc.composition import verb
from erhpc.config import FitConfig
from erhpc.console import open_console
from erhpc.corpus.prompts import read_prompts
from erhpc.routing.artefact import Cluster, Fitted
from erhpc.routing.fitting import fit_to


@verb(FitConfig, "fit")
def main(settings: FitConfig, _yaml: str) -> None:
    """Fit, write the artefact, print what the clusters are."""
    prompts = read_prompts(settings.corpus)
    fitted = fit_to(Path(settings.output), prompts, settings)
    open_console().print(draw_clusters(fitted))
    print(summarise(fitted, len(prompts)))


def draw_clusters(fitted: Fitted) -> Table:
    """Table with a line per cluster; domain and purity only where the corpus names domains."""
    table = Table("cluster", "share", "top terms")
    if fitted.purity is not None:
        table.add_column("domain")
        table.add_column("purity", justify="right")
    for number, cluster in enumerate(fitted.clusters):
        cells = [str(number), f"{cluster.share:.1%}", " ".join(cluster.top_terms)]
        table.add_row(*(Text(cell) for cell in cells + (_domain_cells(cluster) if fitted.purity is not None else [])))
    return table


def summarise(fitted: Fitted, num_prompts: int) -> str:
    """What holds for all clusters together, and where the artefact is."""
    words, dimensions = fitted.classifier.rows.shape
    rule = "balanced" if fitted.settings.balanced else "plain"
    lines = [
        f"{num_prompts} prompts, {words} words, {dimensions} dimensions, {rule} k-means",
        f"no known word: {fitted.zero_share:.1%} of the prompts (they go to router.default_expert)",
        f"written to {fitted.settings.output}; use it with router.artefact={fitted.settings.output}",
    ]
    if fitted.purity is not None:
        lines.insert(1, f"purity: {fitted.purity:.1%} of the prompts share their cluster's main domain")
    return "\n".join(lines)


def _domain_cells(cluster: Cluster) -> list[str]:
    return [cluster.domain or "-", "-" if cluster.purity is None else f"{cluster.purity:.1%}"]


if __name__ == "__main__":
    main()
