"""Judges ways of fitting a classifier by labelled prompts that the fits have not seen. Labels never steer a fit.

This module knows no rule of fitting (`fitting`) and no formula (`quality`); the clock is an argument.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from erhpc.config import FitConfig
from erhpc.corpus.prompts import Prompt
from erhpc.errors import InputError
from erhpc.routing.artefact import Fitted
from erhpc.routing.fitting import cluster, learn_space, list_methods
from erhpc.routing.quality import compute_entropy_bits, compute_nmi, compute_purity


@dataclass(frozen=True, slots=True)
class Quality:
    """What one fit makes of prompts it has not seen."""

    purity: float
    """Share of the labelled prompts whose domain is the commonest of the fitted prompts of their cluster; a prompt
    with no known word counts as wrong."""
    nmi: float
    """Normalised mutual information of clusters and domains; prompts with no known word form a cluster."""
    shares: tuple[float, ...]
    """(clusters,) share of all prompts that go to each cluster."""
    entropy_bits: float
    """Entropy of these shares; log2(clusters) where all are equal."""
    zero_share: float
    """Share of all prompts with no known word; with the shares of the clusters it makes 1."""
    classify_us: float
    """Time to classify one prompt, mean, in microseconds."""
    classify_p99_us: float
    """The same, 99th percentile."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One way of fitting, and the quality of its fits; one per seed."""

    method: str
    balanced: bool
    qualities: tuple[Quality, ...]


def compare_methods(
    prompts: Sequence[Prompt],
    settings: FitConfig,
    *,
    clock: Callable[[], int],
    unseen: Sequence[Prompt] | None = None,
) -> list[Trial]:
    """Fit by every method that the settings allow, plain and balanced, settings.quality_fits times, and judge each fit.

    Each seed has a split of its own, the same for all methods: fitted on 1 - settings.held_out of the prompts, judged
    on the others. With `unseen`, all prompts are fitted and those are judged. `clock` counts nanoseconds.

    Raises:
        InputError: prompts to fit or to judge have no domains, or too few are left to fit.
    """
    qualities: dict[tuple[str, bool], list[Quality]] = {}
    for seed in range(settings.seed, settings.seed + settings.quality_fits):
        fitted, judged = (prompts, unseen) if unseen is not None else hold_out(prompts, settings.held_out, seed)
        _check_labels(fitted, judged)
        for found in _fit_all(fitted, replace(settings, seed=seed)):
            key = found.settings.method, found.settings.balanced
            qualities.setdefault(key, []).append(measure_quality(found, judged, clock))
    return [Trial(*key, tuple(measured)) for key, measured in qualities.items()]


def hold_out(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split prompts at random into those to fit and, one at least, those to judge: `share` of them."""
    shuffled = list(prompts)
    random.Random(seed).shuffle(shuffled)
    held_out = max(round(share * len(prompts)), 1)
    return shuffled[held_out:], shuffled[:held_out]


def measure_quality(fitted: Fitted, prompts: Sequence[Prompt], clock: Callable[[], int]) -> Quality:
    """Judge a fit by labelled prompts; `clock` counts nanoseconds.

    Raises:
        InputError: no prompt has a domain.
    """
    clusters, took_us = _classify_all(fitted, prompts, clock)
    domains = [prompt.domain for prompt in prompts]
    main = {number: found.domain for number, found in enumerate(fitted.clusters) if found.domain is not None}
    purity, nmi = compute_purity(clusters, domains, main), compute_nmi(clusters, domains)
    if purity is None or nmi is None:
        raise InputError("No prompt to judge the fit by has a domain. Give prompts with a `domain` field.")
    shares = tuple(clusters.count(number) / len(prompts) for number in range(fitted.classifier.num_clusters))
    return Quality(
        purity=purity,
        nmi=nmi,
        shares=shares,
        entropy_bits=compute_entropy_bits(shares),
        zero_share=clusters.count(None) / len(prompts),
        classify_us=float(np.mean(took_us)),
        classify_p99_us=float(np.percentile(took_us, 99)),
    )


def _fit_all(prompts: Sequence[Prompt], settings: FitConfig) -> Iterator[Fitted]:
    """Fits of one seed: each method, plain and balanced in the same space."""
    texts, domains = [prompt.text for prompt in prompts], [prompt.domain for prompt in prompts]
    for method in list_methods(settings):
        chosen = replace(settings, method=method)
        space = learn_space(texts, chosen)
        for balanced in (False, True):
            yield cluster(space, texts, replace(chosen, balanced=balanced), domains)


def _classify_all(
    fitted: Fitted, prompts: Sequence[Prompt], clock: Callable[[], int]
) -> tuple[list[int | None], list[float]]:
    """Cluster of each prompt, and how long it took to find, in microseconds."""
    clusters: list[int | None] = []
    took_us: list[float] = []
    for prompt in prompts:
        began_ns = clock()
        clusters.append(fitted.classifier.classify(prompt.text).cluster)
        took_us.append((clock() - began_ns) / 1000)
    return clusters, took_us


def _check_labels(fitted: Sequence[Prompt], judged: Sequence[Prompt]) -> None:
    for use, prompts in (("fit", fitted), ("judge the fit by", judged)):
        if not any(prompt.domain for prompt in prompts):
            raise InputError(f"None of the {len(prompts)} prompts to {use} has a domain. Give a `domain` field.")
