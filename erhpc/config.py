"""The schema of a configuration: plain dataclasses, one per Hydra group, validated when built.

This module knows neither Hydra nor OmegaConf (`erhpc.composition` does) and reads no file. Values come from
`conf/`; a field's docstring says its unit and what a wrong value costs. Everyone may import it. Groups that occur
in several places have `check(path)`, called by what holds them, so that a message names the whole key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erhpc.errors import ConfigError, require_choice, require_range

ENGINE_KINDS = ("auto", "vllm", "emulated")
DEVICES = ("cuda", "cpu")
SYNTHETIC_WEIGHTS = ("dummy", "random")
CLUSTER_KINDS = ("auto", "local", "slurm")
POLICIES = ("cluster", "round_robin", "random", "least_loaded", "none")
ROUTED_TEXTS = ("last_user", "all")
PLACEMENTS = ("packed", "spread", "one_per_node")
PROMPT_FORMATS = ("jsonl", "sharegpt", "synthetic")
APIS = ("chat", "completions")
QUANTIZATIONS = ("awq", "gptq", "fp8")
DTYPES = ("bfloat16", "float16", "float32")
LENGTH_KINDS = ("fixed", "uniform", "lognormal")
DEMO_CORPUS = "demo"
"""The value of a corpus or prompts field that means the prompts erhpc ships."""
AUTO_MODEL = "auto"
"""The model name that lets the router choose; no expert may bear it."""
MAX_USERS = 1_000_000


@dataclass
class ArchitectureConfig:
    """The shape of a Llama-style decoder, in the words of its Hugging Face config.json."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_kv_heads: int
    vocab_size: int
    head_dim: int | None = None
    """None: hidden_size / num_attention_heads."""
    tie_word_embeddings: bool = False
    rope_theta: float = 500000.0

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if self.head_dim is None and heads > 0 and self.hidden_size % heads == 0:
            self.head_dim = self.hidden_size // heads

    def check(self, path: str) -> None:
        """Raise ConfigError, naming keys under `path`, if the shape is none of a model."""
        for name in ("num_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_kv_heads"):
            require_range(f"{path}.{name}", getattr(self, name), 1)
        require_range(f"{path}.vocab_size", self.vocab_size, 300)
        heads = f"num_attention_heads={self.num_attention_heads}"
        if self.head_dim is None:
            raise ConfigError(f"{path}.hidden_size={self.hidden_size} is no multiple of {heads}. Set {path}.head_dim.")
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(f"{path}.num_kv_heads={self.num_kv_heads} does not divide {heads}.")


