"""A real emulated expert on a loopback port, asked by a real aiohttp client."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import msgspec
import pytest

from erhpc.config import ArchitectureConfig
from erhpc.errors import ConfigError, ProcessError
from erhpc.experts.emulated import EmulatedExpert
from erhpc.experts.emulated_answer import WORDS
from erhpc.experts.emulated_serving import serve_as
from erhpc.plan.passes import sign_pass
from erhpc.plan.specs import EmulatedExpertSpec, EmulatedExpertsSpec
from erhpc.twin.step_time import Batch, Roofline

MODEL = "tiny"
SHAPE = ArchitectureConfig(2, 256, 512, 4, 4, 4096)
LLAMA3_8B = ArchitectureConfig(32, 4096, 14336, 32, 8, 128256)


@dataclass
class ConstantStep:
    """Steps of one length."""

    seconds: float = 0.002

    def step_s(self, batch: Batch) -> float:
        return self.seconds


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_spec(**changes):
    spec = EmulatedExpertSpec(
        replica="tiny-0",
        model=MODEL,
        host="127.0.0.1",
        port=str(free_port()),
        architecture=SHAPE,
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
    return replace(spec, **changes)


def make_expert(spec, step_time=None, *, request_s=0.0, **options):
    """An emulated expert whose steps take as long as `step_time` says (None: as the spec's model of them)."""
    serving = replace(serve_as(spec), request_s=request_s)
    return EmulatedExpert(spec, replace(serving, step_time=step_time) if step_time else serving, **options)


@asynccontextmanager
async def serving(step_time=None, *, key=None, request_s=0.0, **changes):
    """A client session whose base URL is a running emulated expert."""
    spec = make_spec(**changes)
    expert = make_expert(spec, step_time or ConstantStep(), key=key, request_s=request_s)
    await expert.start()
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{spec.port}", connector=connector) as session:
            yield session
    finally:
        await expert.stop()


def chat(max_tokens=5, content="hello there", **more):
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return body | {"ignore_eos": True} | more


async def stream(session, body, path="/v1/chat/completions"):
    """Chunks of a streamed answer (the last one is "[DONE]") and when each arrived."""
    chunks, times_s = [], []
    async with session.post(path, json=body | {"stream": True}) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                chunks.append("[DONE]" if data == b"[DONE]" else json.loads(data))
                times_s.append(time.monotonic())
    return chunks, times_s


async def gauge(session, name):
    async with session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))


async def until(session, name, value):
    async with asyncio.timeout(10):
        while await gauge(session, name) != value:
            pass


async def test_a_streamed_chat_has_role_then_tokens_in_order_then_reason_usage_and_end():
    async with serving() as session:
        chunks, _ = await stream(session, chat(10, "x" * 40, stream_options={"include_usage": True}))

    role, *tokens, usage, end = chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in tokens] == [WORDS[n % len(WORDS)] for n in range(10)]
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 9 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 10, "total_tokens": 20, "completion_tokens": 10}
    assert end == "[DONE]"
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks[:-1]} == {
        (role["id"], "chat.completion.chunk", MODEL)
    }


async def test_a_chat_of_one_token_still_opens_with_its_role():
    async with serving() as session:
        chunks, _ = await stream(session, chat(1))

    role, token, end = chunks
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert token["choices"][0] == {
        "index": 0, "delta": {"content": WORDS[0]}, "logprobs": None, "finish_reason": "length"
    }  # fmt: skip
    assert end == "[DONE]"


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17])
async def test_completions_have_exactly_the_tokens_asked_for_streamed_or_not(max_tokens):
    body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": max_tokens, "ignore_eos": True}
    async with serving() as session:
        chunks, _ = await stream(session, body, "/v1/completions")
        async with session.post("/v1/completions", json=body) as response:
            whole = await response.json()

    assert len(chunks) == max_tokens + 1
    assert whole["usage"] == {"prompt_tokens": 3, "total_tokens": 3 + max_tokens, "completion_tokens": max_tokens}
    assert whole["choices"][0]["text"] == "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1])


async def test_a_whole_chat_counts_its_tokens():
    async with (
        serving() as session,
        session.post("/v1/chat/completions", json=chat(7, max_completion_tokens=6)) as response,
    ):
        body = await response.json()
        assert response.headers["x-erhpc-engine"] == "emulated"

    assert body["object"] == "chat.completion"
    assert len(body["choices"][0]["message"]["content"].split()) == 6
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 6


