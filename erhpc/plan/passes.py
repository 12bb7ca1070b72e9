"""Passes: what lets a redirected request in at one replica for a short time, in the place of the run's key. Pure.

A gateway that redirects signs one into the URL, because HTTP clients drop the key on their way to another server; the
replica checks it. Standard library only: the checking half runs in vLLM's own Python too, which has nothing of erhpc's.
"""

from __future__ import annotations

import hashlib
import hmac

PASS_PARAMETER = "erhpc_pass"
"""Parameter of the URL's query that holds the pass."""
PASS_LIFETIME_S = 60
"""How long a gateway's passes are valid: longer than the clocks of two nodes differ plus the time a client needs to
follow."""
REPLICA_VARIABLE = "ERHPC_REPLICA"
"""Environment variable that tells a vLLM server which replica it is."""
_LONGEST_TIME = 12
"""Digits of a time in seconds; no pass is valid for 30,000 years."""


def sign_pass(key: str, replica: str, expires_s: int) -> str:
    """A pass for `replica` until `expires_s` (Unix time): that time and the HMAC-SHA-256 under `key` of both."""
    signed = hmac.new(key.encode(), f"{replica}\n{expires_s}".encode(), hashlib.sha256)
    return f"{expires_s}.{signed.hexdigest()}"


def check_pass(key: str, replica: str, value: str, now_s: float) -> bool:
    """Whether `value` is a pass for `replica` that is valid at `now_s` (Unix time); how long it takes tells nothing."""
    expires_s = value.partition(".")[0]
    if len(expires_s) > _LONGEST_TIME or not (expires_s.isascii() and expires_s.isdigit()):
        return False
    signed = sign_pass(key, replica, int(expires_s))
    is_signed = hmac.compare_digest(signed.encode(), value.encode(errors="replace"))
    return is_signed and now_s <= int(expires_s)
