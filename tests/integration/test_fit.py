"""The verb `fit` on the shipped corpus, and the served classifier against scikit-learn on 1,000 prompts."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from erhpc.config import DEMO_CORPUS, FitConfig
from erhpc.corpus.prompts import read_prompts
from erhpc.routing.artefact import read_artefact, read_metadata
from erhpc.routing.fitting import fit, learn_space, reference_clusters


@pytest.fixture(scope="module")
def prompts():
    return read_prompts(DEMO_CORPUS)


@pytest.fixture(scope="module")
def thousand_texts(prompts):
    """The shipped prompts, and texts that mix halves of two of them: nearer to the borders between clusters."""
    rng, texts = random.Random(0), [prompt.text for prompt in prompts]
    while len(texts) < 1000:
        first, second = (rng.choice(prompts).text.split() for _ in range(2))
        texts.append(" ".join(first[: len(first) // 2] + second[len(second) // 2 :]))
    return texts


def run_fit(folder, *arguments):
    command = [sys.executable, "-m", "erhpc.fit", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_served_classifier_agrees_with_scikit_learn_on_1000_prompts(prompts, thousand_texts, balanced):
    settings, texts = FitConfig(balanced=balanced), [prompt.text for prompt in prompts]
    classifier, space = fit(texts, settings).classifier, learn_space(texts, settings)
    served = [classifier.classify(text).cluster for text in thousand_texts]
    assert len(served) == 1000
    assert len(set(served)) == settings.clusters
    assert served == reference_clusters(space, classifier.centres, thousand_texts)


def test_a_balanced_fit_leaves_no_cluster_nearly_empty(prompts):
    fitted = fit([prompt.text for prompt in prompts], FitConfig(balanced=True))
    assert min(cluster.share for cluster in fitted.clusters) > 0.5 / 8


def test_fit_writes_an_artefact_and_shows_its_clusters(tmp_path):
    done = run_fit(tmp_path, "clusters=4", "balanced=true", "output=made/router")
    assert (done.returncode, done.stderr) == (0, "")
    metadata = read_metadata(tmp_path / "made" / "router")
    assert read_artefact(tmp_path / "made" / "router").num_clusters == 4
    assert metadata.settings["balanced"] is True
    assert metadata.clusters[0].top_terms[0] in done.stdout
    assert f"{metadata.clusters[3].share:.1%}" in done.stdout
    assert f"{metadata.purity:.1%}" in done.stdout
    assert "router.artefact=made/router" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_fit_reads_a_corpus_without_domains_and_shows_none(tmp_path):
    lines = [json.dumps({"prompt": text}) for text in ("apple pear", "pear plum [x]", "engine valve", "valve gear")]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    done = run_fit(tmp_path, "corpus=mine.jsonl", "clusters=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "purity" not in done.stdout
    assert read_metadata(tmp_path / "runs" / "router").purity is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("corpus=absent.jsonl",), "prompts file absent.jsonl"),
        (("clusters=5000",), "InputError: clusters=5000, but corpus=demo has only"),
        (("clusters=0",), "ConfigError: clusters=0 is out of range"),
    ],
)
def test_bad_input_ends_with_a_message_and_writes_nothing(tmp_path, arguments, message):
    done = run_fit(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_serving_a_classifier_does_not_load_scikit_learn():
    code = "import sys, erhpc.routing.artefact, erhpc.routing.classifier; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
