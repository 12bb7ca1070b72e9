"""k-means by the rules of c-BTM (arXiv:2303.14177), plain and balanced, on points in memory; and where it starts.

This module knows no texts; points are (points, dimensions) float64, centres (clusters, dimensions) float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from erhpc.errors import InputError

Points = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]

TOLERANCE = 1e-3
"""Lloyd's iterations end when the squared sum of all shifts of centres is below this (c-BTM)."""
BID_STEP = 1e-3
"""Least raise of a bid, as a share of the range of distances: how far the auction may be from the best assignment."""
SMALL_PER_CLUSTER = 8
"""How many small clusters are merged into one start, if the points suffice."""
SMALL_ITERATIONS = 20
MAX_SAMPLE = 20_000
"""Most points that starts are merged from: their distances to the small clusters must fit into memory."""
_DECIMALS = 9
"""Points that agree to this many decimals count as one when the starting centres are drawn."""


def squared_distances(points: Points, centres: Points) -> Points:
    """Squared Euclidean distances, (points, clusters)."""
    lengths2 = np.square(points).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    distances2: Points = np.maximum(lengths2 - 2 * (points @ centres.T), 0)
    return distances2


def nearest(points: Points, centres: Points) -> Labels:
    """Number of the nearest centre of each point; the lower number wins a tie."""
    labels: Labels = squared_distances(points, centres).argmin(axis=1)
    return labels


def random_starts(points: Points, clusters: int, rng: np.random.Generator) -> Points:
    """Starting centres of c-BTM: points drawn at random, all different.

    Raises:
        InputError: there are fewer different points than clusters.
    """
    return _draw(points, _find_different(points, clusters), clusters, rng)


def merged_starts(points: Points, clusters: int, rng: np.random.Generator) -> Points:
    """Starting centres that lie where the points are: the centres of many small clusters, merged.

    Random starts often put two centres into one large group and none into a small one, and k-means cannot mend that.
    Small clusters cover all groups; those that cost least are merged until as many as asked are left. Equal points
    count once.

    Raises:
        InputError: there are fewer different points than clusters.
    """
    different = _find_different(points, clusters)
    sample = points[different] if len(different) <= MAX_SAMPLE else _draw(points, different, MAX_SAMPLE, rng)
    small = min(SMALL_PER_CLUSTER * clusters, len(sample))
    centres = plain_centres(sample, _draw(sample, np.arange(len(sample)), small, rng), SMALL_ITERATIONS)
    # One that no point is nearest to counts as one point: nothing is divided by 0.
    sizes = np.maximum(np.bincount(nearest(sample, centres), minlength=small), 1)
    return merge_centres(centres, sizes.astype(np.float64), clusters)


def merge_centres(centres: Points, sizes: Points, clusters: int) -> Points:
    """Merge centres of `sizes` (centres,) points each, pair by pair, until `clusters` are left.

    Merging clusters of m and n points raises the sum of squared distances by m n / (m + n) times the squared distance
    of their centres; the pair that raises it least is merged (Ward, 1963, J. Am. Stat. Assoc. 58, 236-244).
    """
    centres, sizes, left = centres.copy(), sizes.copy(), np.ones(len(centres), dtype=np.bool_)
    raises = squared_distances(centres, centres) * (sizes[:, None] * sizes / (sizes[:, None] + sizes))
    np.fill_diagonal(raises, np.inf)
    for _ in range(len(centres) - clusters):
        kept, gone = divmod(int(raises.argmin()), len(centres))
        centres[kept] = np.average(centres[[kept, gone]], axis=0, weights=sizes[[kept, gone]])
        sizes[kept] += sizes[gone]
        left[gone] = False
        renewed = squared_distances(centres, centres[[kept]])[:, 0] * (sizes * sizes[kept] / (sizes + sizes[kept]))
        renewed[kept] = np.inf
        raises[kept] = raises[:, kept] = np.where(left, renewed, np.inf)
        raises[gone] = raises[:, gone] = np.inf
    return centres[left]


