"""How the gateway picks an expert for a prompt, its limits, and how a classifier is fitted."""

from __future__ import annotations

from dataclasses import dataclass

from erhpc.config.words import DEMO_CORPUS
from erhpc.errors import ConfigError, require_choice, require_range

RULES = ("round_robin", "random", "least_loaded", "power_of_two", "prefix_affinity", "session")
POLICIES = ("cluster", *RULES, "none")
OVERFLOWS = ("none", "wait", "next_nearest")
RELAYS = ("fast", "plain")
DATA_PATHS = ("relay", "redirect")
ROUTED_TEXTS = ("last_user", "all")
METHODS = ("cbtm", "content_words", "full_text", "embedding")


@dataclass
class RouterConfig:
    """How the gateway picks an expert for a prompt, and one of its replicas."""

    policy: str = "cluster"
    """Which expert: cluster (c-BTM classifier), one of RULES, or none: users talk to the one replica."""
    replica_policy: str = "least_loaded"
    """Which replica of the expert, also where a request names the expert: one of RULES.

    round_robin, random; least_loaded: fewest requests in flight; power_of_two: the less loaded of two drawn at random;
    prefix_affinity: by the beginning of the prompt, unless too loaded; session: by the header x-session-id, without it
    by the field `user`. A request without a prefix or session goes to the least loaded.
    """
    temperature: float = 0.0
    """cluster only: T > 0 draws the expert by softmax(-d^2/T), d its distance (c-BTM: 0.1); 0 takes the nearest."""
    overflow: str = "none"
    """cluster only: what becomes of a prompt whose expert is full or down.

    none: it goes there all the same, or is answered 503 if the expert is down; wait: it waits for room, up to
    gateway.queue_timeout_s, and is answered 503 if the expert is down when it comes; next_nearest: to the nearest
    expert with room.
    """
    overflow_limit: int = 256
    """Requests in flight per live replica from which an expert is full; max_num_seqs of the experts is a good value."""
    affinity_factor: float = 1.5
    """prefix_affinity only: a replica is too loaded at factor x mean + slack requests in flight."""
    affinity_slack: int = 8
    """prefix_affinity only: how far above factor x mean a replica may be loaded, in requests."""
    prefix_limit_chars: int = 1024
    """prefix_affinity only: how many characters of a prompt are its prefix; more than what all prompts share.

    Of a chat, at most the messages up to the first user turn are, so that a conversation keeps its prefix.
    """
    artefact: str | None = None
    """Directory written by `python -m erhpc.fit`; None: fitted on `corpus` before the run is submitted."""
    corpus: str = DEMO_CORPUS
    """JSONL file to fit on when artefact is None; `demo` is the one erhpc ships."""
    method: str = "cbtm"
    """How a classifier is fitted when artefact is None: see FitConfig.method."""
    embedding: str | None = None
    """Directory of the embedding that method=embedding fits with: see FitConfig.embedding. An artefact needs none."""
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
        require_choice("router.replica_policy", self.replica_policy, RULES)
        require_choice("router.overflow", self.overflow, OVERFLOWS)
        require_choice("router.text", self.text, ROUTED_TEXTS)
        require_choice("router.method", self.method, METHODS)
        for name in ("text_limit_chars", "prefix_limit_chars", "dimensions", "overflow_limit", "affinity_slack"):
            require_range(f"router.{name}", getattr(self, name), 1)
        require_range("router.affinity_factor", self.affinity_factor, 1, 1000)
        require_range("router.temperature", self.temperature, 0, 1000)
        self._check_cluster_only()
        if self.needs_embedding:
            _require_embedding("router.", self.method, self.embedding)

    @property
    def needs_embedding(self) -> bool:
        """Whether a classifier has to be fitted with an embedding before the run."""
        return self.policy == "cluster" and self.artefact is None and self.method == "embedding"

    def _check_cluster_only(self) -> None:
        for name, unset in (("overflow", "none"), ("temperature", 0)):
            if self.policy != "cluster" and getattr(self, name) != unset:
                raise ConfigError(
                    f"router.{name}={getattr(self, name)} needs router.policy=cluster, which knows how near experts "
                    f"are; router.policy={self.policy} does not. Leave it at {unset}, or choose cluster."
                )


