"""Plain and balanced k-means on points in a plane."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, ward

from erhpc.errors import InputError
from erhpc.routing.clustering import (
    assign_balanced,
    balanced_centres,
    merge_centres,
    merged_starts,
    nearest,
    plain_centres,
    random_starts,
    squared_distances,
)

ITERATIONS = 20


def blobs(*sizes):
    """Groups of points, far apart: group g lies around (10 g, 0)."""
    rng = np.random.default_rng(7)
    return np.concatenate([rng.normal([10 * group, 0], 0.1, (size, 2)) for group, size in enumerate(sizes)])


def cost(points, centres, labels):
    return squared_distances(points, centres)[np.arange(len(points)), labels].sum()


def cluster_plainly(points, clusters, seed):
    return plain_centres(points, random_starts(points, clusters, np.random.default_rng(seed)), ITERATIONS)


def cluster_in_balance(points, clusters, seed):
    rng = np.random.default_rng(seed)
    return balanced_centres(points, random_starts(points, clusters, rng), ITERATIONS, rng)


def inertia(points, centres):
    return squared_distances(points, centres).min(axis=1).sum()


@pytest.mark.parametrize("seed", range(10))
def test_two_groups_far_apart_are_found_from_any_start(seed):
    points = blobs(30, 10)
    centres = cluster_plainly(points, 2, seed)
    assert sorted(np.bincount(nearest(points, centres))) == [10, 30]
    assert np.sort(centres[:, 0]) == pytest.approx([0, 10], abs=0.2)


def test_the_same_seed_gives_the_same_centres():
    points = blobs(20, 20, 20)
    first, second, other = (cluster_plainly(points, 4, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_an_empty_cluster_takes_over_a_point_so_that_every_centre_is_a_number():
    points = np.array([[0.0], [0.0], [0.0], [1.0], [1.1], [9.0]])
    for seed in range(20):
        centres = cluster_plainly(points, 4, seed)
        assert np.isfinite(centres).all()


def test_equal_points_are_drawn_once_as_starting_centres():
    points = np.array([[0.0, 1.0]] * 50 + [[1.0, 0.0]])
    centres = cluster_plainly(points, 2, 0)
    assert sorted(centres.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("draw_starts", [random_starts, merged_starts])
def test_fewer_different_points_than_clusters_are_refused(draw_starts):
    with pytest.raises(InputError, match="only 2 prompts"):
        draw_starts(np.array([[0.0], [1.0], [1.0]]), 3, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(10))
def test_merged_starts_find_small_groups_that_random_ones_miss(seed):
    points = blobs(300, 10, 10, 300, 10)
    starts = merged_starts(points, 5, np.random.default_rng(seed))
    assert np.sort(starts[:, 0]) == pytest.approx([0, 10, 20, 30, 40], abs=0.2)


def test_k_means_from_merged_starts_is_no_worse_than_from_most_random_ones():
    points = np.random.default_rng(1).normal(size=(400, 8))
    merged = [plain_centres(points, merged_starts(points, 6, np.random.default_rng(n)), ITERATIONS) for n in range(5)]
    random = [cluster_plainly(points, 6, seed) for seed in range(20)]
    assert np.median([inertia(points, centres) for centres in merged]) <= np.median(
        [inertia(points, centres) for centres in random]
    )


def test_starts_of_very_many_points_are_found_from_some_of_them():
    starts = merged_starts(blobs(15_000, 15_000, 500), 3, np.random.default_rng(0))
    assert np.sort(starts[:, 0]) == pytest.approx([0, 10, 20], abs=0.2)


def test_as_many_starts_as_different_points_are_those_points():
    points = np.array([[0.0], [1.0], [1.0], [5.0]])
    assert sorted(merged_starts(points, 3, np.random.default_rng(0)).ravel()) == [0, 1, 5]


def test_centres_are_merged_in_the_order_of_ward():
    points = np.random.default_rng(2).normal(size=(40, 3))
    for clusters in (1, 2, 7, 39, 40):
        merged = merge_centres(points, np.ones(40), clusters)
        groups = fcluster(ward(points), clusters, criterion="maxclust")
        means = np.stack([points[groups == group].mean(axis=0) for group in np.unique(groups)])
        assert sorted(map(tuple, merged.round(9))) == sorted(map(tuple, means.round(9)))


def test_a_merged_centre_lies_nearer_to_the_larger_cluster():
    merged = merge_centres(np.array([[0.0], [1.0], [9.0]]), np.array([3.0, 1.0, 1.0]), 2)
    assert sorted(merged.ravel()) == [0.25, 9]


def test_small_clusters_are_merged_before_near_large_ones():
    merged = merge_centres(np.array([[0.0], [2.0], [10.0], [13.0]]), np.array([100.0, 100.0, 1.0, 1.0]), 3)
    assert sorted(merged.ravel()) == [0, 2, 11.5]


def test_merging_leaves_what_it_was_given():
    centres, sizes = np.array([[0.0], [1.0], [9.0]]), np.ones(3)
    merge_centres(centres, sizes, 1)
    assert (centres.ravel().tolist(), sizes.tolist()) == ([0, 1, 9], [1, 1, 1])


@pytest.mark.parametrize("clusters", [1, 2, 3, 5])
def test_the_balanced_assignment_gives_each_centre_equally_many_points(clusters):
    points = blobs(25, 5)
    labels = assign_balanced(points, points[:clusters])
    assert np.bincount(labels).tolist() == [30 // clusters] * clusters


def test_the_balanced_assignment_is_nearly_the_cheapest_there_is():
    rng = np.random.default_rng(5)
    for _ in range(10):
        points, centres = rng.normal(size=(6, 2)), rng.normal(size=(3, 2))
        possible = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
        least = min(cost(points, centres, list(labels)) for labels in possible)
        tolerance = len(points) * 1.01e-3 * np.ptp(squared_distances(points, centres))
        assert least <= cost(points, centres, assign_balanced(points, centres)) + 1e-9 <= least + tolerance


def test_equal_points_can_be_assigned_in_a_balanced_way():
    assert np.bincount(assign_balanced(np.ones((8, 2)), np.ones((4, 2)))).tolist() == [2, 2, 2, 2]


def test_balanced_centres_split_a_large_group_which_plain_ones_leave_whole():
    points = blobs(40, 10)
    centres = cluster_in_balance(points, 2, 0)
    # 25 points each: one centre lies among the large group, the other between both groups.
    assert np.sort(centres[:, 0]) == pytest.approx([0, 4], abs=0.2)


def test_a_remainder_takes_no_part_in_a_balanced_fit():
    centres = cluster_in_balance(blobs(11, 10), 2, 0)
    assert np.sort(centres[:, 0]) == pytest.approx([0, 10], abs=0.2)
