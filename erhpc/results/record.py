"""The columns of `records.parquet` and `levels.parquet`: name, type, unit and meaning, as plain data.

The README's table is tested against these lists, `store` derives the Parquet schema from them, and reports read
nothing else. It knows neither pyarrow nor pandas.

Schema history
    1: first version.
    2: open loops (rate_per_s, arrivals, latency_from, audit of the arrivals), SLO and goodput, normalised latency,
       what the client cost and who stamped, error kinds told apart; `users` is null in an open loop.
    3: how long requests waited in the gateway for their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

SCHEMA_VERSION = 3

PREDICTED = "predicted"
"""The engine of what the twin computed: nothing served it, nothing was measured."""

Status = Literal["ok", "failed", "cancelled"]
Phase = Literal["warmup", "measure", "drain"]
Origin = Literal["sent", "scheduled"]
Stamper = Literal["kernel", "loop", "twin"]
ErrorKind = Literal[
    "connect",
    "tls",
    "status",
    "timeout_connect",
    "timeout_first_token",
    "timeout_idle",
    "timeout_total",
    "truncated",
    "stream_error",
    "malformed",
    "cancelled",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
LAG_BOUNDS_S = (0.001, 0.002, 0.005, 0.010, 0.020, 0.050, 0.100, 0.200, 0.500, 1.0)
"""Upper bounds of the buckets of a lag histogram, seconds; a last bucket holds what is above."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `kind` is a name that `store` maps to a Parquet type."""

    name: str
    kind: Literal[
        "string",
        "int32",
        "int64",
        "float64",
        "bool",
        "list<int32>",
        "list<float64>",
        "list<string>",
        "map<string,float64>",
    ]
    meaning: str


RECORD_COLUMNS: tuple[Column, ...] = (
    Column("experiment", "string", "name of the experiment"),
    Column("run_id", "string", "name of the run's folder, <time>-<id>"),
    Column(
        "engine", "string", "vllm or emulated: what served the tokens; predicted: nothing did, the twin computed them"
    ),
    Column("level", "int32", "index of the level within the run, from 0"),
    Column("users", "int32", "concurrent users of the level; null in an open loop"),
    Column("rate_per_s", "float64", "requests per second of the level, as asked; null in a closed loop"),
    Column(
        "phase",
        "string",
        "phase of the level in which the request was due: warmup, measure or drain (sent to keep the load up, counts "
        "for nothing)",
    ),
    Column("request_id", "string", "unique within the run"),
    Column("worker", "int32", "which client process sent it, from 0"),
    Column("user", "int32", "which user sent it, from 0; in an open loop which conversation it belongs to"),
    Column("sequence", "int32", "which request of that user it is, from 0"),
    Column("turn", "int32", "which turn of its conversation it is, from 0"),
    Column("prompt_id", "string", "id of the prompt in the prompt file"),
    Column("domain", "string", "domain of the prompt, empty where the file names none"),
    Column("expert", "string", "expert that answered, from the gateway's header"),
    Column("replica", "string", "replica that answered, from the gateway's header"),
    Column(
        "gateway_queue_s",
        "float64",
        "how long it waited in the gateway for a turn, seconds; 0: not at all; null where no gateway tells",
    ),
    Column("scheduled_monotonic_ns", "int64", "when the request was due, client's monotonic clock"),
    Column("sent_monotonic_ns", "int64", "when the bytes of the request left; connecting is over by then"),
    Column("latency_from", "string", "where latencies count from: sent (closed loop) or scheduled (open loop)"),
    Column(
        "stamped_by", "string", "who stamped the arrivals: kernel, loop (the client's event loop) or, predicted, twin"
    ),
    Column("first_token_monotonic_ns", "int64", "when the first token arrived, null if none did"),
    Column("last_token_monotonic_ns", "int64", "when the last token arrived, null if none did"),
    Column("end_monotonic_ns", "int64", "when the answer ended or failed"),
    Column(
        "token_gaps_us",
        "list<int32>",
        "microseconds between successive arrivals of tokens; one arrival may carry several",
    ),
    Column("frames", "int32", "frames of the answer that carried tokens"),
    Column("coalesced", "int32", "arrivals that carried more than one frame with tokens"),
    Column("new_connection", "bool", "a connection was opened for this request"),
    Column("tokens_in", "int32", "prompt tokens by the engine's usage, null if not reported"),
    Column(
        "tokens_out",
        "int32",
        "answer tokens by the engine's usage; frames with text where it reports none",
    ),
    Column("max_tokens", "int32", "answer tokens asked for"),
    Column("status", "string", "ok, failed, or cancelled (cut at the end of the level)"),
    Column("http_status", "int32", "HTTP status, null if none came"),
    Column("error_kind", "string", f"{', '.join(ERROR_KINDS)}; null if ok"),
    Column("error_text", "string", "what failed, at most 300 characters; null if ok"),
)

