"""What a simulated level would be reported as: the columns of a measured level, read from arrays of times.

The formulas are those of `erhpc.results.metrics`, on whole arrays instead of records: a plan shows dozens of levels.
One is rounder: the tokens of an answer that lies across an edge of the window are spread evenly over it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from erhpc.config import SloConfig
from erhpc.errors import InputError
from erhpc.results.metrics import QUANTILES, quantiles
from erhpc.twin.records import Window
from erhpc.twin.simulation import Prediction

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def read_level(prediction: Prediction, window: Window, slo: SloConfig) -> dict[str, Any]:
    """The columns of LEVEL_COLUMNS that a simulation knows, by name.

    Raises:
        InputError: no request is sent in the window.
    """
    length_s = window.end_s - window.start_s
    sent = (prediction.sent_s >= window.start_s) & (prediction.sent_s < window.end_s)
    if not sent.any():
        raise InputError(
            f"No request is sent between {window.start_s:g} s and {window.end_s:g} s of the level: nothing to predict. "
            "Lengthen workload.measure_s, or raise the rate."
        )
    ended = (prediction.last_token_s >= window.start_s) & (prediction.last_token_s < window.end_s)
    ttft_s = prediction.first_token_s - prediction.sent_s
    e2e_s = prediction.last_token_s - prediction.sent_s
    tokens = prediction.tokens_out
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot_s = np.where(tokens > 1, (prediction.last_token_s - prediction.first_token_s) / (tokens - 1), np.nan)
    row: dict[str, Any] = {
        "warmup_s": window.start_s,
        "window_s": length_s,
        "requests_ok": int(sent.sum()),
        "requests_failed": 0,
        "requests_cancelled": 0,
        "users_held": float(_overlap_s(prediction.sent_s, prediction.last_token_s, window).sum() / length_s),
        "requests_per_s": float(ended.sum() / length_s),
        "due_per_s": float(sent.sum() / length_s),
        "input_tokens_per_s": float(prediction.tokens_in[ended].sum() / length_s),
        "output_tokens_per_s": count_tokens(prediction, window) / length_s,
        "expert_share": _share_experts(prediction, sent),
    }
    row["total_tokens_per_s"] = row["input_tokens_per_s"] + row["output_tokens_per_s"]
    for name, values in (("ttft", ttft_s), ("tpot", tpot_s), ("e2e", e2e_s), ("normalised", e2e_s / tokens)):
        found = quantiles(values[sent & np.isfinite(values)]) or {}
        row |= {f"{name}_{key}_s": found.get(key) for key in ("mean", *dict(QUANTILES))}
    if slo.is_given:
        met = _meet(slo, ttft_s, tpot_s, e2e_s)
        row["slo_attainment"] = float(met[sent].mean())
        row["goodput_per_s"] = float((met & ended).sum() / length_s)
    return row


def count_tokens(prediction: Prediction, window: Window) -> float:
    """Answer tokens that arrive within the window."""
    first_s, last_s = prediction.first_token_s, prediction.last_token_s
    first_inside = (first_s >= window.start_s) & (first_s < window.end_s)
    lasting = last_s > first_s
    shares = np.zeros(first_s.shape)
    shares[lasting] = _overlap_s(first_s, last_s, window)[lasting] / (last_s - first_s)[lasting]
    return float(first_inside.sum() + (shares * (prediction.tokens_out - 1)).sum())


def _overlap_s(start_s: Floats, end_s: Floats, window: Window) -> Floats:
    overlap_s: Floats = np.minimum(end_s, window.end_s) - np.maximum(start_s, window.start_s)
    return np.maximum(overlap_s, 0.0)


def _meet(slo: SloConfig, ttft_s: Floats, tpot_s: Floats, e2e_s: Floats) -> Mask:
    """Which requests keep every bound; one of a single token has no TPOT, and keeps that."""
    met = np.ones(ttft_s.shape, dtype=bool)
    for values, bound_s in ((ttft_s, slo.ttft_s), (tpot_s, slo.tpot_s), (e2e_s, slo.e2e_s)):
        if bound_s is not None:
            met &= ~(values > bound_s)
    return met


def _share_experts(prediction: Prediction, sent: Mask) -> dict[str, float]:
    counts = np.bincount(prediction.replica[sent], minlength=len(prediction.replicas))
    shares: dict[str, float] = {}
    for model, count in zip(prediction.replicas, counts.tolist(), strict=True):
        shares[model.expert] = shares.get(model.expert, 0.0) + count / max(1, int(sent.sum()))
    return dict(sorted(shares.items()))