@dataclass
class ExpertConfig:
    """One expert: a model and how each replica of it is served."""

    model: str
    """Hugging Face id; a label in plans and results. Nothing is downloaded."""
    architecture: ArchitectureConfig
    weights: str | None = None
    """Directory with config.json, tokenizer and weights; None: a synthetic directory of the same shape."""
    dtype: str = "bfloat16"
    quantization: str | None = None
    tensor_parallel: int = 1
    """GPUs per replica; must divide the attention heads."""
    replicas: int = 1
    max_model_len: int = 8192
    """Longest prompt plus answer, in tokens; at least one such sequence must fit the KV cache."""
    max_num_seqs: int = 256
    """Most sequences in one step; vLLM's default depends on the GPU, so it is pinned here."""
    max_num_batched_tokens: int = 2048
    """Token budget of one step (chunked prefill)."""
    gpu_memory_utilization: float = 0.9
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Extra flags of the engine, e.g. {stream-interval: 4}; true adds a bare flag, false and null add none."""

    def check(self, path: str) -> None:
        """Raise ConfigError, naming keys under `path`, if a value is out of range."""
        self.architecture.check(f"{path}.architecture")
        require_choice(f"{path}.dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            require_choice(f"{path}.quantization", self.quantization, QUANTIZATIONS)
        for name in ("tensor_parallel", "replicas", "max_num_seqs"):
            require_range(f"{path}.{name}", getattr(self, name), 1)
        require_range(f"{path}.max_model_len", self.max_model_len, 16)
        require_range(f"{path}.max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs)
        require_range(f"{path}.gpu_memory_utilization", self.gpu_memory_utilization, 0.05, 0.99)


@dataclass
class EngineConfig:
    """What serves tokens: real vLLM, or an emulated expert."""

    kind: str = "auto"
    """auto: vLLM where GPUs are, emulated elsewhere (said aloud); vllm; emulated."""
    device: str = "cuda"
    """cuda or cpu (vLLM only)."""
    python: str | None = None
    """Interpreter of the vLLM environment; None: $ERHPC_VLLM_PYTHON, else the one `make vllm-env` builds."""
    synthetic_weights: str = "dummy"
    """dummy: no weight file, `--load-format dummy`; random: a safetensors file (small models)."""
    ready_timeout_s: float = 600.0
    """Patience for a replica to become ready, on top of the time its weights take at load_rate_gb_per_s."""
    load_rate_gb_per_s: float = 1.0
    """Slowest rate at which weights may be expected to load per node, in GB/s."""
    prefix_caching: bool = False
    """Let vLLM answer repeated prompts from its cache: off, or TTFT at many users measures the cache."""
    parallel_loads: int = 4
    """How many replicas of a node load at the same time."""
    stop_timeout_s: float = 10.0
    """Time between TERM and KILL of a replica's process group."""
    environment: dict[str, str] = field(default_factory=dict)
    """Extra environment variables of every replica."""

    def __post_init__(self) -> None:
        require_choice("engine.kind", self.kind, ENGINE_KINDS)
        require_choice("engine.device", self.device, DEVICES)
        require_choice("engine.synthetic_weights", self.synthetic_weights, SYNTHETIC_WEIGHTS)
        require_range("engine.ready_timeout_s", self.ready_timeout_s, 1)
        require_range("engine.load_rate_gb_per_s", self.load_rate_gb_per_s, 0.001)
        require_range("engine.parallel_loads", self.parallel_loads, 1)
        require_range("engine.stop_timeout_s", self.stop_timeout_s, 0.1)


@dataclass
class RouterConfig:
    """How the gateway picks an expert for a prompt."""

    policy: str = "cluster"
    """cluster (c-BTM classifier), round_robin, random, least_loaded, or none: users talk to the one replica."""
    artefact: str | None = None
    """Directory written by `python -m erhpc.fit`; None: fitted on `corpus` before the run is submitted."""
    corpus: str = DEMO_CORPUS
    """JSONL file to fit on when artefact is None; `demo` is the one erhpc ships."""
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
class PlacementConfig:
    """Which node each replica goes to."""

    strategy: str = "packed"
    """packed: fill a node before the next; spread: emptiest node first; one_per_node: one replica each."""
    nodes: int | None = None
    """Nodes to use; None: as few as the strategy needs."""

    def __post_init__(self) -> None:
        require_choice("placement.strategy", self.strategy, PLACEMENTS)
        if self.nodes is not None:
            require_range("placement.nodes", self.nodes, 1)


@dataclass
class LengthConfig:
    """A distribution of token counts."""

    kind: str = "fixed"
    """fixed (mean), uniform (low..high) or lognormal (mean and sigma, clipped to low..high)."""
    mean: float = 64.0
    sigma: float = 0.5
    """Standard deviation of the logarithm (lognormal only)."""
    low: int = 1
    high: int = 4096

    def check(self, path: str) -> None:
        """Raise ConfigError, naming keys under `path`, if a value is out of range."""
        require_choice(f"{path}.kind", self.kind, LENGTH_KINDS)
        require_range(f"{path}.low", self.low, 1)
        require_range(f"{path}.high", self.high, self.low)
        require_range(f"{path}.mean", self.mean, self.low, self.high)
        require_range(f"{path}.sigma", self.sigma, 0)