async def test_without_ignore_eos_an_answer_ends_at_a_length_of_its_own_that_repeats():
    async with serving(ConstantStep(0.0001), max_model_len=4096) as session:
        answers = []
        for content in ("one", "two", "three", "one"):
            async with session.post("/v1/chat/completions", json=chat(4000, content, ignore_eos=False)) as response:
                answers.append(await response.json())

    lengths = [answer["usage"]["completion_tokens"] for answer in answers]
    assert len(set(lengths)) == 3
    assert lengths[0] == lengths[3]
    assert answers[0]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("chat/completions", b"{", 400, "not valid"),
        ("chat/completions", b'{"messages": "hi"}', 400, r"messages"),
        ("chat/completions", chat(1020, "x" * 40), 400, "10 tokens and max_tokens is 1020.*1024"),
        ("chat/completions", chat(0), 400, "max_tokens=0"),
        ("chat/completions", chat(5, n=2), 400, "n=2"),
        ("chat/completions", chat(5, model="other"), 404, "'other' is not served here. Allowed: 'tiny'"),
        ("completions", {"prompt": ["a", "b"]}, 400, "several prompts"),
        ("completions", {"prompt": "x" * 5000}, 400, "1250 tokens"),
    ],
)
async def test_a_request_that_cannot_be_served_is_answered_in_openai_words(path, body, status, message):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with serving() as session, session.post(f"/v1/{path}", data=data) as response:
        error = (await response.json())["error"]
        assert response.status == status
        assert response.headers["x-erhpc-engine"] == "emulated"

    assert error["code"] == status
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(message, error["message"])


async def test_a_key_guards_v1_and_telemetry_but_neither_health_nor_metrics():
    async with serving(key="s3cret") as session:
        for path, open_to_all in (("/health", 1), ("/metrics", 1), ("/v1/models", 0), ("/telemetry", 0)):
            for given, is_right in ((None, 0), ("Bearer wrong", 0), ("Bearer s3cret", 1)):
                headers = {"Authorization": given} if given else {}
                async with session.get(path, headers=headers) as response:
                    assert response.status == (200 if open_to_all or is_right else 401)


@pytest.mark.parametrize(
    ("signed_with", "replica", "left_s", "status"),
    [
        ("s3cret", "tiny-0", 60, 200),
        ("s3cret", "tiny-0", -5, 401),
        ("s3cret", "tiny-1", 60, 401),
        ("other", "tiny-0", 60, 401),
    ],
)
async def test_a_pass_for_this_replica_stands_for_the_key_until_it_expires(signed_with, replica, left_s, status):
    value = sign_pass(signed_with, replica, int(time.time()) + left_s)
    url = f"/v1/chat/completions?erhpc_pass={value}"
    async with serving(key="s3cret") as session, session.post(url, json=chat()) as response:
        assert response.status == status


