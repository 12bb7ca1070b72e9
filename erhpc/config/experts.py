"""What serves tokens: a model's shape, how each replica of it is served, and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erhpc.errors import ConfigError, require_choice, require_range

ENGINE_KINDS = ("auto", "vllm", "emulated")
DEVICES = ("cuda", "cpu")
SYNTHETIC_WEIGHTS = ("dummy", "random")
QUANTIZATIONS = ("awq", "gptq", "fp8")
DTYPES = ("bfloat16", "float16", "float32")
FAULT_KINDS = ("hang", "crash", "slow", "error_500", "error_503", "slow_start")


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
    kernel: str | None = None
    """Kernel of the layers' matrices in emulation and prediction, a table of erhpc/twin/data/kernels.toml; None: the
    one that is default for the quantization. vLLM chooses its own."""
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
    kv_capacity_tokens: int | None = None
    """Tokens of KV cache per replica, as vLLM prints at its start; None: worked out from the GPU's memory. It changes
    what a plan assumes and an emulated expert does, not vLLM."""
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
        if self.kv_capacity_tokens is not None:
            require_range(f"{path}.kv_capacity_tokens", self.kv_capacity_tokens, self.max_model_len)


@dataclass
class FaultConfig:
    """Something that goes wrong with emulated experts on purpose, to see what gateway, clients and users make of it."""

    kind: str
    """hang: no step ends, requests are still accepted. crash: the process ends. slow: steps take `factor` times as
    long. error_500, error_503: a `share` of the requests is answered so. slow_start: loading takes `duration_s`."""
    replica: str | None = None
    """Name of a replica (math-0) or of an expert (math: all its replicas); null: every replica."""
    after_s: float = 0.0
    """When it begins, seconds after the replica was loaded; a run waits until each replica has answered once."""
    duration_s: float | None = None
    """How long it lasts; null: to the end."""
    share: float = 1.0
    factor: float = 10.0

    def __post_init__(self) -> None:
        require_choice("engine.faults.kind", self.kind, FAULT_KINDS)
        require_range("engine.faults.after_s", self.after_s, 0)
        require_range("engine.faults.share", self.share, 0, 1)
        require_range("engine.faults.factor", self.factor, 1, 1e6)
        if self.duration_s is not None:
            require_range("engine.faults.duration_s", self.duration_s, 0)
        elif self.kind == "slow_start":
            raise ConfigError("engine.faults: slow_start needs duration_s, how many seconds longer loading takes.")

    def hits(self, replica: str) -> bool:
        """Whether it is a fault of the replica of that name."""
        return self.replica in (None, replica, replica.rpartition("-")[0])


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
    """Let vLLM answer repeated prompts from its cache: off, or TTFT at many users measures the cache. Emulated experts
    too."""
    parallel_loads: int = 4
    """How many replicas of a node load at the same time."""
    stop_timeout_s: float = 10.0
    """Time between TERM and KILL of a replica's process group."""
    environment: dict[str, str] = field(default_factory=dict)
    """Extra environment variables of every replica."""
    profile: str = "vllm-v1-async"
    """What the engine's host adds to a step in emulation and prediction: a table of erhpc/twin/data/profiles.toml."""
    speedup: float = 1.0
    """Emulated experts only: their time runs so many times as fast, for rehearsals. Every level is marked invalid."""
    faults: list[FaultConfig] = field(default_factory=list)
    """Emulated experts only: what goes wrong on purpose. Every level is marked invalid while there are any."""

    def __post_init__(self) -> None:
        require_choice("engine.kind", self.kind, ENGINE_KINDS)
        require_choice("engine.device", self.device, DEVICES)
        require_choice("engine.synthetic_weights", self.synthetic_weights, SYNTHETIC_WEIGHTS)
        require_range("engine.ready_timeout_s", self.ready_timeout_s, 1)
        require_range("engine.load_rate_gb_per_s", self.load_rate_gb_per_s, 0.001)
        require_range("engine.parallel_loads", self.parallel_loads, 1)
        require_range("engine.stop_timeout_s", self.stop_timeout_s, 0.1)
        require_range("engine.speedup", self.speedup, 0.01, 1000)
