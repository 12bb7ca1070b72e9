"""What all who speak the OpenAI protocol here agree on: gateway, load and emulated experts. Pure.

It knows no HTTP library and no body of a request.
"""

from __future__ import annotations

import re

API_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
"""Route of each of config.APIS."""

EXPERT_HEADER = "x-erhpc-expert"
REPLICA_HEADER = "x-erhpc-replica"
"""Where a gateway says to which expert and replica a request went; answers and redirects bear them."""
QUEUE_HEADER = "x-erhpc-queue-us"
"""Where it says how long the request waited for its turn, microseconds; absent if it did not wait."""
SESSION_HEADER = "x-session-id"
"""Where a client says which requests belong together: policy `session` sends them to the same replica."""

OWNER = "erhpc"
"""`owned_by` in /v1/models of a gateway before real models."""
EMULATED_OWNER = "erhpc-"
"""How `owned_by` in /v1/models begins where no model stands behind a server: emulated and null experts."""
_EMULATED_OWNER = re.compile(rf"{EMULATED_OWNER}emulated(?:-x([0-9.e+-]+))?")


def name_emulated_owner(speedup: float) -> str:
    """`owned_by` of an emulated expert whose time runs so many times as fast."""
    return f"{EMULATED_OWNER}emulated" + ("" if speedup == 1 else f"-x{speedup:g}")


def read_speedup(owner: str) -> float:
    """How many times as fast time runs for the owner of a model; 1 for all that does not say so."""
    found = _EMULATED_OWNER.fullmatch(owner)
    return float(found[1]) if found and found[1] else 1.0


KEEP_ALIVE_S = 4.0
"""Idle time after which no client uses a connection again; uvicorn, which serves vLLM, closes them after 5 s."""

CHARS_PER_TOKEN = 4
"""Rule of thumb for English text and byte-pair vocabularies of 32,000 to 128,000 entries."""
