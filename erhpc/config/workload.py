"""What the users ask, when, and how long each level lasts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from erhpc.config.arrivals import ArrivalConfig, ProfileConfig, ThinkTimeConfig
from erhpc.config.words import DEMO_CORPUS
from erhpc.errors import ConfigError, require_choice, require_range

PROMPT_FORMATS = ("jsonl", "sharegpt", "dataset", "synthetic")
TRACE_FORMATS = ("auto", "azure", "burstgpt", "parquet")
APIS = ("chat", "completions")
LENGTH_KINDS = ("fixed", "uniform", "lognormal", "trace")
MAX_USERS = 1_000_000


@dataclass
class LengthConfig:
    """A distribution of token counts."""

    kind: str = "fixed"
    """fixed (mean), uniform (low..high), lognormal (mean and sigma, clipped to low..high) or trace: the counts of a
    row of workload.trace as they are, the same row for prompt and answer."""
    mean: float = 64.0
    sigma: float = 0.5
    """Standard deviation of the logarithm (lognormal only)."""
    low: int = 1
    high: int = 4096

    def check(self, path: str) -> None:
        """Raise ConfigError, naming keys under `path`, if a value is out of range."""
        require_choice(f"{path}.kind", self.kind, LENGTH_KINDS)
        if self.kind in ("uniform", "lognormal"):
            require_range(f"{path}.low", self.low, 1)
            require_range(f"{path}.high", self.high, self.low)
        if self.kind == "fixed":
            require_range(f"{path}.mean", self.mean, 1)
        if self.kind == "lognormal":
            require_range(f"{path}.mean", self.mean, self.low, self.high)
            require_range(f"{path}.sigma", self.sigma, 0)

    @property
    def longest_tokens(self) -> float:
        """The longest that can be drawn; 0 if only a trace knows."""
        return {"fixed": self.mean, "trace": 0.0}.get(self.kind, self.high)


@dataclass
class PrefixConfig:
    """Text that prompts share, such as a system prompt: what a prefix cache can answer."""

    tokens: int = 0
    """Length of each shared prefix; 0: none."""
    count: int = 1
    """How many different prefixes there are; each request begins with one of them, drawn evenly."""

    def __post_init__(self) -> None:
        require_range("workload.prefix.tokens", self.tokens, 0)
        require_range("workload.prefix.count", self.count, 1)


@dataclass
class WorkloadConfig:
    """What the users ask, how many of them there are or how often they ask, and how long each level lasts."""

    users: list[int] = field(default_factory=lambda: [1, 10, 100, 1000])
    """Concurrent users, one level each (closed loop; unused in an open one)."""
    rates_per_s: list[float] = field(default_factory=list)
    """Requests per second, one level each (open loop). A trace without any is replayed at its own rate."""
    arrivals: ArrivalConfig = field(default_factory=ArrivalConfig)
    think_time: ThinkTimeConfig = field(default_factory=ThinkTimeConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    ramp_s: float | None = None
    """Users begin evenly over this time; null: 1,000 per second, so that listen queues are not overrun."""
    trace: str | None = None
    """File of arrival times and token counts: Azure LLM inference CSV, BurstGPT CSV, or Parquet with the columns
    at_s, tokens_in, tokens_out."""
    trace_format: str = "auto"
    """auto (by its columns), azure, burstgpt or parquet."""
    time_scale: float = 1.0
    """The gaps of the trace are multiplied by this: 0.5 replays it twice as fast."""
    prompts: str = DEMO_CORPUS
    """File of prompts; `demo` is the corpus erhpc ships. Unused when format is synthetic."""
    format: str = "jsonl"
    """jsonl (a `prompt` field per line), sharegpt (a JSON list of conversations), dataset (a folder of Parquet or
    Arrow files as Hugging Face's `save_to_disk` and repositories lay it out) or synthetic texts."""
    prompt_column: str = "prompt"
    """Column of the text (dataset only)."""
    domain_column: str = "domain"
    """Column of the domain (dataset only); prompts have no domain where it is missing."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Share of each domain among the requests, e.g. {math: 0.7, code: 0.3}; empty: as in the file."""
    tokenizer: str | None = None
    """tokenizer.json, or a folder that holds one: synthetic texts then have exactly the tokens asked for; null: four
    characters count as a token."""
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    turns: LengthConfig = field(default_factory=lambda: LengthConfig(mean=1))
    """Requests per conversation: each repeats the turns before it, with generated (or recorded) answers, so that the
    same seed asks the same whatever the expert answers. 1: every request stands alone."""
    api: str = "chat"
    """chat (/v1/chat/completions) or completions (/v1/completions)."""
    input_tokens: LengthConfig = field(default_factory=lambda: LengthConfig(mean=256))
    """Length of synthetic prompts, the shared prefix not counted."""
    input_tokens_of_levels: list[int] = field(default_factory=list)
    """Length of synthetic prompts at each level, one for each of `users` or `rates_per_s`, which may repeat; empty:
    input_tokens at all of them. A run asks for no more than its experts take (max_model_len)."""
    output_tokens: LengthConfig = field(default_factory=lambda: LengthConfig(mean=64))
    """max_tokens of each request; with ignore_eos the answer has exactly that many."""
    ignore_eos: bool = True
    temperature: float = 0.0
    warmup_s: float = 5.0
    """At least this long, and until every user has finished a request and the rates are steady (at most
    warmup_max_s). Exactly this long where the load is not meant to be steady: a trace, a profile that is not flat."""
    warmup_max_s: float = 60.0
    measure_s: float = 30.0
    """Length of the measuring window of each level."""
    measure_requests: int | None = None
    """End the window as soon as so many requests sent in it have ended, but after measure_s at the latest."""
    drain_s: float = 60.0
    """How long the load goes on at most after the window, until all requests due before its end have ended; what is
    in flight then is cut."""
    timeout_s: float = 600.0
    """Longest time of one request; longer ones are recorded as failed. So too below."""
    connect_timeout_s: float = 10.0
    first_token_timeout_s: float | None = None
    """Longest wait for the first token, from sending; null: only timeout_s."""
    idle_timeout_s: float | None = None
    """Longest silence between two pieces of an answer; null: only timeout_s."""

    def __post_init__(self) -> None:
        self._check_levels()
        self.input_tokens.check("workload.input_tokens")
        self.output_tokens.check("workload.output_tokens")
        self.turns.check("workload.turns")
        require_choice("workload.format", self.format, PROMPT_FORMATS)
        require_choice("workload.trace_format", self.trace_format, TRACE_FORMATS)
        require_choice("workload.api", self.api, APIS)
        self._check_trace()
        self._check_mixture()
        self._check_times()

    @property
    def is_steady(self) -> bool:
        """Whether the load is meant to stay the same throughout a level, so that a warm-up can be told to be over."""
        return self.profile.kind == "flat" and self.arrivals.kind != "trace"

    def at_level(self, level: int, longest: int | None = None) -> WorkloadConfig:
        """The workload as it is asked at one level: with the lengths of its prompts, none above `longest`."""
        if not self.input_tokens_of_levels:
            return self
        tokens = self.input_tokens_of_levels[level]
        length = LengthConfig(mean=tokens if longest is None else min(tokens, longest))
        return replace(self, input_tokens=length, input_tokens_of_levels=[])

    def _check_levels(self) -> None:
        if not self.users or any(not 1 <= count <= MAX_USERS for count in self.users):
            raise ConfigError(f"workload.users={self.users} must be numbers from 1 to {MAX_USERS}, e.g. [1,10,100].")
        if any(not 0 < rate <= MAX_USERS for rate in self.rates_per_s):
            raise ConfigError(f"workload.rates_per_s={self.rates_per_s} must be above 0, e.g. [1,10,100].")
        if self.rates_per_s and not self.arrivals.is_open:
            raise ConfigError(
                f"workload.rates_per_s={self.rates_per_s} needs an open loop. "
                "Set workload.arrivals.kind to poisson, gamma, constant or trace."
            )

        lengths, points = self.input_tokens_of_levels, self.rates_per_s if self.arrivals.is_open else self.users
        if lengths and (len(lengths) != len(points) or min(lengths) < 1 or self.format != "synthetic"):
            raise ConfigError(
                f"workload.input_tokens_of_levels={lengths} must give one length above 0 for each of the "
                f"{len(points)} levels ({points}), of workload.format=synthetic (it is {self.format})."
            )

    def _check_trace(self) -> None:
        require_range("workload.time_scale", self.time_scale, 1e-6, 1e6)
        lengths = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        wanting = [f"workload.{name}.kind" for name, length in lengths.items() if length.kind == "trace"]
        if self.arrivals.kind == "trace":
            wanting.append("workload.arrivals.kind")
        if wanting and self.trace is None:
            raise ConfigError(f"{', '.join(wanting)}=trace needs a trace. Set workload.trace=FILE.")
        if self.turns.kind == "trace":
            raise ConfigError("workload.turns.kind=trace is not known. Allowed: fixed, uniform, lognormal.")

    def _check_mixture(self) -> None:
        if any(share < 0 for share in self.mixture.values()) or (self.mixture and not sum(self.mixture.values())):
            raise ConfigError(
                f"workload.mixture={self.mixture} must give shares of at least 0, and one above, e.g. "
                "{math: 0.7, code: 0.3}."
            )
        if self.mixture and self.format == "synthetic":
            raise ConfigError("workload.mixture needs prompts with domains; synthetic texts have none. Set a file.")

    def _check_times(self) -> None:
        for name in ("warmup_s", "drain_s", "temperature"):
            require_range(f"workload.{name}", getattr(self, name), 0)
        require_range("workload.warmup_max_s", self.warmup_max_s, self.warmup_s)
        require_range("workload.measure_s", self.measure_s, 0.1)
        for name in ("timeout_s", "connect_timeout_s"):
            require_range(f"workload.{name}", getattr(self, name), 0.1)
        for name in ("ramp_s", "first_token_timeout_s", "idle_timeout_s"):
            if getattr(self, name) is not None:
                require_range(f"workload.{name}", getattr(self, name), 0)
        if self.measure_requests is not None:
            require_range("workload.measure_requests", self.measure_requests, 1)
