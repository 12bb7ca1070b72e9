"""Fits a classifier to a corpus, as c-BTM does or by a method of METHODS; the only home of scikit-learn.

This module knows no experts and no gateway: what it returns is served by `classifier` and stored by `artefact`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.preprocessing import normalize

from erhpc.config import FitConfig
from erhpc.corpus.prompts import Prompt
from erhpc.errors import InputError
from erhpc.routing.artefact import Cluster, Fitted, write_artefact
from erhpc.routing.classifier import ZERO_LENGTH, Classifier
from erhpc.routing.clustering import (
    Labels,
    Points,
    balanced_centres,
    merged_starts,
    nearest,
    plain_centres,
    random_starts,
)
from erhpc.routing.embedding import Embedding, read_embedding
from erhpc.routing.features import SUBWORDS, Reading, content_words, words_and_marks
from erhpc.routing.quality import compute_purity, find_main_domains

NUM_TOP_TERMS = 8
MIN_VOCABULARY = 2
"""Fewest words that scikit-learn projects."""
NO_CLUSTER = -1
"""Label of a text with no known word."""

FITTED_TOKENS: dict[str, Callable[[str], list[str]]] = {
    "content": partial(content_words, stop_words=ENGLISH_STOP_WORDS),
    "all": words_and_marks,
}
"""What a text is split into when a classifier is fitted, by `Reading.tokens`."""


@dataclass(frozen=True, slots=True)
class Method:
    """What FitConfig.method names: how texts are read, and where k-means starts."""

    reading: Reading
    draw_starts: Callable[[Points, int, np.random.Generator], Points]


METHODS = {
    "cbtm": Method(Reading(), random_starts),
    "content_words": Method(Reading(counts="log"), merged_starts),
    "full_text": Method(Reading(tokens="all", counts="log"), merged_starts),
    # Rare subwords are not weighed up: a vector is the longer, the more its subword means.
    "embedding": Method(Reading(tokens=SUBWORDS, counts="log"), merged_starts),
}
"""What each name means; cbtm is the method of the paper."""


@dataclass(frozen=True)
class Space:
    """The space the clusters lie in, learnt from a corpus: scikit-learn's TF-IDF and truncated SVD.

    With an embedding, texts are TF-weighted sums of the vectors of their subwords, and the SVD is of these sums.
    """

    reading: Reading
    vectorizer: TfidfVectorizer
    svd: TruncatedSVD
    embedding: Embedding | None = None

    def weigh(self, texts: Sequence[str]) -> Any:
        """What the SVD projects, (texts, words) sparse or, of an embedding, (texts, its dimensions)."""
        weights = self.vectorizer.transform(texts)
        return weights if self.embedding is None else normalize(weights @ self.embedding.vectors)

    def embed(self, texts: Sequence[str]) -> Points:
        """Unit vectors of `texts`, (texts, dimensions); zero vectors for texts with no known word."""
        projected: Points = self.svd.transform(self.weigh(texts))
        projected[np.linalg.norm(projected, axis=1) <= ZERO_LENGTH] = 0
        unit: Points = normalize(projected)
        return unit


def learn_space(texts: Sequence[str], settings: FitConfig) -> Space:
    """Learn vocabulary, word weights and dimensions; a corpus smaller than settings.dimensions gets fewer.

    Raises:
        InputError: the corpus is empty, or has fewer than two words of those that settings.method counts, or the
            embedding cannot be read that it needs.
    """
    if not texts:
        raise InputError(f"corpus={settings.corpus} has no prompts. Give a JSONL file with a `prompt` field per line.")
    reading = METHODS[settings.method].reading
    embedding = read_embedding(Path(settings.embedding or "")) if reading.tokens == SUBWORDS else None
    vectorizer = _make_vectorizer(texts, settings, embedding).fit(texts)
    svd = TruncatedSVD(random_state=settings.seed)
    space = Space(reading, vectorizer, svd, embedding)
    weights = space.weigh(texts)
    svd.set_params(n_components=min(settings.dimensions, *weights.shape))
    # scikit-learn also divides by the variance of the corpus, which is 0 where all texts are equal.
    with np.errstate(invalid="ignore", divide="ignore"):
        svd.fit(weights)
    return space


def list_methods(settings: FitConfig) -> list[str]:
    """Names of the methods that can be fitted with these settings: all, but `embedding` only with one."""
    return [name for name, method in METHODS.items() if settings.embedding or method.reading.tokens != SUBWORDS]


def fit(texts: Sequence[str], settings: FitConfig, domains: Sequence[str] | None = None) -> Fitted:
    """Fit a classifier; `domains` labels each text ("" if it has no label) and only describes the result.

    The same texts, settings and library versions give the same classifier.

    Raises:
        InputError: the corpus is empty, has hardly a word, or has fewer different prompts than clusters.
    """
    if 0 < len(texts) < settings.clusters:
        raise InputError(
            f"clusters={settings.clusters}, but corpus={settings.corpus} has only {len(texts)} prompts. "
            "Use a larger corpus or fewer clusters."
        )
    return cluster(learn_space(texts, settings), texts, settings, domains)


def cluster(space: Space, texts: Sequence[str], settings: FitConfig, domains: Sequence[str] | None = None) -> Fitted:
    """Find the clusters of `texts` in the space learnt from them: the second half of `fit`, which takes all of it.

    Raises:
        InputError: there are fewer different prompts than clusters.
    """
    points = space.embed(texts)
    known = points.any(axis=1)
    rng = np.random.default_rng(settings.seed)
    centres = _find_centres(points[known], settings, rng)
    labels = _label(points, centres)
    return Fitted(
        classifier=_fuse(space, centres),
        settings=settings,
        corpus_sha256=_hash_texts(texts),
        clusters=_describe_clusters(labels, _top_terms(space, texts, labels, len(centres)), domains),
        zero_share=1 - float(known.mean()),
        purity=_purity_within(labels, domains),
        embedding_sha256=None if space.embedding is None else space.embedding.sha256,
    )


def fit_to(folder: Path, prompts: Sequence[Prompt], settings: FitConfig) -> Fitted:
    """Fit a classifier to `prompts` and write it as the artefact `folder`.

    Raises:
        InputError: the corpus does not do (see `fit`), or the folder cannot be written.
    """
    texts, domains = [prompt.text for prompt in prompts], [prompt.domain for prompt in prompts]
    fitted = fit(texts, settings, domains if any(domains) else None)
    write_artefact(folder, fitted)
    return fitted


def reference_clusters(space: Space, centres: npt.NDArray[np.floating], texts: Sequence[str]) -> list[int | None]:
    """Clusters as scikit-learn's pipeline gives them, slowly: what `Classifier.classify` must reproduce."""
    return _to_clusters(_label(space.embed(texts), np.asarray(centres, dtype=np.float64)))


