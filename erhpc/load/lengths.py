"""Draws token counts from the distribution a workload asks for.

It does not know what the counts are for, and owns no random stream: the generator is an argument.
"""

from __future__ import annotations

from math import log

from numpy.random import Generator

from erhpc.config import LengthConfig


def draw_tokens(length: LengthConfig, random: Generator) -> int:
    """One token count of `length`, from `low` to `high`.

    The mean of a log-normal variable is exp(mu + sigma^2 / 2), so mu = ln(mean) - sigma^2 / 2; clipping moves the
    realised mean towards the middle when `low` and `high` are near.
    """
    if length.kind == "uniform":
        return int(random.integers(length.low, length.high, endpoint=True))
    if length.kind == "lognormal":
        drawn = float(random.lognormal(log(length.mean) - length.sigma**2 / 2, length.sigma))
        return int(min(max(round(drawn), length.low), length.high))
    return round(length.mean)
