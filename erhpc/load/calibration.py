"""What a client costs and how far it is off, from a run against a null expert whose tokens are their own send times.

Pure: it is given stamps and CPU seconds, and starts neither client nor expert.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from erhpc.results.record import Stamper

USABLE_CPU_SHARE = 0.85
"""Share of a core that a client may use before its event loop runs late."""
NS_PER_S = 1e9
US_PER_S = 1e6

_STAMP = re.compile(rb'"(?:content|text)":" (\d+)"')

Nanoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStamps:
    """When each token of one answer arrived by the client, and when the null expert sent it."""

    reported_ns: Nanoseconds
    """(tokens,) monotonic nanoseconds; tokens that arrived together have the same."""
    true_ns: Nanoseconds
    """(tokens,) monotonic nanoseconds of the same clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCost:
    """What all client processes together took in a while, and the CPU time it cost them."""

    tokens: int
    requests: int
    cpu_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What these clients cost on this machine, their error at `users` users, and how much they could take."""

    us_per_token: float
    """CPU microseconds per token; includes the requests' share if only one answer length was measured."""
    us_per_request: float
    """CPU microseconds per request besides its tokens; 0 if only one answer length was measured."""
    ttft_error_mean_s: float
    """Reported minus true time of the first token."""
    ttft_error_p99_s: float
    gap_error_p99_s: float
    """99th percentile of how far a gap between two tokens is off, in either direction."""
    stamped_by: Stamper
    users: int
    tokens_per_s: float
    """Tokens per second while the errors were measured."""
    capacity_tokens_per_s: float
    """Tokens per second that all client processes can take, requests not counted."""

    def capacity_at(self, tokens_per_request: float) -> float:
        """Tokens per second that all client processes can take if answers have so many tokens."""
        us_with_share = self.us_per_token + self.us_per_request / tokens_per_request
        return self.capacity_tokens_per_s * self.us_per_token / us_with_share


def parse_stamps(stream: bytes) -> Nanoseconds:
    """The send times in the body of one answer of a null expert, chunked or not, in the order of its tokens."""
    return np.array([int(digits) for digits in _STAMP.findall(stream)], dtype=np.int64)


def summarise_calibration(
    answers: Sequence[AnswerStamps],
    costs: Sequence[ClientCost],
    *,
    stamped_by: Stamper,
    users: int,
    num_processes: int,
) -> Calibration:
    """The calibration from at least one answer with two tokens, and the cost of one or more answer lengths.

    `costs[0]` is of the time in which `answers` came. Two costs with different tokens per request tell the cost of
    a token from that of a request.

    Raises:
        ValueError: there is no such answer, stamps are missing, or nothing was taken at no measurable cost.
    """
    errors_ns = [_errors_ns(answer) for answer in answers if answer.true_ns.size]
    if not any(errors.size > 1 for errors in errors_ns):
        raise ValueError("no answer has two tokens, so that no gap can be compared. Measure longer.")
    first_s = np.array([errors[0] for errors in errors_ns]) / NS_PER_S
    gap_s = np.abs(np.concatenate([np.diff(errors) for errors in errors_ns])) / NS_PER_S
    us_per_token, us_per_request = _split_cost(costs)
    return Calibration(
        us_per_token=us_per_token,
        us_per_request=us_per_request,
        ttft_error_mean_s=float(first_s.mean()),
        ttft_error_p99_s=float(np.quantile(first_s, 0.99)),
        gap_error_p99_s=float(np.quantile(gap_s, 0.99)),
        stamped_by=stamped_by,
        users=users,
        tokens_per_s=costs[0].tokens / costs[0].duration_s,
        capacity_tokens_per_s=USABLE_CPU_SHARE * US_PER_S / us_per_token * num_processes,
    )


def _errors_ns(answer: AnswerStamps) -> Nanoseconds:
    if answer.reported_ns.shape != answer.true_ns.shape:
        raise ValueError(
            f"an answer has {answer.reported_ns.size} reported and {answer.true_ns.size} true stamps. "
            "Give one of each per token."
        )
    return answer.reported_ns - answer.true_ns


def _split_cost(costs: Sequence[ClientCost]) -> tuple[float, float]:
    """CPU microseconds per token and per request by least squares, neither below 0."""
    tokens = np.array([cost.tokens for cost in costs], dtype=np.float64)
    requests = np.array([cost.requests for cost in costs], dtype=np.float64)
    cpu_us = US_PER_S * np.array([cost.cpu_s for cost in costs])
    if not tokens.any() or not cpu_us.all():
        raise ValueError(f"no tokens, or no CPU time: {list(costs)}. Measure longer.")
    per_token, per_request = np.linalg.lstsq(np.column_stack([tokens, requests]), cpu_us, rcond=None)[0]
    lengths = {cost.tokens * costs[0].requests == costs[0].tokens * cost.requests for cost in costs}
    if lengths == {True} or per_request < 0 or per_token <= 0:
        return float(tokens @ cpu_us / (tokens @ tokens)), 0.0
    return float(per_token), float(per_request)
