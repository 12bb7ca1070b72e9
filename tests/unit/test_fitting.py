"""What a fit makes of small corpora written here."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from erhpc.config import FitConfig
from erhpc.config.routing import METHODS as METHOD_NAMES
from erhpc.corpus.prompts import Prompt
from erhpc.errors import ConfigError, InputError
from erhpc.routing.artefact import read_artefact, read_metadata
from erhpc.routing.fitting import METHODS, fit, fit_to, learn_space, list_methods, reference_clusters
from tests.fakes.embedding import VECTORS, write_embedding

FRUIT = ["apple pear plum", "pear plum cherry", "apple cherry pear", "plum apple cherry pear"]
ENGINES = ["engine piston valve", "valve engine gear", "piston gear engine", "gear valve piston engine"]
TEXTS = FRUIT + ENGINES
DOMAINS = ["fruit"] * 4 + ["engines"] * 4


@pytest.fixture(scope="module")
def embedding(tmp_path_factory):
    return str(write_embedding(tmp_path_factory.mktemp("fit") / "embedding"))


def settings(**changes):
    return FitConfig(**{"clusters": 2} | changes)


def cluster_of(fitted, text):
    return fitted.classifier.classify(text).cluster


def shares_of(fitted):
    return tuple(cluster.share for cluster in fitted.clusters)


def test_every_method_of_the_configuration_can_be_fitted_and_no_other():
    assert tuple(METHODS) == METHOD_NAMES


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_texts_on_one_matter_share_a_cluster(method, balanced, seed, embedding):
    fitted = fit(TEXTS, settings(method=method, balanced=balanced, seed=seed, embedding=embedding), DOMAINS)
    assert {cluster_of(fitted, text) for text in FRUIT}.isdisjoint(cluster_of(fitted, text) for text in ENGINES)
    assert shares_of(fitted) == (0.5, 0.5)
    assert fitted.purity == 1


def test_clusters_are_described_by_their_words_and_domain():
    fitted = fit(TEXTS, settings(), DOMAINS)
    fruit = fitted.clusters[cluster_of(fitted, "apple")]
    assert set(fruit.top_terms) == {"apple", "pear", "plum", "cherry"}
    assert (fruit.domain, fruit.purity) == ("fruit", 1)


def test_purity_counts_the_prompts_of_the_commonest_domain_and_skips_unlabelled_ones():
    fitted = fit(TEXTS, settings(), ["fruit", "fruit", "music", "", *["engines"] * 4])
    fruit = fitted.clusters[cluster_of(fitted, "apple")]
    assert fruit.purity == pytest.approx(2 / 3)
    assert fitted.purity == pytest.approx(6 / 7)


def test_a_corpus_without_domains_has_no_purity():
    fitted = fit(TEXTS, settings())
    assert fitted.purity is None
    assert {cluster.domain for cluster in fitted.clusters} == {None}


def test_prompts_with_no_known_word_belong_to_no_cluster_and_are_counted():
    fitted = fit([*TEXTS, "the of and", "1 + 1 = 2"], settings(), [*DOMAINS, "math", "math"])
    assert fitted.zero_share == pytest.approx(0.2)
    assert sum(shares_of(fitted)) == pytest.approx(0.8)
    assert {cluster.domain for cluster in fitted.clusters} == {"fruit", "engines"}


@pytest.mark.parametrize("method", ["cbtm", "content_words"])
def test_numbers_and_stop_words_are_no_part_of_the_vocabulary_of_content_words(method):
    fitted = fit(["the 12 apples", "a 3rd engine of 1984"], settings(method=method))
    assert fitted.classifier.vocabulary == ("apples", "engine")


def test_the_full_text_has_stop_words_numbers_and_marks():
    fitted = fit(["the 12 apples!?", "a 3rd engine of 1984"], settings(method="full_text"))
    assert fitted.classifier.vocabulary == ("!?", "#NUMBER", "a", "apples", "engine", "of", "the")


def test_a_sum_is_a_zero_vector_to_c_btm_but_not_to_the_full_text():
    texts = [*TEXTS, "1 + 1 = 2", "(3 - 4) * 5 ="]
    assert fit(texts, settings()).zero_share == pytest.approx(0.2)
    assert fit(texts, settings(method="full_text")).zero_share == 0


def test_the_vocabulary_keeps_the_words_that_most_prompts_have():
    texts = ["apple apple apple apple apple", "pear engine", "engine pear", "pear valve"]
    assert fit(texts, settings(max_vocabulary=2)).classifier.vocabulary == ("engine", "pear")


def test_dimensions_shrink_to_what_a_small_corpus_has():
    assert fit(TEXTS, settings(dimensions=100)).classifier.rows.shape == (8, 8)
    assert fit(TEXTS, settings(dimensions=3)).classifier.rows.shape == (8, 3)


def test_a_single_cluster_takes_everything():
    assert shares_of(fit(["apple pear"] * 3, settings(clusters=1))) == (1,)


def test_the_same_seed_gives_the_same_classifier_and_another_seed_another():
    texts = [" ".join(np.random.default_rng(n).choice(TEXTS, 3)) for n in range(40)]
    first, second, other = (fit(texts, settings(clusters=5, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.classifier.centres, second.classifier.centres)
    assert first.corpus_sha256 == second.corpus_sha256
    assert not np.array_equal(first.classifier.centres, other.classifier.centres)


def test_the_corpus_hash_sees_where_a_prompt_ends():
    hashes = {fit(texts, settings()).corpus_sha256 for texts in (["apple b", "engine"], ["apple", "b engine"])}
    assert len(hashes) == 2


def test_shares_are_those_of_the_served_classifier():
    texts = [*TEXTS, *FRUIT, *FRUIT]
    fitted = fit(texts, settings(clusters=3, balanced=True))
    served = [cluster_of(fitted, text) for text in texts]
    assert shares_of(fitted) == tuple(served.count(cluster) / len(texts) for cluster in range(3))


@pytest.mark.parametrize("method", METHODS)
def test_the_served_classifier_agrees_with_the_reference_on_mixed_texts(method, embedding):
    chosen = settings(dimensions=3, method=method, embedding=embedding)
    fitted, space = fit(TEXTS, chosen), learn_space(TEXTS, chosen)
    texts = [*TEXTS, "apple engine engine", "Pear! 12 valves, a valve", "", "unknown", "gear gear plum plum plum"]
    assert reference_clusters(space, fitted.classifier.centres, texts) == [cluster_of(fitted, text) for text in texts]


@pytest.mark.parametrize(
    ("texts", "clusters", "message"),
    [
        ([], 2, "has no prompts"),
        (["apple", "pear"], 3, "has only 2 prompts. Use a larger corpus or fewer clusters"),
        (["the", "1 2 3", ""], 2, "0 different words, .* at least 2 are needed"),
        (["apple", "Apple", ""], 2, "1 different words, .* at least 2 are needed"),
        (["apple pear", "pear apple", "Pear, apple!"], 2, "only 1 prompts whose known words differ"),
    ],
)
def test_a_corpus_that_does_not_do_is_refused_with_a_remedy(texts, clusters, message):
    with pytest.raises(InputError, match=message):
        fit(texts, settings(clusters=clusters))


def test_an_embedding_knows_words_that_the_corpus_has_not(embedding):
    fitted = fit(TEXTS, settings(method="embedding", embedding=embedding))
    assert cluster_of(fitted, "a quince") == cluster_of(fitted, "apple plum")
    assert cluster_of(fitted, "Clutch?") == cluster_of(fitted, "engine")
    assert cluster_of(fitted, "nothing known") is None


def test_clusters_of_an_embedding_are_described_by_whole_words(embedding):
    texts = [f"{text} unheard" if text in FRUIT else text for text in TEXTS]
    fitted = fit(texts, settings(method="embedding", embedding=embedding))
    assert set(fitted.clusters[cluster_of(fitted, "apple")].top_terms) == {"apple", "pear", "plum", "cherry", "unheard"}


def test_an_artefact_of_an_embedding_serves_without_it(tmp_path):
    source = write_embedding(tmp_path / "embedding")
    chosen = settings(method="embedding", embedding=str(source), dimensions=2)
    fitted = fit_to(tmp_path / "router", [Prompt(text, "", text) for text in TEXTS], chosen)
    shutil.rmtree(source)

    served = read_artefact(tmp_path / "router")

    assert served.rows.shape == (len(VECTORS) + 1, 2)
    assert [served.classify(text).cluster for text in (*TEXTS, "?")] == [
        cluster_of(fitted, text) for text in (*TEXTS, "?")
    ]
    assert read_metadata(tmp_path / "router").embedding_sha256 == fitted.embedding_sha256 is not None


def test_the_method_embedding_is_only_there_with_an_embedding(embedding):
    assert list_methods(settings(embedding=embedding)) == list(METHODS)
    assert list_methods(settings()) == [name for name in METHODS if name != "embedding"]
    with pytest.raises(ConfigError, match=r"method=embedding needs embedding=DIRECTORY with tokenizer\.json"):
        settings(method="embedding")


def test_prompts_are_fitted_and_written_in_one_go(tmp_path):
    prompts = [Prompt(str(n), domain, text) for n, (domain, text) in enumerate(zip(DOMAINS, TEXTS, strict=True))]
    fitted = fit_to(tmp_path / "router", prompts, settings())
    assert read_artefact(tmp_path / "router").vocabulary == fitted.classifier.vocabulary
    assert read_metadata(tmp_path / "router").purity == fitted.purity == 1


def test_prompts_without_labels_are_fitted_without_domains(tmp_path):
    assert fit_to(tmp_path / "router", [Prompt(text, "", text) for text in TEXTS], settings()).purity is None