def plain_centres(points: Points, starts: Points, iterations: int) -> Points:
    """Centres of plain k-means from `starts`: each point belongs to its nearest centre."""
    return _improve_centres(points, starts, iterations, _assign_nearest)


def balanced_centres(points: Points, starts: Points, iterations: int, rng: np.random.Generator) -> Points:
    """Centres of balanced k-means from `starts`: each cluster owns floor(points / clusters) points.

    The remainder, fewer points than clusters and drawn at random, takes no part.
    """
    kept = rng.permutation(len(points))[: len(points) // len(starts) * len(starts)]
    return _improve_centres(points[kept], starts, iterations, assign_balanced)


def assign_balanced(points: Points, centres: Points) -> Labels:
    """Assign equally many points to each centre, with a nearly least sum of squared distances.

    An auction (Bertsekas, 1988): points bid for places at centres and centres keep the highest bids. `points` must
    be a multiple of the centres in number.
    """
    capacity, clusters = len(points) // len(centres), len(centres)
    values = -squared_distances(points, centres)
    if clusters == 1:
        return np.zeros(len(points), dtype=np.intp)
    step = max(float(np.ptp(values)) * BID_STEP, np.finfo(np.float64).tiny)
    labels, bids, prices = np.full(len(points), -1, dtype=np.intp), np.zeros(len(points)), np.zeros(clusters)
    while (free := np.flatnonzero(labels < 0)).size:
        wanted, bids[free] = _bid(values[free], prices, step)
        for cluster in np.unique(wanted):
            rivals = np.concatenate([np.flatnonzero(labels == cluster), free[wanted == cluster]])
            rivals = rivals[np.argsort(-bids[rivals], kind="stable")]
            labels[rivals[:capacity]], labels[rivals[capacity:]] = cluster, -1
            if len(rivals) >= capacity:
                prices[cluster] = bids[rivals[capacity - 1]]
    return labels


def _bid(values: Points, prices: Points, step: float) -> tuple[Labels, Points]:
    """Which cluster each point wants, and what it offers: what makes its second choice as good, and a step more."""
    gains = values - prices
    wanted = gains.argmax(axis=1)
    second, best = np.partition(gains, -2, axis=1)[:, -2:].T
    return wanted, prices[wanted] + (best - second) + step


def _find_different(points: Points, clusters: int) -> Labels:
    """One index per different point; InputError if they are fewer than clusters."""
    _, different = np.unique(points.round(_DECIMALS), axis=0, return_index=True)
    if len(different) < clusters:
        raise InputError(
            f"clusters={clusters}, but the corpus has only {len(different)} prompts whose known words differ. "
            "Use a larger corpus or fewer clusters."
        )
    return np.asarray(different, dtype=np.intp)


def _draw(points: Points, different: Labels, size: int, rng: np.random.Generator) -> Points:
    drawn: Points = points[rng.choice(different, size=size, replace=False)]
    return drawn


def _improve_centres(
    points: Points, centres: Points, iterations: int, assign: Callable[[Points, Points], Labels]
) -> Points:
    """Lloyd's iterations: assign points to centres, move centres to the means of their points."""
    for _ in range(iterations):
        moved = _means(points, assign(points, centres), len(centres))
        shift = np.sqrt(np.square(moved - centres).sum(axis=1)).sum()
        centres = moved
        if shift**2 < TOLERANCE:
            break
    return centres


def _assign_nearest(points: Points, centres: Points) -> Labels:
    """Nearest centre, but an empty cluster takes over the point that is worst served by its own."""
    distances2 = squared_distances(points, centres)
    labels: Labels = distances2.argmin(axis=1)
    misfit = distances2.min(axis=1)
    for empty in np.setdiff1d(np.arange(len(centres)), labels):
        # A cluster's only point stays: taking it would empty that cluster in turn.
        alone = np.bincount(labels, minlength=len(centres))[labels] == 1
        taken = int(np.where(alone, -1, misfit).argmax())
        labels[taken], misfit[taken] = empty, 0
    return labels


def _means(points: Points, labels: Labels, clusters: int) -> Points:
    return np.stack([points[labels == cluster].mean(axis=0) for cluster in range(clusters)])
