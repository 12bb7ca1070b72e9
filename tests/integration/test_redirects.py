"""Clients that a gateway sends on to a replica: they stream from it with a pass, and records tell who it was."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import openai
import pytest

from erhpc.client.exchange import Exchange
from erhpc.client.selection import make_client
from erhpc.config import ArchitectureConfig, GatewayConfig, LoadConfig, RouterConfig, WorkloadConfig
from erhpc.config.routing import RELAYS
from erhpc.experts.emulated import EmulatedExpert
from erhpc.experts.emulated_serving import serve_as
from erhpc.gateway import prober
from erhpc.gateway.server import serve
from erhpc.plan.levels import LoadPoint
from erhpc.plan.specs import EmulatedExpertSpec, Endpoint, GatewaySpec
from erhpc.twin.step_time import Batch
from tests.fakes.redirecting_gateway import RedirectingGateway
from tests.load_level import make_spec, run_level
from tests.streams import request_of

KEY = "s3cret"
CLIENTS = {"native": LoadConfig(), "loop": LoadConfig(stamps="loop"), "aiohttp": LoadConfig(client="aiohttp")}
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
CHAT = "/v1/chat/completions"


class Step:
    """A step of 2 ms, whatever is in it."""

    def step_s(self, batch: Batch) -> float:
        return 0.002


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def redirecting(**changes: object) -> AsyncIterator[RedirectingGateway]:
    """A gateway that redirects to a real emulated expert; both want the key."""
    spec = EmulatedExpertSpec(
        replica="math-0",
        model="math",
        aliases=["auto"],
        host="127.0.0.1",
        port=find_port(),
        architecture=ArchitectureConfig(2, 256, 512, 4, 4, 4096),
        dtype="bfloat16",
        quantization=None,
        tensor_parallel=1,
        gpu="a100_80",
        profile="vllm-v1-sync",
        kv_capacity_tokens=65536,
        max_model_len=1024,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
    )
    expert = EmulatedExpert(spec, replace(serve_as(spec), step_time=Step()), key=KEY)
    await expert.start()
    try:
        gateway = RedirectingGateway(f"http://127.0.0.1:{spec.port}", spec.replica, KEY)
        async with replace(gateway, **changes).serving() as serving:
            yield serving
    finally:
        await expert.stop()


async def ask(gateway: RedirectingGateway, client: str, model: str = "auto") -> Exchange:
    """One streamed answer by way of the gateway."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 8, "ignore_eos": True, "stream": True}
    exchange = Exchange(sent_ns=0)
    async with make_client(gateway.url + CHAT, WorkloadConfig(), CLIENTS[client], KEY) as streaming:
        await streaming.send(request_of(json.dumps(body).encode()), exchange)
    return exchange


