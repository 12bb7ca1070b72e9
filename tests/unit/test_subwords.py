"""Texts split by tokenizers of several kinds, each made here."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from erhpc.errors import InputError
from erhpc.routing.subwords import MAX_REMEMBERED_CHARS, Subwords
from tests.fakes.embedding import make_tokenizer

WORDS = ("apple", "##s", "pear", ",", "<", "!?")
FREQUENT = ["pear", "apple", "plum", "the"] * 3


def make_subwords(tokenizer):
    return Subwords(tokenizer.to_str().encode())


@pytest.fixture
def subwords():
    return make_subwords(make_tokenizer(WORDS))


def train(tokenizer, lead, **trainer):
    texts = [lead + word for word in FREQUENT]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False, **trainer))
    return tokenizer


def make_byte_level():
    """As of GPT-2, Llama 3 and Qwen: a word after a space is another token than one without."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, " ", initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def make_sentence_piece():
    """As of Llama 2: a space before each text, and bytes for characters that are not known."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    return train(tokenizer, "", special_tokens=["<unk>", *byte_names])


def test_words_are_split_in_order_and_as_often_as_they_occur(subwords):
    assert subwords.find("Apples, pear pear") == [1, 2, 4, 3, 3]


def test_a_text_is_split_the_same_way_each_time(subwords):
    assert subwords.find("pear apples") == subwords.find("pear apples") == [3, 1, 2]


@pytest.mark.parametrize("text", ["", " ", "東京", "unheard", "\ud800"])
def test_what_the_tokenizer_does_not_know_is_left_out(subwords, text):
    assert subwords.find(text) == []
    assert subwords.find(f"pear {text} pear") == [3, 3]


def test_the_name_of_a_special_token_in_a_text_is_only_a_text(subwords):
    assert subwords.find("[UNK] <pear") == [5, 3]


@pytest.mark.parametrize("make", [make_byte_level, make_sentence_piece])
def test_every_word_is_split_as_after_a_space(make):
    tokenizer = make()
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    found = [names[number] for number in make_subwords(tokenizer).find("pear apple")]
    assert found == [names[number] for number in tokenizer.encode("the pear apple").ids][-2:]
    assert {name[0] for name in found} <= {"▁", "Ġ"}


def make_across():
    """One that has learnt subwords across words, which no word by itself has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    texts = ["the pear the plum the apple"] * 9
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=60, show_progress=False, special_tokens=["<unk>"])
    )
    assert any("▁" in name[1:] for name in tokenizer.get_vocab())
    return tokenizer


TEXTS = [
    "the pear the plum the apple",
    "pear plum apples 42 ears a",
    "plum\u2581pear \u0120pear pear\u2581",
    "\ufdfa pear \u6771\u4eac plum \ufdfa plum",
    "Pear_tree, pear's: <unk> 3.14 \u00e9t\u00e9 \u2168 \ufb01g",
    "p" * 100 + " plum " + "the " * 50,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [make_byte_level, make_sentence_piece, make_across, lambda: make_tokenizer(WORDS)])
def test_new_words_are_split_together_as_each_is_by_itself(make, text):
    together, alone = make_subwords(make()), make_subwords(make())
    for number in range(2):
        parts = re.findall(r"\w+|[^\w\s]+", text)
        assert together.find(text) == [found for part in parts for found in alone.find(part)], number


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), max_size=9))
def test_any_words_are_split_together_as_each_is_by_itself(words):
    text = " ".join(words)
    for tokenizer in ACROSS:
        together, alone = make_subwords(tokenizer), make_subwords(tokenizer)
        parts = re.findall(r"\w+|[^\w\s]+", text)
        assert together.find(text) == [found for part in parts for found in alone.find(part)]


ACROSS = [make_across(), make_sentence_piece()]


def test_bytes_of_characters_that_the_tokenizer_does_not_know_are_left_out():
    tokenizer = make_sentence_piece()
    known = make_subwords(tokenizer).find("pear")
    assert "<0xE6>" in tokenizer.encode("東").tokens
    assert make_subwords(tokenizer).find("pear 東京")[: len(known)] == known
    assert not {"<0xE6>", "<0x9D>", "<0xB1>"} & {
        tokenizer.id_to_token(number) for number in make_subwords(tokenizer).find("pear 東京")
    }


def test_a_tokenizer_that_cuts_and_fills_splits_the_whole_text_and_no_more():
    tokenizer = make_tokenizer(WORDS)
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=4)
    assert make_subwords(tokenizer).find("apples pear") == [1, 2, 3]


def test_memory_does_not_grow_with_what_is_asked():
    subwords = Subwords(make_tokenizer(WORDS).to_str().encode(), max_remembered=100)
    subwords.find("pear" + "x" * MAX_REMEMBERED_CHARS)
    assert subwords.num_remembered == 0
    subwords.find(" ".join(map(str, range(300))))
    assert subwords.num_remembered == 100
    assert subwords.find("apple") == [1]
    assert subwords.num_remembered == 1


def test_a_copy_remembers_for_itself(subwords):
    subwords.find("pear")
    other = subwords.copy()
    assert other.find("pear apples") == [3, 1, 2]
    assert (subwords.num_remembered, other.num_remembered) == (1, 2)


def test_all_subwords_are_counted_added_ones_too():
    tokenizer = make_tokenizer(WORDS)
    tokenizer.add_tokens(["quince"])
    assert len(make_subwords(tokenizer)) == 8
    assert make_subwords(tokenizer).num_base == 7


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": {"type": "Magic"}}'])
def test_what_is_no_tokenizer_is_refused(content):
    with pytest.raises(InputError, match=r"Give a tokenizer\.json"):
        Subwords(content)
