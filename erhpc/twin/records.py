"""A prediction in the words of a measurement: one record per request, the window they count in, and `predicted`.

Pure: it makes the records of `erhpc.results.record`; whoever stores them knows Parquet. Whatever a client would know of
itself (lag, CPU, connections) stays empty, and no field claims that anything came over a wire.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from erhpc.errors import InputError
from erhpc.results.record import PREDICTED, ClientPart, LevelIdentity, Origin, Phase, RequestRecord
from erhpc.twin.simulation import Prediction

NS_PER_S = 1e9
US_PER_S = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a demand's rows are called in the records."""

    prompt_ids: list[str]
    domains: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When the load of a level is the one that was asked for, seconds since it began."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s < float("inf"):
            raise InputError(
                f"No window from {self.start_s} s to {self.end_s} s: the load was never what was asked for. Let more "
                "requests be sent (at least three per user), or shorten the warm-up."
            )


def find_window(prediction: Prediction, *, warmup_s: float = 0.0) -> Window:
    """From when every user had its first answer, but not before `warmup_s`, until the last request was sent.

    In an open loop, where each request is a user's first and only one, from `warmup_s`.

    Raises:
        InputError: there is no such time.
    """
    start_s = warmup_s
    if prediction.sequence.any():
        start_s = max(start_s, float(prediction.last_token_s[prediction.sequence == 0].max()))
    return Window(start_s=start_s, end_s=float(prediction.sent_s.max()))


def to_part(
    prediction: Prediction, window: Window, texts: Texts, *, started_utc: str, latency_from: Origin = "sent"
) -> ClientPart:
    """The records of a predicted level, as if one client had measured them on a clock that begins with the level.

    Args:
        prediction: what became of the requests.
        window: when they count.
        texts: names of the rows of the demand.
        started_utc: when it was predicted, ISO 8601.
        latency_from: `scheduled` in an open loop.
    """
    names = ("row", "user", "sequence", "replica", "tokens_in", "tokens_out", "sent_s")
    columns = [getattr(prediction, name).tolist() for name in names]
    times = (prediction.sent_s, prediction.first_token_s, prediction.last_token_s)
    columns += [np.rint(times_s * NS_PER_S).astype(np.int64).tolist() for times_s in times]
    records = [
        RequestRecord(
            request_id=f"predicted-{number}",
            phase=_name_phase(sent_s, window),
            user=user,
            sequence=sequence,
            prompt_id=texts.prompt_ids[row],
            domain=texts.domains[row],
            expert=prediction.replicas[replica].expert,
            replica=prediction.replicas[replica].replica,
            scheduled_monotonic_ns=sent_ns,
            sent_monotonic_ns=sent_ns,
            latency_from=latency_from,
            stamped_by="twin",
            first_token_monotonic_ns=first_ns,
            last_token_monotonic_ns=last_ns,
            end_monotonic_ns=last_ns,
            token_gaps_us=_to_gaps_us(prediction.token_times_s(number)),
            frames=tokens_out,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            max_tokens=tokens_out,
            status="ok",
        )
        for number, (row, user, sequence, replica, tokens_in, tokens_out, sent_s, sent_ns, first_ns, last_ns) in (
            enumerate(zip(*columns, strict=True))
        )
    ]
    return ClientPart(
        records=records,
        window_start_monotonic_ns=round(window.start_s * NS_PER_S),
        window_end_monotonic_ns=round(window.end_s * NS_PER_S),
        warmup_s=window.start_s,
        started_utc=started_utc,
        lag_p99_s=0.0,
    )


def identify_level(**columns: Any) -> LevelIdentity:
    """The columns of a level, which say `engine=predicted`; the arguments are the other fields of LevelIdentity."""
    return LevelIdentity(engine=PREDICTED, **columns)


def _name_phase(sent_s: float, window: Window) -> Phase:
    if sent_s < window.start_s:
        return "warmup"
    return "measure" if sent_s < window.end_s else "drain"


def _to_gaps_us(times_s: npt.NDArray[np.float64]) -> array[int]:
    gaps = array("i")
    # Times are rounded, not gaps: a hundred rounded gaps would add up to another time.
    gaps.frombytes(np.diff(np.rint(times_s * US_PER_S)).astype(np.intc).tobytes())
    return gaps