def _make_vectorizer(texts: Sequence[str], settings: FitConfig, embedding: Embedding | None) -> TfidfVectorizer:
    """What counts the tokens of a text and weighs them; words by how few of `texts` have them, too."""
    reading = METHODS[settings.method].reading
    split: Callable[[str], list[str]]
    if embedding is not None:
        split = partial(_name_subwords, embedding=embedding)
        vocabulary = list(map(str, range(len(embedding.vectors))))
    else:
        split = FITTED_TOKENS[reading.tokens]
        vocabulary = _choose_vocabulary(texts, split, settings)
    return TfidfVectorizer(
        analyzer=split,
        lowercase=False,  # the analyzer does it, but for the token of numbers
        vocabulary=vocabulary,
        use_idf=embedding is None,
        sublinear_tf=reading.counts == "log",
    )


def _name_subwords(text: str, embedding: Embedding) -> list[str]:
    """Subwords by number, as texts: the vectorizer takes no other tokens."""
    return list(map(str, embedding.subwords.find(text)))


def _choose_vocabulary(texts: Sequence[str], split: Callable[[str], list[str]], settings: FitConfig) -> list[str]:
    """The words that most texts have, in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(split(text)))
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))[: settings.max_vocabulary]
    if len(by_frequency) < MIN_VOCABULARY:
        raise InputError(
            f"corpus={settings.corpus}: {len(by_frequency)} different words, of those that method={settings.method} "
            f"counts, were kept of {len(texts)} prompts (max_vocabulary={settings.max_vocabulary}); at least "
            f"{MIN_VOCABULARY} are needed. Give a corpus with more text."
        )
    return sorted(by_frequency)


def _find_centres(points: Points, settings: FitConfig, rng: np.random.Generator) -> Points:
    starts = METHODS[settings.method].draw_starts(points, settings.clusters, rng)
    if settings.balanced:
        return balanced_centres(points, starts, settings.iterations, rng)
    return plain_centres(points, starts, settings.iterations)


def _label(points: Points, centres: Points) -> Labels:
    return np.where(points.any(axis=1), nearest(points, centres), NO_CLUSTER)


def _to_clusters(labels: Labels) -> list[int | None]:
    return [None if label == NO_CLUSTER else int(label) for label in labels]


def _fuse(space: Space, centres: Points) -> Classifier:
    if space.embedding is not None:
        # Of its own: what another classifier was asked must not make this one look faster.
        vocabulary = space.embedding.subwords.copy()
        rows = space.embedding.vectors @ space.svd.components_.T
    else:
        vocabulary = space.vectorizer.get_feature_names_out().tolist()
        rows = space.vectorizer.idf_[:, None] * space.svd.components_.T
    return Classifier(vocabulary, rows.astype(np.float32), centres.astype(np.float32), space.reading)


def _hash_texts(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _top_terms(space: Space, texts: Sequence[str], labels: Labels, clusters: int) -> list[tuple[str, ...]]:
    """The words whose mean TF-IDF within a cluster exceeds that of the whole corpus most.

    Subwords would say little to a reader; in their place are content words.
    """
    vectorizer = space.vectorizer
    if space.embedding is not None:
        split = FITTED_TOKENS["content"]
        if not any(map(split, texts)):
            return [()] * clusters
        vectorizer = TfidfVectorizer(analyzer=split, lowercase=False).fit(texts)
    weights = vectorizer.transform(texts)
    vocabulary = vectorizer.get_feature_names_out()
    overall = np.asarray(weights.mean(axis=0)).ravel()
    terms: list[tuple[str, ...]] = []
    for cluster in range(clusters):
        members = np.flatnonzero(labels == cluster)
        excess = np.asarray(weights[members].sum(axis=0)).ravel() / max(len(members), 1) - overall
        best = [word for word in np.argsort(-excess, kind="stable")[:NUM_TOP_TERMS] if excess[word] > 0]
        terms.append(tuple(vocabulary[best].tolist()))
    return terms


def _describe_clusters(
    labels: Labels, terms: Sequence[tuple[str, ...]], domains: Sequence[str] | None
) -> tuple[Cluster, ...]:
    clusters = _to_clusters(labels)
    main = {} if domains is None else find_main_domains(clusters, domains)
    described = []
    for number, top_terms in enumerate(terms):
        share, purity = (
            float((labels == number).mean()),
            _purity_within(np.where(labels == number, 0, NO_CLUSTER), domains),
        )
        described.append(Cluster(share=share, top_terms=top_terms, domain=main.get(number), purity=purity))
    return tuple(described)


def _purity_within(labels: Labels, domains: Sequence[str] | None) -> float | None:
    """Purity of the labelled texts that are in a cluster."""
    if domains is None:
        return None
    inside = labels != NO_CLUSTER
    clusters, named = _to_clusters(labels[inside]), list(compress(domains, inside))
    return compute_purity(clusters, named, find_main_domains(clusters, named))