@pytest.mark.parametrize("model", ["auto", "math"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_redirected_request_is_answered_by_the_replica_and_tells_what_the_gateway_said(client, model):
    began_ns = time.monotonic_ns()
    async with redirecting(queue_us=1500.0, delay_s=0.05) as gateway:
        exchange = await ask(gateway, client, model)

    assert (exchange.error_kind, exchange.http_status, exchange.num_frames) == (None, 200, 8)
    assert (exchange.expert, exchange.replica, exchange.gateway_queue_s) == ("math", "math-0", 0.0015)
    assert exchange.sent_ns > began_ns
    assert exchange.arrivals_ns[0] - exchange.sent_ns > 45_000_000, "the gateway's part is in the time to first token"
    assert gateway.models == [model]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("wrong", [{"lifetime_s": -5}, {"signed_for": "math-1"}], ids=["expired", "another's"])
async def test_a_wrong_pass_is_refused_by_the_replica_that_the_gateway_chose(client, wrong):
    async with redirecting(**wrong) as gateway:
        exchange = await ask(gateway, client)

    assert (exchange.error_kind, exchange.http_status) == ("status", 401)
    assert (exchange.expert, exchange.replica, exchange.gateway_queue_s) == ("math", "math-0", 0.0)


async def test_the_official_client_streams_through_a_redirect_although_it_drops_the_key_on_the_way():
    async with (
        redirecting() as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        ask_chat = client.chat.completions.with_raw_response.create
        raw = await ask_chat(
            model="auto", messages=MESSAGES, max_tokens=8, stream=True, extra_body={"ignore_eos": True}
        )
        texts = [event.choices[0].delta.content async for event in raw.parse() if event.choices]

    assert raw.headers["x-erhpc-engine"] == "emulated"
    (asked,) = raw.http_response.history
    assert (asked.status_code, asked.headers["x-erhpc-replica"]) == (307, "math-0")
    assert "authorization" not in raw.http_request.headers
    assert len("".join(texts).split()) == 8


@pytest.mark.parametrize("wrong", [{"lifetime_s": -5}, {"signed_for": "math-1"}], ids=["expired", "another's"])
async def test_the_official_client_is_told_that_a_pass_is_wrong(wrong):
    async with (
        redirecting(**wrong) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="auto", messages=MESSAGES)


@pytest.mark.parametrize("relay", RELAYS)
async def test_the_official_client_streams_although_the_gateway_passes_no_byte_on(relay):
    async with redirecting() as fake:
        endpoint = Endpoint(replica="math-0", expert="math", model="math", url=fake.target)
        spec = GatewaySpec(
            host="127.0.0.1",
            port=0,
            endpoints=[endpoint],
            router=RouterConfig(policy="least_loaded"),
            limits=GatewayConfig(data_path="redirect", relay=relay),
            artefact=None,
            seed=0,
        )
        async with (
            serve(spec, key=KEY, expert_key=KEY) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
            aiohttp.ClientSession() as session,
        ):
            for model in ("auto", "math"):
                ask_chat = client.chat.completions.with_raw_response.create
                raw = await ask_chat(
                    model=model, messages=MESSAGES, max_tokens=8, stream=True, extra_body={"ignore_eos": True}
                )
                texts = [event.choices[0].delta.content async for event in raw.parse() if event.choices]
                (asked,) = raw.http_response.history
                assert (asked.status_code, asked.headers["x-erhpc-replica"]) == (307, "math-0")
                assert len("".join(texts).split()) == 8
            async with session.get(f"{url}/metrics") as response:
                metrics = await response.text()
    assert 'erhpc_requests_total{expert="math",replica="math-0",outcome="redirected"} 2' in metrics
    assert 'erhpc_in_flight{replica="math-0"} 0' in metrics


async def test_users_who_are_redirected_keep_both_connections_and_have_complete_records():
    async with redirecting() as gateway:
        (part,) = await run_level(make_spec(gateway.url), LoadPoint(users=10), key=KEY)

    counted = [record for record in part.records if record.phase != "drain"]
    assert 30 < len(counted) <= len(gateway.models) <= len(part.records)
    assert {(record.status, record.expert, record.replica) for record in counted} == {("ok", "math", "math-0")}
    assert {record.gateway_queue_s for record in counted} == {0.0}
    assert all(record.tokens_out == record.max_tokens for record in counted)
    assert sum(record.new_connection for record in part.records) == 10


async def test_a_replica_that_is_gone_gets_no_more_clients_although_none_of_them_tells(monkeypatch):
    monkeypatch.setattr(prober, "PROBE_INTERVAL_S", 0.01)
    endpoint = Endpoint(replica="math-0", expert="math", model="math", url=f"http://127.0.0.1:{find_port()}")
    spec = GatewaySpec(
        host="127.0.0.1",
        port=0,
        endpoints=[endpoint],
        router=RouterConfig(policy="least_loaded"),
        limits=GatewayConfig(data_path="redirect"),
        artefact=None,
        seed=0,
    )
    async with serve(spec) as url, aiohttp.ClientSession(url) as session, asyncio.timeout(10):
        while True:
            async with session.get("/health") as response:
                if response.status == 503:
                    break
        body = {"model": "auto", "messages": MESSAGES}
        async with session.post(CHAT, json=body, allow_redirects=False) as response:
            assert response.status == 503
