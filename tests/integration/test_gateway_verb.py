"""`python -m erhpc.gateway` before servers that run already, as a person would start it."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager

import openai
import pytest
from aiohttp import web

from erhpc.gateway.__main__ import take_experts
from tests.fakes.scripted_replica import ScriptedReplica, answer_json, stream_frames


class ListedReplica(ScriptedReplica):
    """A scripted replica that lists its models; `key`: only to those who have it."""

    models = ("org/llama",)
    key: str | None = None

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self.list_models)

    async def list_models(self, request: web.Request) -> web.Response:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "no"}, status=401)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})


@asynccontextmanager
async def gateway(*arguments):
    """The verb, once it listens: its output so far; told to stop at the end, and then it must exit with 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "erhpc.gateway", *arguments, "port=0", stdout=asyncio.subprocess.PIPE
    )
    lines = []
    try:
        async with asyncio.timeout(60):
            while not lines or not lines[-1].startswith("status:"):
                line = await process.stdout.readline()
                assert line, lines
                lines.append(line.decode().rstrip())
        yield lines
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def fails(*arguments):
    """What the verb says on stderr when it ends with 2."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "erhpc.gateway", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    return stderr.decode()


async def test_it_answers_the_official_client_before_servers_that_know_nothing_of_it(tmp_path):
    (tmp_path / "key").write_text("for-users\n")
    (tmp_path / "expert_key").write_text("for-experts\n")
    async with ListedReplica(stream_frames).serving() as first, ListedReplica(answer_json).serving() as second:
        first.key = second.key = "for-experts"
        keys = [f"key={tmp_path / 'key'}", f"expert_key={tmp_path / 'expert_key'}"]
        async with gateway("--experts", first.url + "/v1", f"code={second.url}", *keys, "gateway.processes=2") as lines:
            assert lines[1:3] == [f"  llama: {first.url} (org/llama)", f"  code: {second.url} (org/llama)"]
            url = lines[0].split()[-1]
            async with openai.AsyncOpenAI(base_url=url, api_key="for-users", max_retries=0) as client:
                assert [model.id async for model in client.models.list()] == ["auto", "llama", "code"]
                asked = {"model": "llama", "messages": [{"role": "user", "content": "x"}], "stream": True}
                stream = await client.chat.completions.create(**asked)
                assert "".join([chunk.choices[0].delta.content async for chunk in stream]) == "t0t1t2t3t4"
            async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError):
                    await client.models.list()
        assert first.seen[0].headers["Authorization"] == "Bearer for-experts"
        assert b'"model":"org/llama"' in first.seen[0].body


async def test_servers_with_the_same_model_are_replicas_of_one_expert():
    async with ListedReplica(answer_json).serving() as one, ListedReplica(answer_json).serving() as other:
        async with (
            gateway("--experts", one.url, other.url, "router=round_robin") as lines,
            openai.AsyncOpenAI(base_url=lines[0].split()[-1], api_key="any", max_retries=0) as client,
        ):
            for _ in range(4):
                await client.completions.create(model="llama", prompt="x")
        assert len(one.seen) == len(other.seen) == 2


async def test_what_cannot_be_served_is_said_in_one_line():
    async with ListedReplica(answer_json).serving() as replica:
        assert "experts=http://127.0.0.1:9: the server cannot be asked" in await fails(
            "--experts", "http://127.0.0.1:9"
        )
        assert "'auto' is the name under which the router" in await fails("--experts", f"auto={replica.url}")
        assert "router.policy=cluster needs router.artefact" in await fails("--experts", replica.url, "router=cluster")
        for nothing in ((), ("--experts",)):
            assert "experts is empty. Give one server or more: --experts http://" in await fails(*nothing)
        replica.models = ()
        assert "/v1/models lists no model" in await fails("--experts", replica.url)


@pytest.mark.parametrize("name", ["key", "expert_key"])
async def test_a_file_of_a_key_that_cannot_be_used_is_said_in_one_line(tmp_path, name):
    (tmp_path / "key").write_text("two\nkeys\n")
    async with ListedReplica(answer_json).serving() as replica:
        said = await fails("--experts", replica.url, f"{name}={tmp_path}/key")
        assert f"{name}={tmp_path}/key holds 2 lines" in said


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        (["--experts", "http://a:1", "http://b:2/v1"], ["experts=['http://a:1','http://b:2/v1']"]),
        (["port=0", "--experts", "x=http://a:1", "seed=1"], ["port=0", "experts=['x=http://a:1']", "seed=1"]),
        (["--experts", "https://a?b='c'", "key=/k"], [r"experts=['https://a?b=\'c\'']", "key=/k"]),
        (["experts=[http://a:1]"], ["experts=[http://a:1]"]),
    ],
)
def test_experts_are_the_addresses_that_follow(arguments, taken):
    assert take_experts(arguments) == taken
