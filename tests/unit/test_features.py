"""How a text becomes words, with scikit-learn's own analyzer as the judge."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from erhpc.errors import InputError
from erhpc.routing.features import NUMBER, Reading, content_words, is_number, words, words_and_marks, words_to_look_up

analyze = CountVectorizer().build_analyzer()


@given(st.text())
@example("The İstanbul ﬁre-fly's x² of ½ 2nd don't_stop ΑΣ ١٢ 東京 na\u0308ive a1 1a")
def test_words_are_those_of_scikit_learn(text):
    assert words(text) == analyze(text)


@given(st.text(st.characters(max_codepoint=127)) | st.text())
@example("A_b\x1cI2 i'm\x85no, B")
def test_words_to_look_up_are_the_words_but_for_single_characters(text):
    assert [word for word in words_to_look_up(text) if len(word) > 1] == words(text)


def test_a_word_has_at_least_two_characters_and_no_capitals():
    assert words("I saw A Big_cat, x2 & y!") == ["saw", "big_cat", "x2"]


def test_a_word_that_begins_with_a_digit_is_a_number():
    assert [is_number(word) for word in ("42", "2nd", "٣٤", "²x", "x2", "½x")] == [True, True, True, True, False, False]


def test_stop_words_and_numbers_are_no_content():
    assert content_words("The 3rd cat and the 12 dogs of 1984", {"the", "and", "of"}) == ["cat", "dogs"]


def test_repetitions_are_kept_in_order():
    assert content_words("cat dog cat", ()) == ["cat", "dog", "cat"]


def test_words_and_marks_are_everything_but_space():
    assert words_and_marks("If x_1 >= 10: return 'No'") == ["if", "x_1", ">=", NUMBER, ":", "return", "'", "no", "'"]


def test_numbers_of_any_script_and_length_are_one_token():
    assert words_and_marks("7 1,000 5am ٣٤ 2.5") == [NUMBER, NUMBER, ",", NUMBER, NUMBER, NUMBER, NUMBER, ".", NUMBER]


@given(st.text(st.characters()))
@example("a\u2028b \x85 c\x1cd \ud800 e\ud800f 東京、")
def test_words_and_marks_can_be_written_one_per_line(text):
    tokens = words_and_marks(text)
    assert "".join(f"{token}\n" for token in tokens).encode().decode().splitlines() == tokens


@given(st.text())
def test_every_word_is_among_words_and_marks_or_a_number(text):
    assert {word for word in words(text) if not is_number(word)} <= set(words_and_marks(text))


@pytest.mark.parametrize("wrong", [{"tokens": "syllables"}, {"counts": "double"}])
def test_an_unknown_way_of_reading_is_refused(wrong):
    with pytest.raises(InputError, match="this erhpc knows"):
        Reading(**wrong)