_QUANTILES = ("mean", "p50", "p90", "p95", "p99")
_LATENCIES = (
    ("ttft", "time to first token: first token minus sent, in an open loop minus scheduled"),
    ("itl", "inter-token latency: gap between successive arrivals of tokens"),
    ("tpot", "time per output token of a request: (last - first token) / (tokens - 1)"),
    ("e2e", "end-to-end latency: last token minus sent, in an open loop minus scheduled"),
    ("normalised", "normalised latency of a request: e2e / tokens"),
)

LEVEL_COLUMNS: tuple[Column, ...] = (
    Column("experiment", "string", "name of the experiment"),
    Column("run_id", "string", "name of the run's folder, <time>-<id>"),
    Column(
        "engine",
        "string",
        "vllm or emulated: what served the tokens; external: a server that erhpc did not start; predicted: nothing "
        "did, the twin computed them",
    ),
    Column("level", "int32", "index of the level within the run, from 0"),
    Column("arrivals", "string", "closed (users), or the open loop's kind: poisson, gamma, constant, trace"),
    Column("users", "int32", "concurrent users asked for; null in an open loop"),
    Column("rate_per_s", "float64", "requests per second asked for; null in a closed loop"),
    Column("num_replicas", "int32", "replicas that served the level; null if not known"),
    Column("num_gpus", "int32", "GPUs the replicas hold (emulated GPUs included); null if not known"),
    Column("started_utc", "string", "when the level began, ISO 8601"),
    Column("window_start_utc", "string", "when the window opened, ISO 8601; null if it never did"),
    Column("warmup_s", "float64", "length of the warm-up, seconds"),
    Column("window_s", "float64", "length of the measuring window, seconds"),
    Column("requests_ok", "int32", "requests sent in the window that finished"),
    Column("requests_failed", "int32", "requests sent in the window that failed"),
    Column("requests_cancelled", "int32", "requests sent in the window that were cut at the end of the level"),
    Column("users_held", "float64", "mean number of requests in flight during the window"),
    Column("in_flight_start", "int32", "requests in flight when the window began"),
    Column("in_flight_end", "int32", "requests in flight when the window ended: above the start, a backlog grew"),
    Column("in_flight_max", "int32", "most requests in flight at any moment of the window"),
    Column(
        "littles_law_ratio",
        "float64",
        "rate of answers times mean time in flight over users_held: 1 where the level is steady",
    ),
    Column("requests_per_s", "float64", "requests that finished within the window, per second"),
    Column("due_per_s", "float64", "requests that were due within the window, per second"),
    Column(
        "input_tokens_per_s", "float64", "prompt tokens of the requests that finished within the window, per second"
    ),
    Column("output_tokens_per_s", "float64", "answer tokens that arrived within the window, per second"),
    Column("total_tokens_per_s", "float64", "input_tokens_per_s + output_tokens_per_s"),
    *(
        Column(f"{name}_{quantile}_s", "float64", f"{meaning}; {quantile} over requests sent in the window, seconds")
        for name, meaning in _LATENCIES
        for quantile in _QUANTILES
    ),
    Column(
        "slo_attainment",
        "float64",
        "share of the requests sent in the window that met the SLO, failed ones included; null without an SLO",
    ),
    Column(
        "goodput_per_s",
        "float64",
        "requests that finished within the window and met the SLO, per second; null without an SLO",
    ),
    Column("expert_share", "map<string,float64>", "share of the window's requests that each expert answered"),
    Column(
        "gateway_queued_share",
        "float64",
        "share of the window's requests that waited in the gateway for a turn; null where no gateway tells",
    ),
    Column("gateway_queue_mean_s", "float64", "how long the window's requests waited there, mean, seconds"),
    Column("gateway_queue_p99_s", "float64", "how long the window's requests waited there, 99th percentile, seconds"),
    Column("gap_cv", "float64", "coefficient of variation of the gaps between requests as they were sent (open loop)"),
    Column("dispersion_index", "float64", "variance over mean of the requests sent per second (open loop): Poisson 1"),
    Column("arrival_ks_p", "float64", "p-value: the gaps as sent are of the distribution asked for (open loop)"),
    Column("send_late_p50_s", "float64", "sent minus scheduled, median, seconds"),
    Column("send_late_p99_s", "float64", "sent minus scheduled, 99th percentile, seconds"),
    Column("send_late_max_s", "float64", "sent minus scheduled, largest, seconds"),
    Column("client_workers", "int32", "client processes"),
    Column("client_cpu_share", "float64", "CPU time of the busiest client process over the window, share of one core"),
    Column("worker_cpu_share", "list<float64>", "the same of every client process, in the order of their numbers"),
    Column("client_us_per_token", "float64", "CPU time of all client processes per answer token, microseconds"),
    Column(
        "client_margin",
        "float64",
        "tokens per second that these clients could take, by calibration, over those they took; null if not calibrated",
    ),
    Column("client_lag_p99_s", "float64", "how late the client's event loop ran, 99th percentile, seconds"),
    Column(
        "client_lag_histogram",
        "list<int32>",
        f"probes of the clients' event loops by lag: up to {', '.join(f'{b:g}' for b in LAG_BOUNDS_S)} s, and above",
    ),
    Column(
        "kernel_delay_p99_s",
        "float64",
        "from the kernel's stamp to the client's hand, 99th percentile, seconds; null if the loop stamped",
    ),
    Column("kernel_stamped_share", "float64", "share of the window's requests whose arrivals the kernel stamped"),
    Column("coalesced_share", "float64", "share of arrivals that carried more than one frame with tokens"),
    Column("clock_offset_s", "float64", "largest offset between the clocks of clients and conductor, seconds"),
    Column(
        "gateway_lag_p99_s",
        "float64",
        "how late the gateway's event loop ran, 99th percentile, seconds; null without a gateway",
    ),
    Column(
        "engine_lag_p99_s",
        "float64",
        "how late the emulated experts ran (event loop or steps), worst 99th percentile, seconds; null for vLLM",
    ),
    Column(
        "steady",
        "bool",
        "the load was steady as the window began; false: it trended; null: not to be told, or not meant to be",
    ),
    Column("valid", "bool", "false: do not trust this level"),
    Column("invalid_reasons", "list<string>", "why the level is invalid, empty if valid"),
)

