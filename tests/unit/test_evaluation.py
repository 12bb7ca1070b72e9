"""How fits are judged by prompts they have not seen, on a small corpus written here."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erhpc.config import FitConfig
from erhpc.corpus.prompts import Prompt
from erhpc.errors import InputError
from erhpc.routing.evaluation import compare_methods, hold_out, measure_quality
from erhpc.routing.fitting import METHODS, fit
from tests.fakes.embedding import ENGINES, FRUIT, write_embedding


def write_prompts():
    """30 prompts on fruit and 15 on engines: all choices of four words, none on both."""
    prompts = []
    for domain, words, count in (("fruit", FRUIT, 30), ("engines", ENGINES, 15)):
        texts = itertools.islice(itertools.permutations(words, 4), 0, 12 * count, 12)
        prompts += [Prompt(f"{domain}-{number}", domain, " ".join(text)) for number, text in enumerate(texts)]
    return prompts


def ticking_clock(step_ns=5000):
    return itertools.count(step=step_ns).__next__


def settings(**changes):
    return FitConfig(**{"clusters": 2, "dimensions": 2, "quality_fits": 2} | changes)


@pytest.fixture(scope="module")
def embedding(tmp_path_factory):
    return str(write_embedding(tmp_path_factory.mktemp("evaluation") / "embedding"))


def test_every_method_is_judged_plain_and_balanced_once_per_seed(embedding):
    trials = compare_methods(write_prompts(), settings(quality_fits=3, embedding=embedding), clock=ticking_clock())
    assert [(trial.method, trial.balanced) for trial in trials] == list(itertools.product(METHODS, (False, True)))
    assert {len(trial.qualities) for trial in trials} == {3}


def test_without_an_embedding_the_other_methods_are_judged():
    trials = compare_methods(write_prompts(), settings(quality_fits=1), clock=ticking_clock())
    assert {trial.method for trial in trials} == {"cbtm", "content_words", "full_text"}


def test_domains_without_a_word_in_common_are_told_apart(embedding):
    """Where k-means is plain: balanced clusters cannot be of 30 and 15 prompts."""
    for trial in compare_methods(write_prompts(), settings(embedding=embedding), clock=ticking_clock()):
        if not trial.balanced:
            assert {quality.purity for quality in trial.qualities} == {1}
            assert [quality.nmi for quality in trial.qualities] == pytest.approx([1, 1])


def test_labels_do_not_steer_a_fit():
    prompts = write_prompts()
    other = [Prompt(prompt.prompt_id, f"d{number % 3}", prompt.text) for number, prompt in enumerate(prompts)]
    shares = [
        [
            quality.shares
            for trial in compare_methods(labelled, settings(), clock=ticking_clock())
            for quality in trial.qualities
        ]
        for labelled in (prompts, other)
    ]
    assert shares[0] == shares[1]


def test_the_same_seeds_give_the_same_report():
    first, second = (compare_methods(write_prompts(), settings(), clock=ticking_clock()) for _ in range(2))
    assert first == second


def test_a_prompt_with_no_known_word_is_wrong_and_belongs_to_no_cluster():
    prompts = write_prompts()
    fitted = fit([prompt.text for prompt in prompts], settings(), [prompt.domain for prompt in prompts])
    judged = [Prompt("1", "fruit", "apple pear"), Prompt("2", "fruit", "?"), Prompt("3", "", "valve")]
    quality = measure_quality(fitted, [*judged, Prompt("4", "engines", "gear")], ticking_clock())
    assert quality.purity == pytest.approx(2 / 3)
    assert quality.zero_share == 0.25
    assert sorted(quality.shares) == [0.25, 0.5]
    assert quality.entropy_bits == pytest.approx(0.918, abs=0.001)


def test_the_cost_of_a_prompt_is_what_the_clock_says():
    prompts = write_prompts()
    fitted = fit([prompt.text for prompt in prompts], settings(), [prompt.domain for prompt in prompts])
    quality = measure_quality(fitted, prompts, ticking_clock(step_ns=5000))
    assert (quality.classify_us, quality.classify_p99_us) == (5, 5)


def test_unseen_prompts_are_judged_in_place_of_held_out_ones():
    unseen = [Prompt("1", "fruit", "grape"), Prompt("2", "fruit", "valve gear")]
    for trial in compare_methods(write_prompts(), settings(), clock=ticking_clock(), unseen=unseen):
        if not trial.balanced:
            assert {quality.purity for quality in trial.qualities} == {0.5}


@given(st.integers(2, 50), st.floats(0.01, 0.9), st.integers(0, 5))
def test_a_split_loses_no_prompt_and_holds_at_least_one_out(count, share, seed):
    prompts = [Prompt(str(number), "", "text") for number in range(count)]
    fitted, judged = hold_out(prompts, share, seed)
    assert sorted([*fitted, *judged], key=lambda prompt: int(prompt.prompt_id)) == prompts
    assert len(judged) == max(round(share * count), 1)


def test_another_seed_holds_out_other_prompts():
    first, again, other = (hold_out(write_prompts(), 0.2, seed)[1] for seed in (0, 0, 1))
    assert first == again != other


def test_prompts_without_domains_cannot_be_judged():
    unlabelled = [Prompt(prompt.prompt_id, "", prompt.text) for prompt in write_prompts()]
    with pytest.raises(InputError, match="36 prompts to fit has a domain"):
        compare_methods(unlabelled, settings(), clock=ticking_clock())
    with pytest.raises(InputError, match="45 prompts to judge the fit by has a domain"):
        compare_methods(write_prompts(), settings(), clock=ticking_clock(), unseen=unlabelled)