@dataclass
class WorkloadConfig:
    """What the users ask, how many of them there are, and how long each level lasts."""

    users: list[int] = field(default_factory=lambda: [1, 10, 100, 1000])
    """Concurrent users, one level each (closed loop)."""
    prompts: str = DEMO_CORPUS
    """File of prompts; `demo` is the corpus erhpc ships. Unused when format is synthetic."""
    format: str = "jsonl"
    """jsonl (a `prompt` field per line), sharegpt (a JSON list of conversations) or synthetic texts."""
    api: str = "chat"
    """chat (/v1/chat/completions) or completions (/v1/completions)."""
    input_tokens: LengthConfig = field(default_factory=lambda: LengthConfig(mean=256))
    """Length of synthetic prompts."""
    output_tokens: LengthConfig = field(default_factory=lambda: LengthConfig(mean=64))
    """max_tokens of each request; with ignore_eos the answer has exactly that many."""
    ignore_eos: bool = True
    temperature: float = 0.0
    think_time_s: float = 0.0
    """Pause of a user between an answer and the next request."""
    warmup_s: float = 5.0
    """At least this long, and until every user has finished a request (at most warmup_max_s)."""
    warmup_max_s: float = 60.0
    measure_s: float = 30.0
    """Length of the measuring window of each level."""
    drain_s: float = 60.0
    """How long requests in flight at the end of the window may take to finish; then they are cut."""
    timeout_s: float = 600.0
    """Longest time of one request; longer ones are recorded as failed."""

    def __post_init__(self) -> None:
        if not self.users or any(not 1 <= count <= MAX_USERS for count in self.users):
            raise ConfigError(f"workload.users={self.users} must be numbers from 1 to {MAX_USERS}, e.g. [1,10,100].")
        self.input_tokens.check("workload.input_tokens")
        self.output_tokens.check("workload.output_tokens")
        require_choice("workload.format", self.format, PROMPT_FORMATS)
        require_choice("workload.api", self.api, APIS)
        for name in ("think_time_s", "warmup_s", "drain_s", "temperature"):
            require_range(f"workload.{name}", getattr(self, name), 0)
        require_range("workload.warmup_max_s", self.warmup_max_s, self.warmup_s)
        require_range("workload.measure_s", self.measure_s, 0.1)
        require_range("workload.timeout_s", self.timeout_s, 0.1)


@dataclass
class ClusterConfig:
    """The site: the only group that knows nodes, GPUs, partitions and paths."""

    kind: str = "auto"
    """auto: Slurm where `sbatch` answers, else local; local; slurm."""
    gpu: str = "a100_80"
    """GPU type of the nodes (a name of erhpc.plan.gpus): memory for the fit, timing for emulation."""
    gpus_per_node: int = 8
    cpus_per_node: int | None = None
    """CPUs per node to ask Slurm for; None: 4 per planned GPU or process, whichever is more."""
    max_nodes: int = 1
    """Most nodes a run may take."""
    request_gpus: bool | None = None
    """Ask Slurm for GPUs; None: for vLLM yes, for emulated experts no (they would idle)."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    exclusive: bool = False
    time_limit_min: int | None = None
    """Longest walltime the site allows, in minutes: the job asks for no more, and a run expected to take longer is
    refused."""
    signal_delay_s: int = 90
    """How long before the time limit Slurm warns the job, so that it can save and stop."""
    ports: list[int] = field(default_factory=lambda: [20000, 32000])
    """First and last port erhpc may use; keep it below the ephemeral range of the nodes."""
    tmp: str = "/tmp"
    """Node-local folder; keep it short: Unix socket paths end at 107 bytes."""
    interface: str | None = None
    """Network interface between nodes; None: the address that the node's own name stands for."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job starts, e.g. [module load python]."""

    def __post_init__(self) -> None:
        require_choice("cluster.kind", self.kind, CLUSTER_KINDS)
        require_range("cluster.gpus_per_node", self.gpus_per_node, 0)
        require_range("cluster.max_nodes", self.max_nodes, 1)
        require_range("cluster.signal_delay_s", self.signal_delay_s, 0)
        for name in ("cpus_per_node", "time_limit_min"):
            if getattr(self, name) is not None:
                require_range(f"cluster.{name}", getattr(self, name), 1)
        if len(self.ports) != 2 or not 1024 <= self.ports[0] <= self.ports[1] <= 65535:
            raise ConfigError(
                f"cluster.ports={self.ports} must be [first,last] within 1024..65535, e.g. [20000,32000]."
            )


