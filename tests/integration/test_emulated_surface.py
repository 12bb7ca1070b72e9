"""What an emulated expert shares with vLLM beyond answers, and what can be made to go wrong with it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import replace

import aiohttp
import msgspec
import pytest

from erhpc.config import FaultConfig
from erhpc.errors import ProcessError
from erhpc.experts.emulated_answer import WORDS
from erhpc.plan.specs import EmulatedExpertsSpec
from tests.integration.test_emulated_expert import (
    ConstantStep,
    answering,
    chat,
    free_port,
    gauge,
    make_expert,
    make_spec,
    serving,
    stream,
    until,
)

VLLM_METRICS = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "cache_config_info",
    "request_prompt_tokens",
    "request_generation_tokens",
    "iteration_tokens_total",
    "request_params_n",
    "request_params_max_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
]
"""Of those that vLLM 0.25.1 has, the ones that dashboards and autoscalers read."""


async def test_metrics_have_the_names_of_vllm_and_are_text_that_prometheus_reads():
    async with serving() as session:
        await stream(session, chat(5))
        async with session.get("/metrics") as response:
            assert response.content_type == "text/plain"
            lines = (await response.text()).splitlines()

    types = [line.split()[2:] for line in lines if line.startswith("# TYPE")]
    assert sorted(name for name, _ in types) == sorted(f"vllm:{name}" for name in VLLM_METRICS)
    samples = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r'vllm:\w+\{(\w+="[^"]*",?)+\} [\d.e+-]+', line) for line in samples)
    buckets = [float(line.split()[-1]) for line in samples if "time_to_first_token_seconds_bucket" in line]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1


async def test_a_stream_interval_sends_the_first_token_alone_and_then_so_many_at_once():
    async with serving(engine_args={"stream-interval": 4}) as session:
        chunks, _ = await stream(session, chat(12, stream_options={"include_usage": True}))

    _, *pieces, usage, _ = chunks
    texts = [piece["choices"][0]["delta"]["content"] for piece in pieces]
    assert [len(text.split()) for text in texts] == [1, 4, 4, 3]
    assert "".join(texts) == "".join(WORDS[n % len(WORDS)] for n in range(12))
    assert usage["usage"]["completion_tokens"] == 12


async def test_a_prefix_cache_spares_a_repeated_prompt_its_blocks():
    body = {"prompt": list(range(100)), "max_tokens": 2, "ignore_eos": True}
    async with serving(prefix_caching=True) as session:
        for _ in range(2):
            await stream(session, body, "/v1/completions")
        assert await gauge(session, "prefix_cache_queries_total") == 200
        assert await gauge(session, "prefix_cache_hits_total") == 96
        assert await gauge(session, "iteration_tokens_total_sum") == 100 + 1 + 4 + 1


async def test_what_a_request_costs_outside_of_steps_comes_before_its_first_token():
    async with serving(request_s=0.2) as session:
        await stream(session, chat(2))
        assert await gauge(session, "time_to_first_token_seconds_sum") >= 0.2
        assert await gauge(session, "request_queue_time_seconds_sum") < 0.1


@pytest.mark.parametrize("status", [500, 503])
async def test_requests_can_be_made_to_fail_for_a_while(status):
    fault = FaultConfig(kind=f"error_{status}", replica="tiny", duration_s=0.3)
    async with serving(faults=[fault]) as session:
        async with session.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == status
            assert (await response.json())["error"]["code"] == status
        async with session.get("/health") as response:
            assert response.status == 200
        async with asyncio.timeout(5):
            while (await session.post("/v1/chat/completions", json=chat())).status != 200:
                pass


async def test_an_engine_that_hangs_still_takes_requests_and_says_that_it_is_healthy():
    async with serving(faults=[FaultConfig(kind="hang")]) as session:
        asked = asyncio.create_task(stream(session, chat()))
        await until(session, "num_requests_running", 1)
        assert (await session.get("/health")).status == 200
        assert await gauge(session, "generation_tokens_total") == 0
        asked.cancel()
        await until(session, "num_requests_running", 0)


async def test_a_crash_cuts_answers_and_ends_the_replica():
    spec = make_spec(faults=[FaultConfig(kind="crash", after_s=0.3)])
    expert = make_expert(spec, ConstantStep())
    await expert.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{spec.port}") as session:
        asked = asyncio.create_task(stream(session, chat(1000)))
        with pytest.raises(ProcessError, match=r"tiny-0 crashed as engine\.faults says"):
            await expert.serve_until(asyncio.Event())
        with pytest.raises(aiohttp.ClientError):
            await asked
    await expert.stop()


async def test_a_replica_can_take_longer_to_load():
    async with serving(faults=[FaultConfig(kind="slow_start", duration_s=0.3)]) as session:
        assert (await session.get("/health")).status == 503
        async with asyncio.timeout(5):
            while (await session.get("/health")).status != 200:
                pass


async def test_faster_time_is_faster_and_the_list_of_models_says_so():
    async with serving(ConstantStep(0.1), speedup=50) as session:
        async with session.get("/v1/models") as response:
            assert {card["owned_by"] for card in (await response.json())["data"]} == {"erhpc-emulated-x50"}
        async with asyncio.timeout(5):
            await stream(session, chat(101))
        assert await gauge(session, "inter_token_latency_seconds_sum") == pytest.approx(0.2, rel=0.5)


async def test_one_process_serves_several_replicas_and_ends_with_the_first_that_crashes(tmp_path):
    specs = [make_spec(replica=f"tiny-{number}", port=str(free_port())) for number in range(3)]
    specs[2] = replace(specs[2], faults=[FaultConfig(kind="crash", after_s=2)])
    path = tmp_path / "spec.json"
    path.write_bytes(msgspec.json.encode(EmulatedExpertsSpec(experts=specs)))
    job = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobs.emulated_expert", "--spec", str(path), stderr=asyncio.subprocess.PIPE
    )
    try:
        for spec in specs:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{spec.port}") as session:
                await answering(session)
                chunks, _ = await stream(session, chat(3))
                assert chunks[-1] == "[DONE]"
        _, errors = await asyncio.wait_for(job.communicate(), 20)
    finally:
        if job.returncode is None:
            job.kill()
            await job.wait()
    assert job.returncode == 1
    assert errors.decode().splitlines() == [
        "emulated_expert: error: Emulated expert tiny-2 crashed as engine.faults says."
    ]


async def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_look_for():
    async with serving() as session, session.post("/v1/chat/completions", json=chat(5, "x" * 5000)) as response:
        assert response.status == 400
        assert "maximum context length of 1024 tokens" in json.loads(await response.text())["error"]["message"]
