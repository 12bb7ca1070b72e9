"""Fits the c-BTM classifier to a corpus; the only home of scikit-learn.

This module knows no experts and no gateway: what it returns is served by `classifier` and stored by `artefact`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from erhpc.routing.clustering import Labels, Points, balanced_centres, nearest, plain_centres
from erhpc.routing.features import content_words

NUM_TOP_TERMS = 8
MIN_VOCABULARY = 2
"""Fewest words that scikit-learn projects."""
NO_CLUSTER = -1
"""Label of a text with no known word."""

content_words_of = partial(content_words, stop_words=ENGLISH_STOP_WORDS)


@dataclass(frozen=True)
class Space:
    """The space the clusters lie in, learnt from a corpus: scikit-learn's TF-IDF and truncated SVD."""

    vectorizer: TfidfVectorizer
    svd: TruncatedSVD

    def embed(self, texts: Sequence[str]) -> Points:
        """Unit vectors of `texts`, (texts, dimensions); zero vectors for texts with no known word."""
        projected: Points = self.svd.transform(self.vectorizer.transform(texts))
        projected[np.linalg.norm(projected, axis=1) <= ZERO_LENGTH] = 0
        unit: Points = normalize(projected)
        return unit


def learn_space(texts: Sequence[str], settings: FitConfig) -> Space:
    """Learn vocabulary, word weights and dimensions; a corpus smaller than settings.dimensions gets fewer.

    Raises:
        InputError: the corpus is empty, or has fewer than two words that are neither stop words nor numbers.
    """
    if not texts:
        raise InputError(f"corpus={settings.corpus} has no prompts. Give a JSONL file with a `prompt` field per line.")
    vocabulary = _choose_vocabulary(texts, settings)
    vectorizer = TfidfVectorizer(analyzer=content_words_of, vocabulary=vocabulary)
    weights = vectorizer.fit_transform(texts)
    svd = TruncatedSVD(n_components=min(settings.dimensions, *weights.shape), random_state=settings.seed)
    # scikit-learn also divides by the variance of the corpus, which is 0 where all texts are equal.
    with np.errstate(invalid="ignore", divide="ignore"):
        svd.fit(weights)
    return Space(vectorizer, svd)


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
    space = learn_space(texts, settings)
    points = space.embed(texts)
    known = points.any(axis=1)
    find_centres = balanced_centres if settings.balanced else plain_centres
    rng = np.random.default_rng(settings.seed)
    centres = find_centres(points[known], settings.clusters, settings.iterations, rng)
    labels = _label(points, centres)
    return Fitted(
        classifier=_fuse(space, centres),
        settings=settings,
        corpus_sha256=_hash_texts(texts),
        clusters=_describe_clusters(labels, _top_terms(space, texts, labels, len(centres)), domains),
        zero_share=1 - float(known.mean()),
        purity=_purity(labels, domains),
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
    labels = _label(space.embed(texts), np.asarray(centres, dtype=np.float64))
    return [None if label == NO_CLUSTER else int(label) for label in labels]


def _choose_vocabulary(texts: Sequence[str], settings: FitConfig) -> list[str]:
    """The words that most texts have, in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(content_words_of(text)))
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))[: settings.max_vocabulary]
    if len(by_frequency) < MIN_VOCABULARY:
        raise InputError(
            f"corpus={settings.corpus}: {len(by_frequency)} different words, neither English stop words nor numbers, "
            f"were kept of {len(texts)} prompts (max_vocabulary={settings.max_vocabulary}); at least {MIN_VOCABULARY} "
            "are needed. Give a corpus with more text."
        )
    return sorted(by_frequency)


def _label(points: Points, centres: Points) -> Labels:
    return np.where(points.any(axis=1), nearest(points, centres), NO_CLUSTER)


def _fuse(space: Space, centres: Points) -> Classifier:
    rows = space.vectorizer.idf_[:, None] * space.svd.components_.T
    vocabulary = space.vectorizer.get_feature_names_out().tolist()
    return Classifier(vocabulary, rows.astype(np.float32), centres.astype(np.float32))


def _hash_texts(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _top_terms(space: Space, texts: Sequence[str], labels: Labels, clusters: int) -> list[tuple[str, ...]]:
    """The words whose mean TF-IDF within a cluster exceeds that of the whole corpus most."""
    weights = space.vectorizer.transform(texts)
    vocabulary = space.vectorizer.get_feature_names_out()
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
    described = []
    for cluster, top_terms in enumerate(terms):
        share, counts = float((labels == cluster).mean()), _domains_in(labels == cluster, domains)
        domain = max(sorted(counts), key=counts.__getitem__, default=None)
        purity = None if domain is None else counts[domain] / counts.total()
        described.append(Cluster(share=share, top_terms=top_terms, domain=domain, purity=purity))
    return tuple(described)


def _purity(labels: Labels, domains: Sequence[str] | None) -> float | None:
    """Share of the labelled texts in a cluster whose domain is the commonest of their cluster."""
    found = [_domains_in(labels == cluster, domains) for cluster in np.unique(labels[labels != NO_CLUSTER])]
    total = sum(counts.total() for counts in found)
    return sum(max(counts.values(), default=0) for counts in found) / total if total else None


def _domains_in(members: npt.NDArray[np.bool_], domains: Sequence[str] | None) -> Counter[str]:
    if domains is None:
        return Counter()
    return Counter(domain for domain, inside in zip(domains, members, strict=True) if inside and domain)
