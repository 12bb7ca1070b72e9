"""What a simulation is given: replicas, the gateway before them, requests with their routing, and who sends when.

Everything is checked here, before a simulation begins; it then knows no malformed row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erhpc.errors import ConfigError, InputError, require_range
from erhpc.twin.scheduler import Limits
from erhpc.twin.step_time import StepTime

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """One replica to be simulated."""

    replica: str
    expert: str
    limits: Limits
    step_time: StepTime
    """Where several levels are simulated, a DecodeTimes of it spares each to find the same pieces again."""
    send_s: Callable[[int], float] = lambda _: 0.0
    """What tokens of so many running answers, one each, keep the API server busy; the step times contain it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayModel:
    """What stands before the replicas."""

    service_s: float = 0.0
    """What a request keeps the gateway busy: it serves one at a time, in the order in which they were sent."""
    latency_s: float = 0.0
    """What a request takes besides, however many there are: network, HTTP server of the engine."""
    rule: str = "least_loaded"
    """Which replica of its pool a request goes to: least_loaded or round_robin."""

    def __post_init__(self) -> None:
        require_range("service_s", self.service_s, 0, 3600)
        require_range("latency_s", self.latency_s, 0, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked for: one row per request, all arrays of one length, of whole numbers unless it says otherwise."""

    prompt_tokens: npt.ArrayLike
    answer_tokens: npt.ArrayLike
    pool: npt.ArrayLike = 0
    """Index of the pool that each request is routed to, as the classifier decided for its prompt."""
    cached_tokens: npt.ArrayLike = 0
    """Leading tokens of the prompt that the prefix cache of its replica holds."""
    think_s: npt.ArrayLike = 0.0
    """Pause of the user after the request, seconds (closed loop)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Users who each send the next request when the answer to the last one is complete and they have thought."""

    users: int
    num_requests: int
    """How many requests are sent, all users together."""
    ramp_s: float = 0.0
    """User k sends the first one at k / users * ramp_s."""
    keeps_load: bool = False
    """Users go on until the first `num_requests` are answered, so that these see the full load to their ends; what is
    sent beyond is not told of."""

    def __post_init__(self) -> None:
        require_range("users", self.users, 1)
        require_range("num_requests", self.num_requests, 1)
        require_range("ramp_s", self.ramp_s, 0, 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Requests that are sent when they are due, whatever became of those before; one per row of the demand."""

    due_s: npt.ArrayLike
    """Seconds since the level began, ascending."""
    num_counted: int | None = None
    """The level ends when the first so many are answered; the others keep up the load until then, and are not told of.
    None: all."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A checked demand as lists: single elements of arrays are slow to read."""

    prompt_tokens: list[int]
    answer_tokens: list[int]
    pool: list[int]
    cached_tokens: list[int]
    think_s: list[float]


def check_demand(pools: Sequence[Sequence[ReplicaModel]], demand: Demand) -> Rows:
    """The rows of a demand. Raises ConfigError without replicas, InputError for a row that can't be served."""
    if not pools or not all(pools):
        raise ConfigError("A simulation needs at least one replica in each pool. Give the replicas of the placement.")
    columns = {name: np.atleast_1d(np.asarray(getattr(demand, name))) for name in Rows.__slots__}
    size = columns["prompt_tokens"].size
    if not size:
        raise InputError("The demand has no request. Give a prompt file or a trace with at least one row.")
    for name, values in columns.items():
        if values.shape not in ((size,), (1,)):
            raise InputError(f"demand.{name} has shape {values.shape}, prompt_tokens ({size},). Give one per request.")
        is_time = name == "think_s"
        is_fine = values >= 0
        if values.dtype.kind not in "bui":
            is_fine &= np.isfinite(values.astype(np.float64)) & (is_time | (values == np.floor(values)))
        if not is_fine.all():
            allowed = f"{'seconds' if is_time else 'whole numbers'}, 0 or more"
            bad = int(np.flatnonzero(~is_fine)[0])
            raise InputError(f"demand.{name} of row {bad} is {values[bad]}. Allowed: {allowed}.")
    if (columns["pool"] >= len(pools)).any():
        bad = int(np.flatnonzero(columns["pool"] >= len(pools))[0])
        raise InputError(
            f"Row {bad} of the demand is routed to pool {columns['pool'][bad]}, and there are {len(pools)}. Fit the "
            "router for as many experts as the placement has, or add experts."
        )
    columns = {name: values.astype(np.float64 if name == "think_s" else np.int64) for name, values in columns.items()}
    _check_lengths(pools, columns["prompt_tokens"], columns["answer_tokens"], columns["pool"])
    lists = {name: values.tolist() for name, values in columns.items()}
    return Rows(**{name: values if len(values) == size else values * size for name, values in lists.items()})


def _check_lengths(
    pools: Sequence[Sequence[ReplicaModel]], prompt: Integers, answer: Integers, pool_of: Integers
) -> None:
    """Every request must fit each replica that it may be sent to; prompt and answer tokens, and index of the pool."""
    prompt, answer, pool_of = np.broadcast_arrays(prompt, answer, pool_of)
    narrowest = [min(pool, key=lambda model: model.limits.max_model_len) for pool in pools]
    most_tokens = np.array([model.limits.max_model_len for model in narrowest])
    is_bad = (np.minimum(prompt, answer) < 1) | (prompt + answer > most_tokens[pool_of])
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        model = narrowest[pool_of[row]]
        problem = model.limits.find_problem(int(prompt[row]), int(answer[row]))
        raise InputError(
            f"Row {row} of the demand, for expert {model.expert}, {problem}. Shorten prompts or answers "
            f"(workload.output_tokens), or raise experts.{model.expert}.max_model_len."
        )


def check_due(load: OpenLoop, rows: Rows) -> list[float]:
    """When the requests are due. Raises InputError unless there is one for each, ascending, and some count."""
    due_s = np.atleast_1d(np.asarray(load.due_s, dtype=np.float64))
    if due_s.shape != (len(rows.pool),):
        raise InputError(
            f"The open loop has {due_s.size} times and the demand {len(rows.pool)} requests. Give one time per request."
        )
    is_fine = np.isfinite(due_s) & (due_s >= 0) & (np.diff(due_s, prepend=0.0) >= 0)
    if not is_fine.all():
        bad = int(np.flatnonzero(~is_fine)[0])
        raise InputError(f"Arrival {bad} is due at {due_s[bad]} s. Allowed: seconds from 0 on, in ascending order.")
    num_counted = load.num_counted
    if num_counted is not None and not 1 <= num_counted <= due_s.size:
        raise InputError(f"num_counted={num_counted} of {due_s.size} requests. Allowed: from 1 to all of them.")
    return list(map(float, due_s))