@dataclass
class ExperimentConfig:
    """One experiment, as composed from conf/: everything a run depends on."""

    name: str = "unnamed"
    experts: dict[str, ExpertConfig] = field(default_factory=dict)
    """By the expert's name: its role, the model name users may pin, and the column in the results."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Seed of everything random: prompts, lengths, random policy, fitting."""
    output_root: str = "runs"
    """Folder that receives <experiment>/<time>-<id>/."""
    detach: bool = False
    """Submit and leave; attach later with `python -m erhpc.status RUN`."""

    def __post_init__(self) -> None:
        if not self.experts:
            raise ConfigError(
                "experts is empty. Choose an experiment (+experiment=quickstart), or add one: "
                "+expert@experts.math=llama3_8b."
            )
        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"name={self.name!r} names a folder. Use letters, digits, '-' and '_'.")
        bad = [name for name in self.experts if not name.replace("_", "").replace("-", "").isalnum()]
        if bad or AUTO_MODEL in self.experts:
            raise ConfigError(
                f"experts: {bad or [AUTO_MODEL]} cannot be expert names. Use letters, digits, '-' and '_'; "
                f"{AUTO_MODEL!r} is the name under which the router answers."
            )
        require_range("seed", self.seed, 0)
        for name, expert in self.experts.items():
            expert.check(f"experts.{name}")
        self._check_lengths()
        self._check_router()

    def _check_lengths(self) -> None:
        """The longest answer must leave room for a prompt in every expert."""
        length = self.workload.output_tokens
        key, longest = ("mean", length.mean) if length.kind == "fixed" else ("high", length.high)
        for name, expert in self.experts.items():
            if longest >= expert.max_model_len:
                raise ConfigError(
                    f"workload.output_tokens.{key}={longest} leaves no room for a prompt: experts.{name}.max_model_len="
                    f"{expert.max_model_len} bounds prompt plus answer. Lower the first or raise the second."
                )

    def _check_router(self) -> None:
        total = sum(expert.replicas for expert in self.experts.values())
        if self.router.policy == "none" and total != 1:
            raise ConfigError(
                f"router.policy=none needs exactly one replica, experts have {total}. "
                "Choose another router (cluster, round_robin, random, least_loaded) or a single expert."
            )
        default = self.router.default_expert
        if default is not None and default not in self.experts:
            raise ConfigError(
                f"router.default_expert={default!r} is no expert of this experiment. "
                f"Allowed: {', '.join(self.experts)}."
            )


@dataclass
class FitConfig:
    """What `python -m erhpc.fit` is told."""

    corpus: str = DEMO_CORPUS
    """JSONL file with a `prompt` field per line; `demo` is the corpus erhpc ships."""
    clusters: int = 8
    balanced: bool = False
    """Balanced k-means: every cluster gets the same number of training prompts."""
    dimensions: int = 100
    """Dimensions of the truncated SVD."""
    max_vocabulary: int = 50000
    """Most words kept, by document frequency; bounds the artefact's size and the gateway's memory."""
    iterations: int = 20
    seed: int = 0
    output: str = "runs/router"
    """Directory that receives the artefact."""

    def __post_init__(self) -> None:
        for name in ("clusters", "dimensions", "max_vocabulary", "iterations"):
            require_range(name, getattr(self, name), 1)
        require_range("seed", self.seed, 0)
