"""When a request may be made again on another replica. Pure.

Only before anything of an answer has been passed on, and only so often: when replicas fail because they have too much
to do, repeating everything would give them more (public post-mortems call it a retry storm).
"""

from __future__ import annotations

MAX_RETRIES = 2
"""Per request."""
SHARE = 0.1
"""Of all requests, in the long run."""
RESERVE = 10.0
"""Retries that may be made at once, beyond the share: few requests have a right to be retried too."""

_RETRIED_STATUSES = frozenset({502, 504})
_RETRIED_IF_TOLD = frozenset({429, 503})


class RetryBudget:
    """Each request pays in a share of a retry, each retry takes one."""

    __slots__ = ("_saved",)

    def __init__(self) -> None:
        self._saved = RESERVE

    def note_request(self) -> None:
        """A request has come."""
        if self._saved < RESERVE:
            self._saved += SHARE

    def take(self) -> bool:
        """Whether a retry may be made; it is counted then."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


def is_retried(status: int, *, says_when: bool) -> bool:
    """Whether an answer of this status may be had elsewhere; `says_when`: it has the field Retry-After."""
    return status in _RETRIED_STATUSES or (status in _RETRIED_IF_TOLD and says_when)


def is_failure(status: int) -> bool:
    """Whether it counts against the replica: 500 may be the request's fault, 429 and 503 say that it is busy."""
    return status in _RETRIED_STATUSES


def is_sign_of_life(status: int) -> bool:
    """Whether it says that the replica is well."""
    return status < 500 and status != 429
