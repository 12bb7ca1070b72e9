"""Which cluster a text goes to, in a plane whose rows and centres are small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from erhpc.errors import InputError
from erhpc.routing.classifier import Classifier
from erhpc.routing.features import NUMBER, Reading
from erhpc.routing.subwords import Subwords
from tests.fakes.embedding import tokenizer_json

VOCABULARY = ("apple", "pear", "engine", "noise")
ROWS = np.array([[1, 0], [2, 0], [0, 1], [0, 1e-17]], dtype=np.float32)
CENTRES = np.array([[0.9, 0.1], [0.2, 0.6]], dtype=np.float32)


@pytest.fixture
def classifier():
    return Classifier(VOCABULARY, ROWS, CENTRES)


def test_a_text_goes_to_the_nearest_centre(classifier):
    assert classifier.classify("An APPLE, a pear.").cluster == 0
    assert classifier.classify("engine").cluster == 1


def test_words_count_as_often_as_they_occur_and_as_much_as_they_weigh(classifier):
    assert classifier.classify("engine pear").cluster == 0
    assert classifier.classify("engine engine engine engine engine pear").cluster == 1


def test_a_logarithmic_classifier_counts_a_token_that_occurs_n_times_1_plus_ln_n_times():
    classifier = Classifier(VOCABULARY, ROWS, CENTRES, Reading(counts="log"))
    twice = np.array([2 * (1 + np.log(2)), 1]) / np.hypot(2 * (1 + np.log(2)), 1)
    expected = np.square(twice - CENTRES).sum(axis=1)
    assert classifier.classify("pear engine pear").distances2 == pytest.approx(expected, abs=1e-6)
    # Counted plainly, five would outweigh the pear.
    assert classifier.classify("engine engine engine engine engine pear").cluster == 1
    assert classifier.classify("engine engine pear").cluster == 0


def test_a_classifier_of_all_tokens_knows_numbers_and_marks():
    rows = np.array([[1, 0], [0, 1]], dtype=np.float32)
    classifier = Classifier([NUMBER, "?!"], rows, np.eye(2, dtype=np.float32), Reading(tokens="all"))
    assert [classifier.classify(text).cluster for text in ("12", "3rd", "so?!", "so ?", "")] == [0, 0, 1, None, None]


def test_a_classifier_of_subwords_splits_as_their_tokenizer_does():
    rows = np.array([[9, 9], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    subwords = Subwords(tokenizer_json(("apple", "##s", "pear")))
    classifier = Classifier(subwords, rows, np.eye(2, dtype=np.float32), Reading(tokens="subwords"))
    texts = ("APPLE", "apples pear", "apple apple s", "东", "")
    assert [classifier.classify(text).cluster for text in texts] == [0, 1, 0, None, None]


@pytest.mark.parametrize(("subwords", "tokens"), [(True, "all"), (False, "subwords")])
def test_a_vocabulary_of_another_kind_than_the_tokens_is_refused(subwords, tokens):
    vocabulary = Subwords(tokenizer_json(VOCABULARY[1:])) if subwords else VOCABULARY
    with pytest.raises(InputError, match=f"reads {tokens}, but its vocabulary is a"):
        Classifier(vocabulary, ROWS, CENTRES, Reading(tokens=tokens))


def test_distances_are_squared_and_from_the_unit_vector(classifier):
    found = classifier.classify("pear pear")
    assert found.distances2.dtype == np.float32
    assert found.distances2 == pytest.approx([0.1**2 + 0.1**2, 0.8**2 + 0.6**2], abs=1e-6)


@pytest.mark.parametrize("text", ["", "?", "hi", "東京", "unknown words only", "1 + 1 = 2", "noise"])
def test_a_text_with_no_known_direction_has_no_cluster(classifier, text):
    found = classifier.classify(text)
    assert found.cluster is None
    assert found.distances2 == pytest.approx([0.82, 0.40])


def test_a_short_centre_can_win_although_another_points_more_along_the_text():
    classifier = Classifier(["a1"], np.array([[1.0, 0.0]]), np.array([[0.5, 0.0], [0.9, 0.8]]))
    assert classifier.classify("a1").cluster == 0


def test_the_lower_number_wins_a_tie():
    classifier = Classifier(["word"], np.array([[1.0]]), np.array([[0.5], [0.5]]))
    assert classifier.classify("word").cluster == 0


def test_a_text_changes_nothing_for_the_next_one(classifier):
    before = classifier.classify("hi").distances2.copy()
    classifier.classify("apple")
    assert np.array_equal(classifier.classify("hi").distances2, before)


def test_clusters_are_counted(classifier):
    assert classifier.num_clusters == 2


@pytest.mark.parametrize(
    ("vocabulary", "rows", "centres"),
    [
        (VOCABULARY[:3], ROWS, CENTRES),
        (("apple", "apple", "engine", "noise"), ROWS, CENTRES),
        (VOCABULARY, ROWS, CENTRES[:, :1]),
        (VOCABULARY, ROWS[0], CENTRES),
        (VOCABULARY, ROWS, CENTRES[:0]),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(vocabulary, rows, centres):
    with pytest.raises(InputError, match="Fit it again"):
        Classifier(vocabulary, rows, centres)