@dataclass
class GatewayConfig:
    """Limits of the gateway process."""

    processes: int = 1
    """Processes that share the port; each takes a core. One more watches over them."""
    relay: str = "fast"
    """fast: requests for answers pass through erhpc's own connections; plain: all on aiohttp, the reference."""
    data_path: str = "relay"
    """relay: answers pass through the gateway; redirect: clients are sent to the replica (307) and ask it themselves.

    With redirect, the gateway costs nothing per token, but sees no answer: policies that go by load then take turns,
    overflow sees only who is down, and max_in_flight bounds the gateway's own work, not the replicas'.
    """
    max_in_flight: int | None = None
    """Requests answered at once; the next ones wait. None: as many as the open files of the process allow."""
    max_queued: int = 1024
    """Requests that wait for their turn, with their bodies unread; more are answered 503."""
    queue_timeout_s: float = 60.0
    """Longest wait for a turn; then the request is answered 503."""
    keys: str | None = None
    """File of lines `NAME KEY`: users beside the run's own key. It is read again when it changes."""
    max_in_flight_per_key: int | None = None
    """Requests of one NAME of `keys` answered at once; more are answered 429. None: no limit."""
    tls_certificate: str | None = None
    """PEM file with the certificate chain; the gateway then speaks HTTPS on its port. None: HTTP."""
    tls_key: str | None = None
    """PEM file with the certificate's private key; None: it is in tls_certificate."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Longest request body; longer ones are answered 413."""
    connect_timeout_s: float = 5.0
    """Patience for a TCP connection to a replica, within half a second; then the request is answered 502."""
    idle_timeout_s: float = 600.0
    """Longest silence of a replica within one answer; then the answer is broken off with an error."""
    stall_timeout_s: float = 300.0
    """How long a client may read nothing of what waits for it; then its connection is cut."""

    def __post_init__(self) -> None:
        require_range("gateway.processes", self.processes, 1, 256)
        require_choice("gateway.relay", self.relay, RELAYS)
        require_choice("gateway.data_path", self.data_path, DATA_PATHS)
        if self.max_in_flight is not None:
            require_range("gateway.max_in_flight", self.max_in_flight, 1)
        if self.max_in_flight_per_key is not None:
            require_range("gateway.max_in_flight_per_key", self.max_in_flight_per_key, 1)
            if self.keys is None:
                raise ConfigError(
                    f"gateway.max_in_flight_per_key={self.max_in_flight_per_key} needs gateway.keys: the run's own key "
                    "has no limit. Give a file of lines `NAME KEY`, or leave it at null."
                )
        if self.tls_key is not None and self.tls_certificate is None:
            raise ConfigError(
                f"gateway.tls_key={self.tls_key} needs gateway.tls_certificate. Give both PEM files, or neither."
            )
        require_range("gateway.max_queued", self.max_queued, 0)
        require_range("gateway.queue_timeout_s", self.queue_timeout_s, 0.01)
        require_range("gateway.max_body_bytes", self.max_body_bytes, 1024)
        require_range("gateway.connect_timeout_s", self.connect_timeout_s, 0.01)
        require_range("gateway.idle_timeout_s", self.idle_timeout_s, 0.1)
        require_range("gateway.stall_timeout_s", self.stall_timeout_s, 0.1, 1_000_000)


@dataclass
class FitConfig:
    """What `python -m erhpc.fit` is told."""

    corpus: str = DEMO_CORPUS
    """JSONL file with a `prompt` field per line; `demo` is the corpus erhpc ships."""
    clusters: int = 8
    method: str = "cbtm"
    """cbtm: the paper's reference; content words, counted plainly, k-means from random starts. content_words: the same
    words, counted sub-linearly, k-means from merged small clusters. full_text: likewise, and stop words, numbers and
    punctuation count too: better where the form of prompts tells their domain, worse where all are written alike.
    embedding: subwords, which mean what `embedding` says, not what the corpus teaches; counts and starts likewise."""
    embedding: str | None = None
    """Directory with tokenizer.json and a vector per subword in *.safetensors: of model2vec, wordllama, or a
    transformer, of which only the input embeddings are used. None: method=embedding cannot be fitted."""
    balanced: bool = False
    """Balanced k-means: every cluster gets the same number of training prompts."""
    dimensions: int = 100
    """Dimensions of the truncated SVD: about 16 for some hundred prompts, 64 for some thousand, 100 in c-BTM."""
    max_vocabulary: int = 50000
    """Most words kept, by document frequency; bounds the artefact's size and the gateway's memory. Of an embedding all
    subwords are kept."""
    iterations: int = 20
    seed: int = 0
    output: str = "runs/router"
    """Directory that receives the artefact."""
    replicas: int | None = None
    """Replicas to share out among the experts, at least one each; None: twice as many as clusters."""
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
        _require_embedding("", self.method, self.embedding)

    @property
    def num_replicas(self) -> int:
        """How many replicas are shared out."""
        return 2 * self.clusters if self.replicas is None else self.replicas


def _require_embedding(group: str, method: str, embedding: str | None) -> None:
    if method == "embedding" and not embedding:
        raise ConfigError(
            f"{group}method=embedding needs {group}embedding=DIRECTORY with tokenizer.json and *.safetensors, such as "
            f"`make embedding` fetches. Or choose another {group}method: {', '.join(METHODS[:-1])}."
        )
