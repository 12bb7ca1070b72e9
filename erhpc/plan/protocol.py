"""What all who speak the OpenAI protocol here agree on: gateway, load and emulated experts. Pure.

It knows no HTTP library and no body of a request.
"""

from __future__ import annotations

API_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
"""Route of each of config.APIS."""

OWNER = "erhpc"
"""`owned_by` in /v1/models of a gateway before real models."""
EMULATED_OWNER = "erhpc-"
"""How `owned_by` in /v1/models begins where no model stands behind a server: emulated and null experts."""

KEEP_ALIVE_S = 4.0
"""Idle time after which no client uses a connection again; uvicorn, which serves vLLM, closes them after 5 s."""

CHARS_PER_TOKEN = 4
"""Rule of thumb for English text and byte-pair vocabularies of 32,000 to 128,000 entries."""
