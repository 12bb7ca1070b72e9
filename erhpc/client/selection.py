"""Which streaming client a configuration asks for."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from erhpc.client.exchange import Patience, StreamingClient
from erhpc.client.native import NativeClient
from erhpc.client.streaming import AiohttpClient
from erhpc.config import LoadConfig, WorkloadConfig


def make_client(
    url: str, workload: WorkloadConfig, load: LoadConfig, key: str | None
) -> AbstractAsyncContextManager[StreamingClient]:
    """The client that `load` names, for requests to `url`. Raises ConfigError if it cannot ask there."""
    patience = Patience(
        total_s=workload.timeout_s,
        connect_s=workload.connect_timeout_s,
        first_token_s=workload.first_token_timeout_s,
        idle_s=workload.idle_timeout_s,
    )
    if load.client == "aiohttp":
        return AiohttpClient(url, patience=patience, key=key)
    return NativeClient(url, patience=patience, key=key, stamps=load.stamps)