async def test_aliases_are_listed_and_answered_under_the_name_of_the_model():
    async with serving(aliases=["auto", "math"]) as session:
        async with session.get("/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == [MODEL, "auto", "math"]
        for name in (MODEL, "auto", "math"):
            async with session.post("/v1/chat/completions", json=chat(model=name)) as response:
                assert (await response.json())["model"] == MODEL
        async with session.post("/v1/chat/completions", json=chat(model="law")) as response:
            assert "Allowed: 'tiny', 'auto', 'math'" in (await response.json())["error"]["message"]


async def test_health_and_models_wait_until_the_model_is_loaded():
    async with serving(load_s=0.3) as session:
        async with session.get("/health") as response:
            assert response.status == 503
        async with session.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 503
        async with asyncio.timeout(5):
            while (await session.get("/health")).status != 200:
                pass
        async with session.get("/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == [MODEL]


async def test_a_client_that_goes_away_frees_its_slot():
    async with serving(max_num_seqs=1, max_num_batched_tokens=64) as session:
        leaver = await session.post("/v1/chat/completions", json=chat(1000, stream=True))
        await leaver.content.readline()
        waiter = asyncio.create_task(stream(session, chat(5)))
        await until(session, "num_requests_waiting", 1)
        leaver.close()

        chunks, _ = await asyncio.wait_for(waiter, 1)
        assert chunks[-1] == "[DONE]"
        await until(session, "num_requests_running", 0)
        assert await gauge(session, "kv_cache_usage_perc") == 0


async def test_a_full_kv_cache_makes_a_queue_that_drains():
    async with serving(kv_capacity_tokens=256, max_model_len=256) as session:
        body = {"prompt": list(range(100)), "max_tokens": 28, "ignore_eos": True}
        answers = [asyncio.create_task(stream(session, body, "/v1/completions")) for _ in range(6)]
        await until(session, "num_requests_waiting", 4)
        assert await gauge(session, "num_requests_running") == 2
        for chunks, _ in await asyncio.gather(*answers):
            assert len(chunks) == 29
        assert await gauge(session, "generation_tokens_total") == 6 * 28


async def test_two_hundred_streams_run_at_the_pace_of_the_model_and_never_faster():
    model = Roofline(LLAMA3_8B, dtype="bfloat16", quantization=None, tensor_parallel=1, gpu="a100_80")
    step_s = model.step_s(Batch(num_decode_seqs=200, decode_context_tokens=200 * 30, num_logit_rows=200))
    async with serving(model) as session:
        answers = await asyncio.gather(*(stream(session, chat(60, "x" * 40)) for _ in range(200)))
        async with session.get("/telemetry?window_s=10") as response:
            telemetry = await response.json()

    tpots_s = sorted((times_s[-2] - times_s[1]) / 59 for _, times_s in answers)
    print(f"model {1e3 * step_s:.2f} ms, TPOT {1e3 * tpots_s[0]:.2f}..{1e3 * tpots_s[-1]:.2f} ms, {telemetry}")
    assert all(len(chunks) == 62 for chunks, _ in answers)
    assert tpots_s[0] > 0.97 * step_s
    assert set(telemetry) == {"lag_p99_s", "step_lateness_p99_s"}


async def test_steps_shorter_than_a_timer_tick_still_keep_their_rate():
    async with serving(ConstantStep(0.0005)) as session:
        started_s = time.monotonic()
        await stream(session, chat(600))
        took_s = time.monotonic() - started_s

    print(f"600 steps of 0.5 ms took {took_s:.3f} s")
    assert 0.3 <= took_s < 0.55


@pytest.mark.parametrize("window_s", ["0", "-1", "601", "soon", "nan"])
async def test_a_window_out_of_range_is_refused(window_s):
    async with serving() as session, session.get(f"/telemetry?window_s={window_s}") as response:
        assert response.status == 400


async def test_a_port_that_is_taken_is_an_error_that_names_it():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        expert = make_expert(make_spec(port=port), ConstantStep())
        with pytest.raises(ProcessError, match=f"tiny-0 cannot listen on 127.0.0.1:{port}"):
            await expert.start()
        await expert.stop()


def test_a_spec_whose_longest_sequence_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="max_model_len=1024"):
        serve_as(make_spec(kv_capacity_tokens=512))


class BrokenModel:
    def step_s(self, batch):
        raise ArithmeticError("no step time")


async def test_a_step_loop_that_dies_ends_the_server_with_its_error():
    spec = make_spec()
    expert = make_expert(spec, BrokenModel())
    await expert.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{spec.port}") as session:
        asked = asyncio.create_task(session.post("/v1/chat/completions", json=chat()))
        with pytest.raises(ArithmeticError):
            await expert.serve_until(asyncio.Event())
        async with session.get("/health") as response:
            assert response.status == 503
        await expert.stop()
        with pytest.raises(aiohttp.ClientError):
            await asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_job_serves_its_spec_with_its_key_and_stops_with_exit_code_zero(tmp_path, number):
    (tmp_path / "key").write_text("s3cret\n")
    spec = make_spec(key_file=str(tmp_path / "key"), architecture=LLAMA3_8B)
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(EmulatedExpertsSpec(experts=[spec])))
    started_s = time.monotonic()
    job = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobs.emulated_expert", "--spec", str(tmp_path / "spec.json")
    )
    try:
        headers = {"Authorization": "Bearer s3cret"}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{spec.port}", headers=headers) as session:
            await answering(session)
            print(f"start to healthy {time.monotonic() - started_s:.2f} s")
            chunks, _ = await stream(session, chat(5))
            assert len(chunks) == 7
            leftover = asyncio.create_task(stream(session, chat(1000)))
            await until(session, "num_requests_running", 1)
            job.send_signal(number)
            assert await asyncio.wait_for(job.wait(), 10) == 0
            with pytest.raises(aiohttp.ClientError):
                await leftover
    finally:
        if job.returncode is None:
            job.kill()
            await job.wait()


async def answering(session):
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get("/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)


def test_the_job_names_a_spec_it_cannot_read(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.emulated_expert", "--spec", str(tmp_path / "none.json")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("emulated_expert: error: --spec")
    assert "Traceback" not in done.stderr
