"""Plain and balanced k-means on points in a plane."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from erhpc.errors import InputError
from erhpc.routing.clustering import assign_balanced, balanced_centres, nearest, plain_centres, squared_distances

ITERATIONS = 20


def blobs(*sizes):
    """Groups of points, far apart: group g lies around (10 g, 0)."""
    rng = np.random.default_rng(7)
    return np.concatenate([rng.normal([10 * group, 0], 0.1, (size, 2)) for group, size in enumerate(sizes)])


def cost(points, centres, labels):
    return squared_distances(points, centres)[np.arange(len(points)), labels].sum()


@pytest.mark.parametrize("seed", range(10))
def test_two_groups_far_apart_are_found_from_any_start(seed):
    points = blobs(30, 10)
    centres = plain_centres(points, 2, ITERATIONS, np.random.default_rng(seed))
    assert sorted(np.bincount(nearest(points, centres))) == [10, 30]
    assert np.sort(centres[:, 0]) == pytest.approx([0, 10], abs=0.2)


def test_the_same_seed_gives_the_same_centres():
    points = blobs(20, 20, 20)
    first, second, other = (plain_centres(points, 4, ITERATIONS, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_an_empty_cluster_takes_over_a_point_so_that_every_centre_is_a_number():
    points = np.array([[0.0], [0.0], [0.0], [1.0], [1.1], [9.0]])
    for seed in range(20):
        centres = plain_centres(points, 4, ITERATIONS, np.random.default_rng(seed))
        assert np.isfinite(centres).all()


def test_equal_points_are_drawn_once_as_starting_centres():
    points = np.array([[0.0, 1.0]] * 50 + [[1.0, 0.0]])
    centres = plain_centres(points, 2, ITERATIONS, np.random.default_rng(0))
    assert sorted(centres.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("find_centres", [plain_centres, balanced_centres])
def test_fewer_different_points_than_clusters_are_refused(find_centres):
    with pytest.raises(InputError, match="only 2 prompts"):
        find_centres(np.array([[0.0], [1.0], [1.0]]), 3, ITERATIONS, np.random.default_rng(0))


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
    centres = balanced_centres(points, 2, ITERATIONS, np.random.default_rng(0))
    # 25 points each: one centre lies among the large group, the other between both groups.
    assert np.sort(centres[:, 0]) == pytest.approx([0, 4], abs=0.2)


def test_a_remainder_takes_no_part_in_a_balanced_fit():
    centres = balanced_centres(blobs(11, 10), 2, ITERATIONS, np.random.default_rng(0))
    assert np.sort(centres[:, 0]) == pytest.approx([0, 10], abs=0.2)
