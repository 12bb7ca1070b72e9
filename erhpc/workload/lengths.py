"""Draws token counts from the distribution a workload asks for.

It does not know what the counts are for, and owns no random stream: the generator is an argument.
"""

from __future__ import annotations

from math import log

from numpy.random import Generator

from erhpc.config import LengthConfig
from erhpc.errors import ConfigError


def draw_tokens(length: LengthConfig, random: Generator, traced: int | None = None) -> int:
    """One token count of `length`, from `low` to `high`.

    Kind `trace` takes `traced`, the count of a row of the trace, as it is (but at least 1), and draws nothing. The
    mean of a log-normal variable is exp(mu + sigma^2 / 2), so mu = ln(mean) - sigma^2 / 2; clipping moves the
    realised mean towards the middle when `low` and `high` are near.

    Raises:
        ConfigError: the kind is `trace` and there is no row.
    """
    if length.kind == "uniform":
        return int(random.integers(length.low, length.high, endpoint=True))
    if length.kind == "lognormal":
        drawn = round(float(random.lognormal(log(length.mean) - length.sigma**2 / 2, length.sigma)))
        return min(max(drawn, length.low), length.high)
    if length.kind == "trace":
        if traced is None:
            raise ConfigError("A length of kind trace needs rows of a trace. Set workload.trace=FILE.")
        return max(traced, 1)
    return round(length.mean)
