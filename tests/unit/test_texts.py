"""Synthetic texts have the tokens asked for, by four families of tokenizers, without being encoded."""

from __future__ import annotations

from functools import cache, partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from erhpc.corpus.prompts import demo_text
from erhpc.errors import InputError
from erhpc.experts.model_directory import build_tokenizer
from erhpc.plan.protocol import CHARS_PER_TOKEN
from erhpc.workload.texts import ExactWriter, RoughWriter
from erhpc.workload.tokenizer import FileTokenizer, read_tokenizer
from erhpc.workload.words import MAX_WORDS, Words, find_words


def train(tokenizer, trainer):
    tokenizer.train_from_iterator(demo_text().splitlines(), trainer)
    return tokenizer


def byte_level(vocab_size=3000):
    """As GPT-2, Llama 3 and Qwen: words with the blank before them."""
    return Tokenizer.from_str(msgspec.json.encode(build_tokenizer(demo_text(), vocab_size)).decode())


def sentencepiece_bpe():
    """As Llama 2 and Mistral: no splitting, a blank before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>", "<s>"], show_progress=False)
    content = msgspec.json.decode(train(tokenizer, trainer).to_str())
    content["pre_tokenizer"] = None
    trained = Tokenizer.from_str(msgspec.json.encode(content).decode())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return trained


def unigram():
    """As T5 and Gemma's ancestors: the likeliest pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=2000, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    return train(tokenizer, trainer)


def word_piece():
    """As BERT: lower case, pieces within a word are marked."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return train(tokenizer, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=["[UNK]"], show_progress=False))


FAMILIES = {
    "byte_level": byte_level,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram": unigram,
    "word_piece": word_piece,
    "few_words": partial(byte_level, 300),
    "bytes_only": partial(byte_level, 259),
}
ROUGH = RoughWriter()


@cache
def tokenizer_of(family):
    return FileTokenizer(FAMILIES[family](), family)


@cache
def writer_of(family):
    return ExactWriter(find_words(tokenizer_of(family)))


@pytest.mark.parametrize("family", FAMILIES)
@given(tokens=st.integers(1, 4096), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_a_text_has_exactly_the_tokens_asked_for(family, tokens, seed):
    text = writer_of(family).write(tokens, default_rng(seed))

    assert tokenizer_of(family).count(text) == tokens
    assert text == text.strip()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("word_piece", "bytes_only")])
@given(tokens=st.integers(1, 100), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=20)
def test_a_text_keeps_its_tokens_behind_a_line_break(family, tokens, seed):
    text, tokenizer = writer_of(family).write(tokens, default_rng(seed)), tokenizer_of(family)

    assert tokenizer.count(f"user\n{text}") - tokenizer.count("user\n") == tokens


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece_bpe", "unigram", "word_piece"])
def test_an_ordinary_vocabulary_gives_many_words_that_look_like_words(family):
    words = find_words(tokenizer_of(family))

    assert 100 < len(words.pieces) <= MAX_WORDS
    assert all(piece.startswith(" ") and len(piece) >= 4 and piece[1:].isalpha() for piece in words.pieces)
    assert len(set(words.pieces)) == len(words.pieces)


def test_the_same_tokenizer_gives_the_same_words():
    assert find_words(tokenizer_of("byte_level")) == find_words(FileTokenizer(byte_level(), "again"))


class Merging:
    """A tokenizer to which any text is one token."""

    source, num_ids = "merging.json", 500

    def count(self, text):
        return 1

    def decode(self, token_id):
        return "a" * (token_id + 1)


def test_a_tokenizer_whose_pieces_all_merge_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"workload\.tokenizer=merging\.json: none of its tokens stay apart.*null"):
        find_words(Merging())


class RarelyMerging:
    """A tokenizer of words in which `w0` swallows the `w1` behind it, and so on for every fiftieth word."""

    source, num_ids = "rarely.json", 700
    words = tuple(f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(700 - 50))

    def count(self, text):
        words = text.split()
        return sum(not self._merge(before, word) for before, word in zip(["", *words], words, strict=False))

    def _merge(self, before, word):
        return before in self.words[::50] and self.words.index(word) % 50 == 1

    def decode(self, token_id):
        return self.words[token_id % len(self.words)]


def test_words_that_merge_with_others_are_left_out():
    tokenizer = RarelyMerging()
    writer = ExactWriter(find_words(tokenizer))

    assert [tokenizer.count(writer.write(3000, default_rng(seed))) for seed in range(10)] == [3000] * 10


@pytest.mark.parametrize("writer", [RoughWriter(), ExactWriter(Words(("a",), (" b", " c")))], ids=["rough", "exact"])
def test_the_same_state_of_the_generator_gives_the_same_text(writer):
    assert writer.write(100, default_rng(5)) == writer.write(100, default_rng(5)) != writer.write(100, default_rng(6))


@pytest.mark.parametrize("writer", [RoughWriter(), ExactWriter(Words(("a",), (" b",)))], ids=["rough", "exact"])
@pytest.mark.parametrize("tokens", [0, -1])
def test_a_text_without_tokens_cannot_be_written(writer, tokens):
    with pytest.raises(ValueError, match="Ask for at least 1"):
        writer.write(tokens, default_rng(0))


@given(tokens=st.integers(1, 4096), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_without_a_tokenizer_a_text_has_exactly_four_characters_per_token(tokens, seed):
    assert len(ROUGH.write(tokens, default_rng(seed))) == CHARS_PER_TOKEN * tokens


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_tokenizer_is_read_from_a_file_or_the_folder_that_holds_it(tmp_path, name):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(str(tmp_path / name))

    assert (tokenizer.num_ids, tokenizer.source) == (3000, str(tmp_path / name))
    assert tokenizer.count(" the answer") == 2


def test_a_tokenizer_that_was_saved_with_truncation_does_not_cut_texts(tmp_path):
    saved = byte_level()
    saved.enable_truncation(8)
    saved.enable_padding(length=8)
    saved.save(str(tmp_path / "tokenizer.json"))

    assert read_tokenizer(str(tmp_path)).count(" the" * 50) == 50
    assert read_tokenizer(str(tmp_path)).count(" the") == 1


def test_a_missing_tokenizer_is_named_with_the_file_that_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=rf"workload\.tokenizer={tmp_path}: {tmp_path}/tokenizer\.json cannot be read"):
        read_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"model": {"type": "Unheard"}}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"workload\.tokenizer.*tokenizer\.json (is no tokenizer|cannot be read)"):
        read_tokenizer(str(tmp_path))
