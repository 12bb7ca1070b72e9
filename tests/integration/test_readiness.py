"""A server is ready when it is healthy, serves the right name and has answered; what is missing is said."""

from __future__ import annotations

import asyncio
import socket
import time

import aiohttp
import pytest

from erhpc.errors import ProcessError
from erhpc.experts.readiness import Readiness, probe, wait_until_ready
from tests.fakes.expert import FakeExpert


async def probe_once(url: str, model: str = "math", key: str | None = None) -> Readiness:
    async with aiohttp.ClientSession(trust_env=False) as session:
        return await probe(session, url, model, key)


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_server_that_passes_every_stage_is_ready():
    expert = FakeExpert()
    async with expert.run() as url:
        readiness = await probe_once(url)

    assert readiness.is_ready
    assert expert.bodies[0]["max_tokens"] == 1


async def test_nobody_listening_is_the_stage_connecting(closed_url):
    readiness = await probe_once(closed_url)

    assert readiness.stage == "connecting"
    assert closed_url in readiness.message


async def test_a_loading_server_stays_at_the_stage_health():
    async with FakeExpert(healthy=False).run() as url:
        readiness = await probe_once(url)

    assert readiness.stage == "health"
    assert "503" in readiness.message


async def test_another_model_name_is_reported_with_both_names():
    async with FakeExpert(model="law").run() as url:
        readiness = await probe_once(url)

    assert readiness.stage == "models"
    assert "serves law, not math" in readiness.message


async def test_a_failing_completion_is_reported_with_its_status_and_text():
    async with FakeExpert(completion_status=500).run() as url:
        readiness = await probe_once(url)

    assert readiness.stage == "completion"
    assert "500" in readiness.message
    assert "set by the test" in readiness.message


@pytest.mark.parametrize(("key", "stage"), [("secret", "ready"), ("wrong", "models"), (None, "models")])
async def test_the_key_of_the_run_opens_a_guarded_server(key, stage):
    async with FakeExpert(key="secret").run() as url:
        assert (await probe_once(url, key=key)).stage == stage


async def test_waiting_ends_as_soon_as_the_server_becomes_healthy():
    expert = FakeExpert(healthy=False)
    async with expert.run() as url:
        waiting = asyncio.create_task(
            wait_until_ready(url, "math", None, timeout_s=10, is_alive=lambda: True, poll_s=0.01)
        )
        await asyncio.wait({waiting}, timeout=0.05)
        assert not waiting.done()
        expert.healthy = True
        took_s = await asyncio.wait_for(waiting, 5)

    assert 0.04 < took_s < 5


async def test_time_out_names_the_last_stage():
    async with FakeExpert(healthy=False).run() as url:
        with pytest.raises(ProcessError, match=r"math was not ready within 0\.5 s\. Last stage: health .*503"):
            await wait_until_ready(url, "math", None, timeout_s=0.5, is_alive=lambda: True, poll_s=0.01)


async def test_time_out_during_a_hanging_completion_names_that_stage():
    expert = FakeExpert()
    expert.may_answer.clear()
    async with expert.run() as url:
        with pytest.raises(ProcessError, match="Last stage: completion"):
            await wait_until_ready(url, "math", None, timeout_s=0.5, is_alive=lambda: True, poll_s=0.01)


async def test_a_process_that_dies_ends_the_waiting_at_once(closed_url):
    started_s = time.monotonic()
    with pytest.raises(ProcessError, match="died before it was ready"):
        await wait_until_ready(closed_url, "math", None, timeout_s=60, is_alive=lambda: False)

    assert time.monotonic() - started_s < 5


async def test_death_is_noticed_while_a_completion_hangs():
    expert = FakeExpert()
    expert.may_answer.clear()
    async with expert.run() as url:
        with pytest.raises(ProcessError, match="died before it was ready"):
            await wait_until_ready(url, "math", None, timeout_s=60, is_alive=lambda: not expert.bodies, poll_s=0.01)


async def test_an_answer_from_another_process_does_not_hide_a_dead_one():
    async with FakeExpert().run() as url:
        with pytest.raises(ProcessError, match="died"):
            await wait_until_ready(url, "math", None, timeout_s=60, is_alive=lambda: False, poll_s=10)