BOUNDED_COLUMNS = (
    "output_tokens_per_s",
    *(f"{name}_{quantile}_s" for name in ("ttft", "tpot", "e2e") for quantile in ("p50", "p99")),
)
"""The columns of a predicted level that come with an interval."""


def name_bound(column: str, end: str) -> str:
    """The column that holds an end (low or high) of the interval of `column`, unit last: ttft_p50_low_s."""
    unit = "_per_s" if column.endswith("_per_s") else "_s"
    return f"{column.removesuffix(unit)}_{end}{unit}"


PREDICTION_COLUMNS: tuple[Column, ...] = (
    *LEVEL_COLUMNS,
    *(
        Column(name_bound(name, end), "float64", f"{end} end of the 90 % interval of {name}")
        for name in BOUNDED_COLUMNS
        for end in ("low", "high")
    ),
    Column("limited_by", "string", "beyond the knee, what holds the level back; null below it"),
)
"""The columns of `prediction.parquet`: those of a level, of which what is not predicted is null, with intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What one client knows of one request; times are monotonic nanoseconds of that client's clock.

    Fields are a subset of RECORD_COLUMNS: the run's and the level's columns are added when it is stored.
    """

    request_id: str
    phase: Phase
    worker: int = 0
    user: int
    sequence: int
    turn: int = 0
    prompt_id: str
    domain: str
    expert: str | None
    replica: str | None
    gateway_queue_s: float | None = None
    scheduled_monotonic_ns: int
    sent_monotonic_ns: int
    latency_from: Origin = "sent"
    stamped_by: Stamper = "loop"
    first_token_monotonic_ns: int | None
    last_token_monotonic_ns: int | None
    end_monotonic_ns: int
    token_gaps_us: Sequence[int] = field(default_factory=list)
    """An array("i") from a client, a list when read back."""
    frames: int = 0
    coalesced: int = 0
    new_connection: bool = False
    tokens_in: int | None = None
    tokens_out: int = 0
    max_tokens: int
    status: Status
    http_status: int | None = None
    error_kind: ErrorKind | None = None
    error_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPart:
    """What one client process measured in one level: its records, its window, and what it knows of itself."""

    worker: int = 0
    records: list[RequestRecord]
    window_start_monotonic_ns: int
    window_end_monotonic_ns: int
    warmup_s: float
    started_utc: str
    window_start_utc: str | None = None
    lag_p99_s: float
    lag_histogram: list[int] = field(default_factory=list)
    """Probes of the event loop in the window by LAG_BOUNDS_S; empty if not probed."""
    cpu_s: float | None = None
    """CPU time of the process over the window."""
    kernel_delay_p99_s: float | None = None
    clock_jumps: int = 0
    """How often the wall clock, by which the kernel stamps, was set during the window."""
    clock_offset_ns: int = 0
    """This process's monotonic clock minus the conductor's."""
    clock_uncertainty_ns: int = 0
    steady: bool | None = None
    """None: not to be told by the time the window began, or the load is not meant to be steady."""
    warmup_cut: bool = False
    """The window opened at warmup_max_s, before every user had finished a request."""
    interrupted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelIdentity:
    """The columns that say which level of which run a row belongs to."""

    experiment: str
    run_id: str
    engine: str
    level: int
    arrivals: str = "closed"
    users: int | None
    rate_per_s: float | None = None
    num_replicas: int | None
    num_gpus: int | None
