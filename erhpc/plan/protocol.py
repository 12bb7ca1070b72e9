"""What all who speak the OpenAI protocol here agree on: gateway, load and emulated experts. Pure.

It knows no HTTP library and no body of a request.
"""

from __future__ import annotations

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

KEEP_ALIVE_S = 4.0
"""Idle time after which no client uses a connection again; uvicorn, which serves vLLM, closes them after 5 s."""

CHARS_PER_TOKEN = 4
"""Rule of thumb for English text and byte-pair vocabularies of 32,000 to 128,000 entries."""
