"""What is predicted of a run before it costs a GPU-hour, and how carefully."""

from __future__ import annotations

from dataclasses import dataclass, field

from erhpc.config.experts import QUANTIZATIONS
from erhpc.config.workload import MAX_USERS
from erhpc.errors import ConfigError, require_choice, require_range

UNQUANTIZED = "none"


@dataclass
class PredictConfig:
    """The prediction that `plan` shows and `launch` saves, and the search for placements."""

    enabled: bool = True
    """false: nothing is predicted, neither shown by plan nor saved by launch."""
    draws: int = 4
    """Sets of constants, drawn from the ranges that their evidence leaves, whose predictions make the 90 % interval;
    each costs as much time as the prediction itself."""
    requests_per_user: int = 3
    """Requests that a simulated level sends per user, at least 100 in all; more steady numbers, more time."""
    users: int | None = None
    """Users for which placements are compared (closed loop); None: those of the largest level."""
    quantizations: list[str] = field(default_factory=lambda: [UNQUANTIZED, "awq", "fp8"])
    """Variants that placements are tried with, beside what each expert has: none (16 bit), awq, gptq, fp8. How well a
    quantised model answers is not predicted. Experts with weights of their own keep what they have."""

    def __post_init__(self) -> None:
        require_range("predict.draws", self.draws, 2, 1000)
        require_range("predict.requests_per_user", self.requests_per_user, 2, 10_000)
        if self.users is not None:
            require_range("predict.users", self.users, 1, MAX_USERS)
        if not self.quantizations:
            raise ConfigError("predict.quantizations is empty. Allowed: a list of none, awq, gptq, fp8.")
        for name in self.quantizations:
            require_choice("predict.quantizations", name, (UNQUANTIZED, *QUANTIZATIONS))
