"""How well clusters keep domains apart, in numbers. Knows neither texts nor how clusters are found.

Each text has a cluster (None: it has no known word) and a domain ("": it has no label). Purity and normalised mutual
information are those of Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), section 16.3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence


def find_main_domains(clusters: Sequence[int | None], domains: Sequence[str]) -> dict[int, str]:
    """The commonest domain of each cluster that has a labelled text; the first in the alphabet wins a tie."""
    main: dict[int, str] = {}
    pairs = Counter((cluster, domain) for cluster, domain in zip(clusters, domains, strict=True) if domain)
    for (cluster, domain), _ in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0][1])):
        if cluster is not None:
            main.setdefault(cluster, domain)
    return main


def compute_purity(
    clusters: Sequence[int | None], domains: Sequence[str], main_domains: Mapping[int, str]
) -> float | None:
    """Share of the labelled texts whose domain is the main one of their cluster; None: no text is labelled.

    It is the book's purity where `main_domains` are those of the same texts, and an honest score of unseen texts where
    they are those of the texts that were fitted. A text without a cluster counts as wrong.
    """
    right = [
        cluster is not None and main_domains.get(cluster) == domain
        for cluster, domain in zip(clusters, domains, strict=True)
        if domain
    ]
    return sum(right) / len(right) if right else None


def compute_nmi(clusters: Sequence[int | None], domains: Sequence[str]) -> float | None:
    """Normalised mutual information of clusters and domains, from 0 to 1; None: no text is labelled.

    I(clusters; domains) over the mean of their entropies, as the book and scikit-learn's default have it. Texts
    without a cluster form one of their own. Where there is only one cluster and one domain, it is 1.
    """
    pairs = [(cluster, domain) for cluster, domain in zip(clusters, domains, strict=True) if domain]
    if not pairs:
        return None
    of_clusters, of_domains = (_entropy_of(side) for side in zip(*pairs, strict=True))
    if of_clusters + of_domains == 0:
        return 1.0
    return max(0.0, 2 * (of_clusters + of_domains - _entropy_of(pairs)) / (of_clusters + of_domains))


def compute_entropy_bits(shares: Iterable[float]) -> float:
    """Shannon entropy of shares, in bits: log2(n) where n shares are equal, 0 where one has everything.

    Shares are weighed against their sum, which need not be 1.
    """
    given = [share for share in shares if share > 0]
    total = sum(given)
    return 0.0 - sum(share / total * math.log2(share / total) for share in given)


def apportion_replicas(shares: Sequence[float], replicas: int) -> tuple[int, ...]:
    """How many of `replicas` each expert gets for its share of the prompts: one at least, `replicas` in all.

    Each goes where a replica has most to do so far, which leaves the busiest replica with as little as can be: least
    max(share / replicas) of all ways to share them out.

    Raises:
        ValueError: there are fewer replicas than shares.
    """
    if replicas < len(shares):
        raise ValueError(f"{replicas} replicas for {len(shares)} experts; each needs one")
    given = [1] * len(shares)
    for _ in range(replicas - len(shares)):
        given[max(range(len(shares)), key=lambda expert: shares[expert] / given[expert])] += 1
    return tuple(given)


def _entropy_of(values: Iterable[object]) -> float:
    return compute_entropy_bits(Counter(values).values())
