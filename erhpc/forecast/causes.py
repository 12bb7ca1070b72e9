"""What holds a simulated level back, and where along the load that begins: the knee.

Pure: it looks at what the busiest replica has in hand at some moments of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from erhpc.twin.demand import ReplicaModel
from erhpc.twin.records import Window
from erhpc.twin.simulation import Prediction
from erhpc.twin.step_time import Batch

NUM_MOMENTS = 48
"""Moments of the window that are looked at."""
FULL_SEATS, FULL_KV = 0.85, 0.8
"""Share of max_num_seqs, or of the KV cache, that is taken on average where it holds requests back: a bit of either is
free whenever an answer ends."""
SKEWED = 1.5
"""Times the mean load of a replica from which the busiest one is said to hold the others back."""
KNEE_ELASTICITY = 0.5
"""Below the knee, twice the load yields at least 1.4 times the tokens."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cause:
    """Why more load yields little more: a word, and the sentence around it."""

    word: str
    """max_num_seqs, KV cache, routing skew, api_server or compute."""
    detail: str


def find_cause(prediction: Prediction, window: Window) -> Cause:
    """What the busiest replica runs into, or that it is the only one that is busy."""
    moments_s = np.linspace(window.start_s, window.end_s, NUM_MOMENTS + 2)[1:-1]
    sent_s, first_s, last_s = prediction.sent_s, prediction.first_token_s, prediction.last_token_s
    in_flight, running, kv_tokens = np.zeros((3, len(prediction.replicas)))
    span_s = np.maximum(last_s - first_s, 1e-9)
    for moment_s in moments_s:
        present = (sent_s <= moment_s) & (moment_s < last_s)
        decoding = (first_s <= moment_s) & (moment_s < last_s)
        held = prediction.tokens_in + prediction.tokens_out * np.clip((moment_s - first_s) / span_s, 0.0, 1.0)
        in_flight += _sum_by_replica(prediction, present.astype(float))
        running += _sum_by_replica(prediction, decoding.astype(float))
        kv_tokens += _sum_by_replica(prediction, decoding * held)
    in_flight, running, kv_tokens = in_flight / NUM_MOMENTS, running / NUM_MOMENTS, kv_tokens / NUM_MOMENTS
    busiest = int(in_flight.argmax())
    model = prediction.replicas[busiest]
    seats, kv_share = running[busiest] / model.limits.max_num_seqs, kv_tokens[busiest] / model.limits.kv_capacity_tokens
    inner = _explain_api_server(model, float(running[busiest]), float(kv_tokens[busiest]))
    inner = inner or _explain_replica(float(seats), float(kv_share), prediction, busiest)
    mean = float(in_flight.mean())
    if len(prediction.replicas) > 1 and mean > 0 and in_flight[busiest] >= SKEWED * mean:
        share, even = in_flight[busiest] / in_flight.sum(), 1 / len(prediction.replicas)
        return Cause(
            "routing skew",
            f"routing skew: {model.replica} has {share:.0%} of the requests in flight, {even:.0%} if all had as many; "
            f"its own bound is {inner.detail}",
        )
    return inner


def find_knee(loads: Sequence[float], tokens_per_s: Sequence[float]) -> int | None:
    """Index of the last load before throughput grows less than half as fast as the load; None if it always does."""
    for index in range(1, len(loads)):
        if loads[index] <= loads[index - 1] or min(tokens_per_s[index - 1 : index + 1]) <= 0:
            continue
        grown = log(tokens_per_s[index] / tokens_per_s[index - 1]) / log(loads[index] / loads[index - 1])
        if grown < KNEE_ELASTICITY:
            return index - 1
    return None


def _explain_api_server(model: ReplicaModel, num_seqs: float, kv_tokens: float) -> Cause | None:
    """Whether steps of so many sequences take as long as the API server needs for their tokens."""
    whole = round(num_seqs)
    send_s = model.send_s(whole)
    if not send_s:
        return None
    step_s = model.step_time.step_s(Batch(whole, round(kv_tokens), num_logit_rows=whole))
    if send_s < step_s * (1 - 1e-9):
        return None
    return Cause(
        "api_server",
        f"api_server: it streams {whole / send_s:,.0f} tokens per second, one to each of {whole} sequences every "
        f"{1000 * send_s:.3g} ms (engine_args: stream-interval sends several at once, api-server-count adds processes)",
    )


def _explain_replica(seats: float, kv_share: float, prediction: Prediction, busiest: int) -> Cause:
    limits = prediction.replicas[busiest].limits
    if kv_share >= FULL_KV or (prediction.num_preemptions and kv_share >= seats):
        preempted = f", {prediction.num_preemptions} preemptions" if prediction.num_preemptions else ""
        return Cause(
            "KV cache", f"the KV cache: {kv_share:.0%} of {limits.kv_capacity_tokens:,} tokens taken{preempted}"
        )
    if seats >= FULL_SEATS:
        return Cause("max_num_seqs", f"max_num_seqs={limits.max_num_seqs}: {seats:.0%} taken, the others wait")
    return Cause("compute", f"compute: {seats:.0%} of max_num_seqs and {kv_share:.0%} of the KV cache taken")


def _sum_by_replica(prediction: Prediction, weights: Floats) -> Floats:
    counts = np.bincount(prediction.replica, weights=weights, minlength=len(prediction.replicas))
    return counts.astype(np.float64)
