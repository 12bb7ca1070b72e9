"""Asks an OpenAI-compatible server which models it has."""

from __future__ import annotations

import aiohttp
import msgspec

from erhpc.client.target import parse_target
from erhpc.plan.protocol import EMULATED_OWNER

ASK_TIMEOUT_S = 10.0


def find_base_url(url: str) -> str:
    """`url` without /v1 and what follows the host. Raises ConfigError if it is none."""
    return parse_target(url.rstrip("/").removesuffix("/v1")).url.rstrip("/")


async def list_models(url: str, key: str | None) -> dict[str, str]:
    """The models of the server at `url` and their owners, none if it lists none; `key` is sent as a bearer token.

    Raises:
        ConfigError: `url` is none.
        aiohttp.ClientError, OSError: it cannot be asked.
    """
    target = parse_target(url.rstrip("/").removesuffix("/v1"))
    connector = aiohttp.UnixConnector(target.host) if target.scheme == "unix" else None
    base = "http://localhost" if target.scheme == "unix" else target.url.rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout, trust_env=False) as session,
        session.get(f"{base}/v1/models") as answer,
    ):
        return _read_cards(await answer.read())


def is_emulated(models: dict[str, str]) -> bool:
    """Whether a server says that no model stands behind it, so that its numbers cannot pass for real ones."""
    return any(owner.startswith(EMULATED_OWNER) for owner in models.values())


def _read_cards(body: bytes) -> dict[str, str]:
    """Models and their owners; none if this is no list of models."""
    try:
        cards = msgspec.json.decode(body)["data"]
        return {str(card["id"]): str(card.get("owned_by", "")) for card in cards}
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return {}
