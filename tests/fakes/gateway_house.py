"""A real gateway before scripted replicas on loopback sockets, for the tests of both relays."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import openai
import pytest

from erhpc.config import GatewayConfig, RouterConfig
from erhpc.config.routing import RELAYS
from erhpc.gateway.server import serve
from erhpc.plan.specs import Endpoint, GatewaySpec
from tests.fakes.routing import KeywordClassifier
from tests.fakes.scripted_replica import ScriptedReplica, answer_json

CHAT = "/v1/chat/completions"
DEFAULTS: dict[str, str] = {}
"""Limits of every gateway here; the fixture `relay` sets them."""
SUM = [{"role": "user", "content": "a sum"}]


@dataclass
class House:
    """A gateway, its replicas by name, and a session whose base URL is the gateway."""

    url: str
    replicas: dict[str, ScriptedReplica]
    session: aiohttp.ClientSession
    watcher: aiohttp.ClientSession
    """Asks what the gateway tells of itself, over connections of its own: requests for answers must not share them, or
    they would all pass as the plain relay has them."""

    def ask(self, text="a sum", *, path=CHAT, model="auto", headers=None, **fields):
        prompt = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
        return self.session.post(path, json={"model": model, **prompt, **fields}, headers=headers)

    async def metric(self, line):
        async with self.watcher.get("/metrics") as response:
            found = re.search(rf"^{re.escape(line)} (\S+)$", await response.text(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def requests(self, outcome, replica="math-0"):
        expert = replica.rpartition("-")[0]
        return await self.metric(f'erhpc_requests_total{{expert="{expert}",replica="{replica}",outcome="{outcome}"}}')

    async def in_flight(self):
        async with self.watcher.get("/metrics") as response:
            values = re.findall(r"^erhpc_in_flight\{.*\} (\d+)$", await response.text(), re.MULTILINE)
        return [int(value) for value in values]

    async def status(self, path="/health"):
        async with self.watcher.get(path) as response:
            return response.status


@pytest.fixture(params=RELAYS, autouse=True)
def relay(request, monkeypatch):
    """Everything here holds whichever way requests pass."""
    monkeypatch.setitem(DEFAULTS, "relay", request.param)
    return request.param


def make_spec(endpoints, *, policy="cluster", limits=None, is_emulated=False, **router):
    return GatewaySpec(
        host="127.0.0.1",
        port="0",
        endpoints=endpoints,
        router=RouterConfig(policy=policy, **router),
        limits=replace(limits or GatewayConfig(), **DEFAULTS),
        artefact=None,
        seed=0,
        is_emulated=is_emulated,
    )


def make_endpoint(name, url):
    return Endpoint(replica=name, expert=name.rpartition("-")[0], model="llama", url=url)


@asynccontextmanager
async def housing(script=answer_json, *, names=("math-0", "code-0"), absent=None, key=None, trust=None, **spec):
    """A gateway before replicas of these names that run `script`; `absent` maps names to ports nobody listens on.

    `trust` is the TLS context of the session.
    """
    absent = absent or {}
    async with AsyncExitStack() as stack:
        replicas = {name: ScriptedReplica(script) for name in names}
        for name, replica in replicas.items():
            if name in absent:
                replica.url = f"http://127.0.0.1:{absent[name]}"
            else:
                await stack.enter_async_context(replica.serving())
        endpoints = [make_endpoint(name, replica.url) for name, replica in replicas.items()]
        url = await stack.enter_async_context(
            serve(make_spec(endpoints, **spec), classifier=KeywordClassifier("sum", "loop"), key=key, expert_key=key)
        )
        session, watcher = [
            await stack.enter_async_context(aiohttp.ClientSession(url, connector=connector))
            for connector in [aiohttp.TCPConnector(limit=0, ssl=True if trust is None else trust) for _ in range(2)]
        ]
        yield House(url, replicas, session, watcher)


async def until(condition, *, within_s=5.0):
    """Return once the awaitable condition holds; fails after `within_s`."""
    async with asyncio.timeout(within_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def error_of(response):
    """The error of a response, after checking that it has OpenAI's shape."""
    assert response.content_type == "application/json"
    body = await response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return body["error"]


@dataclass
class Doors:
    """Answers that wait, each for `open`; `answer` is the script."""

    arrived: asyncio.Semaphore
    may_go_on: asyncio.Semaphore

    async def answer(self, request):
        self.arrived.release()
        await self.may_go_on.acquire()
        return await answer_json(request)

    def open(self):
        self.may_go_on.release()


def closed_doors():
    return Doors(asyncio.Semaphore(0), asyncio.Semaphore(0))


def official_client(house, key, **options):
    return openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, **{"max_retries": 0, **options})


async def queued(house, number):
    return await house.metric("erhpc_queued") == number


async def admitted(house, number):
    return await house.metric("erhpc_admitted") == number
