"""How the gateway picks an expert for a prompt, its limits, and how a classifier is fitted."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.config.words import DEMO_CORPUS
from erhpc.errors import require_choice, require_range

POLICIES = ("cluster", "round_robin", "random", "least_loaded", "none")
ROUTED_TEXTS = ("last_user", "all")
METHODS = ("cbtm", "content_words", "full_text")


@dataclass
class RouterConfig:
    """How the gateway picks an expert for a prompt."""

    policy: str = "cluster"
    """cluster (c-BTM classifier), round_robin, random, least_loaded, or none: users talk to the one replica."""
    artefact: str | None = None
    """Directory written by `python -m erhpc.fit`; None: fitted on `corpus` before the run is submitted."""
    corpus: str = DEMO_CORPUS
    """JSONL file to fit on when artefact is None; `demo` is the one erhpc ships."""
    method: str = "cbtm"
    """How a classifier is fitted when artefact is None: see FitConfig.method."""
    balanced: bool = False
    """Fit balanced k-means instead of plain."""
    dimensions: int = 100
    """Dimensions of the truncated SVD when fitting; a small corpus supports fewer."""
    default_expert: str | None = None
    """Expert for prompts with no known word; None: the first one."""
    text: str = "last_user"
    """Which part of a chat is classified: last_user turn, or all messages."""
    text_limit_chars: int = 8192
    """Longest text that is classified; the rest is ignored for routing only."""

    def __post_init__(self) -> None:
        require_choice("router.policy", self.policy, POLICIES)
        require_choice("router.text", self.text, ROUTED_TEXTS)
        require_choice("router.method", self.method, METHODS)
        require_range("router.text_limit_chars", self.text_limit_chars, 1)
        require_range("router.dimensions", self.dimensions, 1)


@dataclass
class GatewayConfig:
    """Limits of the gateway process."""

    max_body_bytes: int = 8 * 1024 * 1024
    """Longest request body; longer ones are answered 413."""
    connect_timeout_s: float = 5.0
    """Patience for a TCP connection to a replica; then the request is answered 502."""
    idle_timeout_s: float = 600.0
    """Longest silence of a replica within one answer; then the answer is broken off with an error."""

    def __post_init__(self) -> None:
        require_range("gateway.max_body_bytes", self.max_body_bytes, 1024)
        require_range("gateway.connect_timeout_s", self.connect_timeout_s, 0.01)
        require_range("gateway.idle_timeout_s", self.idle_timeout_s, 0.1)


@dataclass
class FitConfig:
    """What `python -m erhpc.fit` is told."""

    corpus: str = DEMO_CORPUS
    """JSONL file with a `prompt` field per line; `demo` is the corpus erhpc ships."""
    clusters: int = 8
    method: str = "cbtm"
    """cbtm: the paper's reference; content words, counted plainly, k-means from random starts. content_words: the same
    words, counted sub-linearly, k-means from merged small clusters. full_text: likewise, and stop words, numbers and
    punctuation count too: better where the form of prompts tells their domain, worse where all are written alike."""
    balanced: bool = False
    """Balanced k-means: every cluster gets the same number of training prompts."""
    dimensions: int = 100
    """Dimensions of the truncated SVD: about 16 for some hundred prompts, 64 for some thousand, 100 in c-BTM."""
    max_vocabulary: int = 50000
    """Most words kept, by document frequency; bounds the artefact's size and the gateway's memory."""
    iterations: int = 20
    seed: int = 0
    output: str = "runs/router"
    """Directory that receives the artefact."""
    replicas: int | None = None
    """Replicas to share out among the experts, at least one each; None: suggest nothing."""
    quality_fits: int = 5
    """Fits per method whose quality on held-out prompts is reported, with the seeds `seed`, `seed` + 1, ...; 0: no
    report. The corpus must name domains."""
    held_out: float = 0.2
    """Share of the corpus that these fits do not see and are judged on; drawn anew for each seed."""
    test_corpus: str | None = None
    """JSONL file with domains to judge them on instead; they then see all of the corpus. None: hold out."""

    def __post_init__(self) -> None:
        require_choice("method", self.method, METHODS)
        for name in ("clusters", "dimensions", "max_vocabulary", "iterations"):
            require_range(name, getattr(self, name), 1)
        require_range("seed", self.seed, 0)
        require_range("quality_fits", self.quality_fits, 0)
        require_range("held_out", self.held_out, 0.01, 0.9)
        if self.replicas is not None:
            require_range("replicas", self.replicas, self.clusters)
