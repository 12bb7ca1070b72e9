"""The formulas of quality: scikit-learn, brute force and small cases worked by hand are the judges."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from erhpc.routing.quality import (
    apportion_replicas,
    compute_entropy_bits,
    compute_nmi,
    compute_purity,
    find_main_domains,
)

LABELLED = st.lists(st.tuples(st.integers(0, 3) | st.none(), st.sampled_from("abc")), min_size=1, max_size=40)

# Figure 16.4 of Introduction to Information Retrieval: 17 points, of which 5 + 4 + 3 are of their cluster's class.
BOOK_CLUSTERS = [0] * 6 + [1] * 6 + [2] * 5
BOOK_DOMAINS = [*"xxxxxo", *"xoooo$", *"xx$$$"]


def test_the_purity_of_the_book_is_that_of_the_book():
    main = find_main_domains(BOOK_CLUSTERS, BOOK_DOMAINS)
    assert main == {0: "x", 1: "o", 2: "$"}
    assert compute_purity(BOOK_CLUSTERS, BOOK_DOMAINS, main) == pytest.approx(12 / 17)


def test_the_mutual_information_of_the_book_is_that_of_the_book():
    assert compute_nmi(BOOK_CLUSTERS, BOOK_DOMAINS) == pytest.approx(0.36, abs=0.005)


@given(LABELLED)
def test_mutual_information_is_that_of_scikit_learn(pairs):
    clusters, domains = map(list, zip(*pairs, strict=True))
    as_numbers = [-1 if cluster is None else cluster for cluster in clusters]
    assert compute_nmi(clusters, domains) == pytest.approx(normalized_mutual_info_score(domains, as_numbers), abs=1e-9)


@given(LABELLED)
def test_no_naming_of_clusters_is_purer_than_by_their_main_domains(pairs):
    clusters, domains = map(list, zip(*pairs, strict=True))
    purity = compute_purity(clusters, domains, find_main_domains(clusters, domains))
    for names in itertools.product("abc", repeat=4):
        assert compute_purity(clusters, domains, dict(enumerate(names))) <= purity <= 1


def test_unseen_texts_are_judged_by_the_domains_of_the_fitted_ones():
    main = find_main_domains([0, 0, 1], ["code", "code", "math"])
    assert compute_purity([0, 0, 1, 1], ["math", "math", "math", "code"], main) == 0.25


def test_a_text_without_a_cluster_is_wrong_and_so_is_one_whose_cluster_has_no_name():
    assert compute_purity([None, 0, 1], ["code", "code", "code"], {0: "code"}) == pytest.approx(1 / 3)


def test_texts_without_a_label_do_not_count():
    assert find_main_domains([0, 0, 0], ["", "", "code"]) == {0: "code"}
    assert compute_purity([0, 0, 1], ["", "code", ""], {0: "code"}) == 1
    assert compute_nmi([0, 1, 0], ["code", "math", ""]) == pytest.approx(1)
    assert compute_purity([0], [""], {0: "code"}) is None
    assert compute_nmi([0], [""]) is None


def test_texts_without_a_cluster_are_a_cluster_of_their_own_to_mutual_information():
    assert compute_nmi([None, None, 0], ["code", "code", "math"]) == pytest.approx(1)


def test_the_first_domain_in_the_alphabet_wins_a_tie():
    assert find_main_domains([0, 0], ["math", "code"]) == {0: "code"}


@pytest.mark.parametrize(
    ("shares", "bits"),
    [([1.0], 0), ([0.5, 0.5], 1), ([0.25] * 4, 2), ([0.5, 0.25, 0.25], 1.5), ([0.2, 0.0, 0.2], 1), ([0.0], 0)],
)
def test_entropy_of_shares_is_as_worked_by_hand(shares, bits):
    assert compute_entropy_bits(shares) == pytest.approx(bits)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20))
def test_entropy_is_at_most_that_of_equal_shares(shares):
    assert 0 <= compute_entropy_bits(shares) <= math.log2(len(shares)) + 1e-9


def test_replicas_follow_the_shares():
    assert apportion_replicas([0.5, 0.25, 0.25], 8) == (4, 2, 2)
    assert apportion_replicas([0.9, 0.1, 0.0], 3) == (1, 1, 1)
    assert apportion_replicas([0.0, 1.0], 10) == (1, 9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3), st.integers(0, 5))
def test_no_other_way_to_share_out_replicas_leaves_the_busiest_one_less_to_do(shares, more):
    replicas = len(shares) + more
    given_out = apportion_replicas(shares, replicas)
    ways = (way for way in itertools.product(range(1, replicas + 1), repeat=len(shares)) if sum(way) == replicas)
    least = min(max(share / number for share, number in zip(shares, way, strict=True)) for way in ways)
    assert sum(given_out) == replicas
    assert max(share / number for share, number in zip(shares, given_out, strict=True)) == pytest.approx(least)


def test_every_expert_needs_a_replica():
    with pytest.raises(ValueError, match="2 replicas for 3 experts"):
        apportion_replicas([0.3, 0.3, 0.4], 2)
