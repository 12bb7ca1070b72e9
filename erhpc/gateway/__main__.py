"""The verb `python -m erhpc.gateway --experts URL...`: a gateway before OpenAI-compatible servers that run already.

Exit code 0: told to stop by TERM or INT; 1: a port cannot be had, or its processes died; 2: the configuration is wrong.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec

from erhpc.cluster import network
from erhpc.composition import verb
from erhpc.config import AUTO_MODEL, StandaloneGatewayConfig
from erhpc.discovery import find_base_url, is_emulated, list_models
from erhpc.errors import ConfigError, ProcessError
from erhpc.gateway.supervisor import supervise
from erhpc.key_file import read_key_file
from erhpc.plan.specs import Endpoint, GatewaySpec
from erhpc.standalone import stop_on_signals

EXIT_FAILED = 1
STATUS_OFFSET = 1000
"""From the port to that of the status: servers in front of which a gateway stands are often on the ports next to it."""
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(\w+://.*)")


@verb(StandaloneGatewayConfig, "gateway")
def main(config: StandaloneGatewayConfig, yaml: str) -> int:
    """Serve until told to stop."""
    try:
        asyncio.run(_serve(config))
    except ProcessError as error:
        print(f"ProcessError: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


async def _serve(config: StandaloneGatewayConfig) -> None:
    stop = stop_on_signals()
    spec = await build_spec(config)
    with tempfile.TemporaryDirectory(prefix="erhpc-gateway-") as folder:
        path = Path(folder) / "spec.json"
        path.write_bytes(msgspec.json.encode(spec))
        async with supervise(spec, path, key=read_key_file("key", config.key)) as places:
            print(f"gateway: {places.url}/v1", flush=True)
            for endpoint in spec.endpoints:
                print(f"  {endpoint.expert}: {endpoint.url} ({endpoint.model})")
            print(f"status: {places.status_url}/status", flush=True)
            if config.key is None and config.gateway.keys is None and not is_loopback(config.host):
                print(f"Everyone who reaches {config.host} may ask: give key=FILE.", file=sys.stderr, flush=True)
            await stop.wait()


async def build_spec(config: StandaloneGatewayConfig) -> GatewaySpec:
    """Ask every server for its models, and put the gateway before them.

    Raises:
        ConfigError: a server cannot be asked or has no model, or a name cannot be that of an expert.
        InputError: a file with a key cannot be read.
    """
    token = read_key_file("expert_key", config.expert_key)
    endpoints: list[Endpoint] = []
    models: list[dict[str, str]] = []
    for given in config.experts:
        named = _NAMED.fullmatch(given)
        url = named[2] if named else given
        found = await _ask(url, token)
        models.append(found)
        model = next(iter(found))
        expert = named[1] if named else model.rsplit("/", 1)[-1]
        if expert == AUTO_MODEL:
            raise ConfigError(
                f"experts={given!r}: {AUTO_MODEL!r} is the name under which the router answers. Give NAME=URL."
            )
        number = sum(endpoint.expert == expert for endpoint in endpoints)
        endpoints.append(Endpoint(replica=f"{expert}-{number}", expert=expert, model=model, url=find_base_url(url)))
    status_port = config.status_port if config.status_port is not None else config.port and config.port + STATUS_OFFSET
    return GatewaySpec(
        host=config.host,
        port=config.port,
        status_port=status_port,
        endpoints=endpoints,
        router=config.router,
        limits=config.gateway,
        artefact=config.router.artefact if config.router.policy == "cluster" else None,
        seed=config.seed,
        is_emulated=any(is_emulated(found) for found in models),
        key_file=config.key,
        expert_key_file=config.expert_key or "",
    )


async def _ask(url: str, token: str | None) -> dict[str, str]:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"experts={url!r} must begin with http:// or https://, e.g. http://127.0.0.1:8001.")
    try:
        found = await list_models(url, token)
    except (aiohttp.ClientError, OSError) as error:
        raise ConfigError(
            f"experts={url}: the server cannot be asked ({type(error).__name__}: {error}). Is it up? Give its base URL."
        ) from error
    if not found:
        raise ConfigError(f"experts={url}: /v1/models lists no model. If the server needs a key, give expert_key=FILE.")
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    try:
        return network.is_loopback(host)
    except ValueError:
        return host == "localhost"


def take_experts(arguments: Sequence[str]) -> list[str]:
    """Turn `--experts URL...` into the override that Hydra reads; whatever has no :// behind it is no URL."""
    if "--experts" not in arguments:
        return list(arguments)
    begin = arguments.index("--experts")
    end = begin + 1
    while end < len(arguments) and is_expert(arguments[end]):
        end += 1
    quoted = ",".join("'" + url.replace("\\", "\\\\").replace("'", "\\'") + "'" for url in arguments[begin + 1 : end])
    return [*arguments[:begin], f"experts=[{quoted}]", *arguments[end:]]


def is_expert(argument: str) -> bool:
    """Whether a word after --experts is a server, and not the next override."""
    return "://" in argument.partition("=")[0] or _NAMED.fullmatch(argument) is not None


if __name__ == "__main__":
    sys.argv[1:] = take_experts(sys.argv[1:])
    main()
