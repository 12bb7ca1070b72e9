"""How a text becomes words, with scikit-learn's own analyzer as the judge."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from erhpc.routing.features import content_words, is_number, words

analyze = CountVectorizer().build_analyzer()


@given(st.text())
@example("The İstanbul ﬁre-fly's x² of ½ 2nd don't_stop ΑΣ ١٢ 東京 na\u0308ive a1 1a")
def test_words_are_those_of_scikit_learn(text):
    assert words(text) == analyze(text)


def test_a_word_has_at_least_two_characters_and_no_capitals():
    assert words("I saw A Big_cat, x2 & y!") == ["saw", "big_cat", "x2"]


def test_a_word_that_begins_with_a_digit_is_a_number():
    assert [is_number(word) for word in ("42", "2nd", "٣٤", "²x", "x2", "½x")] == [True, True, True, True, False, False]


def test_stop_words_and_numbers_are_no_content():
    assert content_words("The 3rd cat and the 12 dogs of 1984", {"the", "and", "of"}) == ["cat", "dogs"]


def test_repetitions_are_kept_in_order():
    assert content_words("cat dog cat", ()) == ["cat", "dog", "cat"]
