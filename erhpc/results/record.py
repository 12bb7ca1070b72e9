"""The columns of `records.parquet` and `levels.parquet`: name, type, unit and meaning, as plain data.

The README's table is tested against these lists, `store` derives the Parquet schema from them, and reports read
nothing else. It knows neither pyarrow nor pandas.

Schema history
    1: first version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "cancelled"]
Phase = Literal["warmup", "measure", "drain"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `kind` is a name that `store` maps to a Parquet type."""

    name: str
    kind: Literal["string", "int32", "int64", "float64", "bool", "list<int32>", "list<string>", "map<string,float64>"]
    meaning: str


RECORD_COLUMNS: tuple[Column, ...] = (
    Column("experiment", "string", "name of the experiment"),
    Column("run_id", "string", "name of the run's folder, <time>-<id>"),
    Column("engine", "string", "vllm or emulated: what served the tokens"),
    Column("level", "int32", "index of the level within the run, from 0"),
    Column("users", "int32", "concurrent users of the level"),
    Column("phase", "string", "phase of the level in which the request was sent: warmup, measure or drain"),
    Column("request_id", "string", "unique within the run"),
    Column("user", "int32", "which user sent it, from 0"),
    Column("sequence", "int32", "which request of that user it is, from 0"),
    Column("prompt_id", "string", "id of the prompt in the prompt file"),
    Column("domain", "string", "domain of the prompt, empty where the file names none"),
    Column("expert", "string", "expert that answered, from the gateway's header"),
    Column("replica", "string", "replica that answered, from the gateway's header"),
    Column("scheduled_monotonic_ns", "int64", "when the request was due, client's monotonic clock"),
    Column("sent_monotonic_ns", "int64", "when the request was sent"),
    Column("first_token_monotonic_ns", "int64", "when the first token arrived, null if none did"),
    Column("last_token_monotonic_ns", "int64", "when the last token arrived, null if none did"),
    Column("end_monotonic_ns", "int64", "when the answer ended or failed"),
    Column(
        "token_gaps_us",
        "list<int32>",
        "microseconds between successive arrivals of tokens; one arrival may carry several",
    ),
    Column("tokens_in", "int32", "prompt tokens by the engine's usage, null if not reported"),
    Column(
        "tokens_out",
        "int32",
        "answer tokens by the engine's usage; frames with text where it reports none",
    ),
    Column("max_tokens", "int32", "answer tokens asked for"),
    Column("status", "string", "ok, failed, or cancelled (cut at the end of the level)"),
    Column("http_status", "int32", "HTTP status, null if none came"),
    Column(
        "error_kind", "string", "connect, status, timeout, truncated, stream_error, malformed, cancelled; null if ok"
    ),
    Column("error_text", "string", "what failed, at most 300 characters; null if ok"),
)

_QUANTILES = ("mean", "p50", "p90", "p95", "p99")
_LATENCIES = (
    ("ttft", "time to first token: first token minus sent"),
    ("itl", "inter-token latency: gap between successive arrivals of tokens"),
    ("tpot", "time per output token of a request: (last - first token) / (tokens - 1)"),
    ("e2e", "end-to-end latency: last token minus sent"),
)

LEVEL_COLUMNS: tuple[Column, ...] = (
    Column("experiment", "string", "name of the experiment"),
    Column("run_id", "string", "name of the run's folder, <time>-<id>"),
    Column("engine", "string", "vllm or emulated: what served the tokens"),
    Column("level", "int32", "index of the level within the run, from 0"),
    Column("users", "int32", "concurrent users asked for"),
    Column("num_replicas", "int32", "replicas that served the level"),
    Column("num_gpus", "int32", "GPUs the replicas hold (emulated GPUs included)"),
    Column("started_utc", "string", "when the level began, ISO 8601"),
    Column("warmup_s", "float64", "length of the warm-up, seconds"),
    Column("window_s", "float64", "length of the measuring window, seconds"),
    Column("requests_ok", "int32", "requests sent in the window that finished"),
    Column("requests_failed", "int32", "requests sent in the window that failed"),
    Column("requests_cancelled", "int32", "requests sent in the window that were cut at the end of the level"),
    Column("users_held", "float64", "mean number of requests in flight during the window"),
    Column("requests_per_s", "float64", "requests that finished within the window, per second"),
    Column(
        "input_tokens_per_s", "float64", "prompt tokens of the requests that finished within the window, per second"
    ),
    Column("output_tokens_per_s", "float64", "answer tokens that arrived within the window, per second"),
    *(
        Column(f"{name}_{quantile}_s", "float64", f"{meaning}; {quantile} over requests sent in the window, seconds")
        for name, meaning in _LATENCIES
        for quantile in _QUANTILES
    ),
    Column("expert_share", "map<string,float64>", "share of the window's requests that each expert answered"),
    Column("client_lag_p99_s", "float64", "how late the client's event loop ran, 99th percentile, seconds"),
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
    Column("valid", "bool", "false: do not trust this level"),
    Column("invalid_reasons", "list<string>", "why the level is invalid, empty if valid"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What one client knows of one request; times are monotonic nanoseconds of that client's clock.

    Fields are a subset of RECORD_COLUMNS: the run's and the level's columns are added when it is stored.
    """

    request_id: str
    phase: Phase
    user: int
    sequence: int
    prompt_id: str
    domain: str
    expert: str | None
    replica: str | None
    scheduled_monotonic_ns: int
    sent_monotonic_ns: int
    first_token_monotonic_ns: int | None
    last_token_monotonic_ns: int | None
    end_monotonic_ns: int
    token_gaps_us: list[int] = field(default_factory=list)
    tokens_in: int | None = None
    tokens_out: int = 0
    max_tokens: int
    status: Status
    http_status: int | None = None
    error_kind: str | None = None
    error_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPart:
    """What one client measured in one level: its records, its window and how late its own loop ran."""

    records: list[RequestRecord]
    window_start_monotonic_ns: int
    window_end_monotonic_ns: int
    warmup_s: float
    started_utc: str
    lag_p99_s: float
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
    users: int
    num_replicas: int
    num_gpus: int
