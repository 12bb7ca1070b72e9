from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tests.bench.load import truth as truths
from tests.bench.load.mock import Mock, compile_mock, serving
from tests.bench.load.truth import Truth

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the mock is a C program and there is no `cc`")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_mock(tmp_path_factory.mktemp("mock"))


@pytest.fixture
def mock(program: Path):
    with serving(program, ttft_ms=20, gap_ms=5, lifetime_s=60, options=("--stamp",)) as running:
        yield running


async def ask(mock: Mock, session: aiohttp.ClientSession, path: str = "/v1/chat/completions", **body: object):
    """The frames of one answer, decoded, and when each piece of text arrived."""
    asked = {"model": "mock", "stream": True, "max_tokens": 8} | body
    frames, arrived_ns = [], []
    async with session.post(mock.url + path, json=asked) as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: {"):
                frames.append(json.loads(line[6:]))
                arrived_ns.append(time.monotonic_ns())
            elif line.startswith(b"data:"):
                assert line == b"data: [DONE]\n"
    return frames, arrived_ns


async def test_a_chat_answer_has_a_role_as_many_tokens_as_asked_for_and_the_usage(mock: Mock):
    async with aiohttp.ClientSession() as session:
        frames, _ = await ask(mock, session, stream_options={"include_usage": True})

    role, *tokens, usage = frames
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(tokens) == 8 == usage["usage"]["completion_tokens"]
    assert [frame["choices"][0]["finish_reason"] for frame in tokens] == [None] * 7 + ["length"]
    assert usage["choices"] == []


async def test_completions_and_the_default_length_are_understood(mock: Mock):
    async with aiohttp.ClientSession() as session:
        frames, _ = await ask(mock, session, "/v1/completions", max_tokens=None)

    assert len(frames) == 64
    assert all(frame["choices"][0]["text"] for frame in frames)


async def test_usage_comes_with_each_frame_where_it_is_asked_for(mock: Mock):
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with aiohttp.ClientSession() as session:
        frames, _ = await ask(mock, session, "/v1/completions", stream_options=options, max_tokens=4)

    assert [frame["usage"]["completion_tokens"] for frame in frames] == [1, 2, 3, 4, 4]


async def test_a_key_within_the_text_of_a_prompt_is_not_taken_for_the_key(mock: Mock):
    async with aiohttp.ClientSession() as session:
        frames, _ = await ask(mock, session, prompt='say "max_tokens": 3', max_tokens=5)

    assert len(frames) == 1 + 5


async def test_the_truth_is_what_each_token_says_and_what_the_client_saw(mock: Mock):
    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(*(ask(mock, session) for _ in range(5)))
        mock_truth = mock.truth()

    told_ns = sorted(int(frame["choices"][0]["delta"]["content"]) for frames, _ in answers for frame in frames[1:])
    seen_ns = sorted(time_ns for _, times_ns in answers for time_ns in times_ns[1:])
    assert len(mock_truth) == 5
    assert mock_truth.num_tokens.tolist() == [8] * 5
    # The text is made right before the time is taken, and the token is seen right after.
    assert all(0 <= sent - told < 1e6 for told, sent in zip(told_ns, sorted(mock_truth.sent_ns), strict=True))
    assert all(seen > sent for sent, seen in zip(sorted(mock_truth.sent_ns), seen_ns, strict=True))


async def test_tokens_are_never_sent_before_they_are_due_and_arrivals_have_kernel_stamps(mock: Mock):
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(ask(mock, session) for _ in range(20)))
        mock_truth = mock.truth()

    assert truths.lateness_ms(mock_truth).min() >= 0
    assert truths.ttft_ms(mock_truth).min() >= 20
    assert mock_truth.kernel_arrivals == 20
    assert (mock_truth.ended_ns > mock_truth.sent_ns[mock_truth.first_of_request + 7]).all()


async def test_a_reset_forgets_what_has_ended(mock: Mock):
    async with aiohttp.ClientSession() as session:
        await ask(mock, session)
        mock.reset()
        await ask(mock, session, max_tokens=3)
        mock_truth = mock.truth()

    assert mock_truth.num_tokens.tolist() == [3]


async def test_a_client_that_leaves_ends_its_request_and_nobody_elses(mock: Mock):
    async with aiohttp.ClientSession() as leaving, aiohttp.ClientSession() as staying:
        stay = asyncio.create_task(ask(mock, staying, max_tokens=40))
        answer = await leaving.post(mock.url + "/v1/completions", json={"stream": True, "max_tokens": 1000})
        await answer.content.readany()
        answer.close()
        frames, _ = await stay
        mock_truth = mock.truth()

    assert len(frames) == 41
    assert sorted(mock_truth.num_tokens)[1] == 40
    assert sorted(mock_truth.num_tokens)[0] < 40
    assert (mock_truth.ended_ns > 0).all()


async def test_what_clients_ask_before_they_start_is_answered(mock: Mock):
    async with aiohttp.ClientSession() as session:
        statuses = {path: (await session.get(mock.url + path)).status for path in ("/health", "/v1/models", "/metrics")}
        plain = await session.post(mock.url + "/v1/chat/completions", json={"messages": []})
        assert (await plain.json())["choices"][0]["message"]["content"]

    assert statuses == {"/health": 200, "/v1/models": 200, "/metrics": 404}
    assert len(mock.truth()) == 0


def test_the_truth_is_written_when_the_mock_is_told_to_end(program: Path, tmp_path: Path):
    with serving(program, ttft_ms=1, gap_ms=1, lifetime_s=60, options=("--truth", str(tmp_path / "truth"))) as mock:
        pass

    assert mock.process.returncode == 0
    assert len(truths.parse_truth((tmp_path / "truth").read_bytes())) == 0


def test_the_mock_ends_by_itself_after_its_lifetime(program: Path):
    done = subprocess.run([program, "--lifetime-s", "0.2"], timeout=10, check=False, capture_output=True)

    assert done.returncode == 0


def made_truth() -> Truth:
    """Two requests of three and two tokens and one still in flight without any, in ms of schedule 100, 20."""
    return Truth(
        ttft_ns=100_000_000,
        gap_ns=20_000_000,
        kernel_arrivals=3,
        arrival_ns=np.array([0, 50, 100]) * 1_000_000,
        ended_ns=np.array([145, 175, 0]) * 1_000_000,
        num_tokens=np.array([3, 2, 0]),
        sent_ns=np.array([101, 121, 144, 150, 175]) * 1_000_000,
    )


def test_latencies_come_from_each_request_by_itself():
    assert truths.ttft_ms(made_truth()).tolist() == [101, 100]
    assert truths.gaps_ms(made_truth()).tolist() == [20, 23, 25]
    assert truths.lateness_ms(made_truth()).tolist() == [1, 1, 4, 0, 5]


def test_the_users_held_are_the_mean_number_in_flight():
    # In flight over [0, 200) ms: 145, 125 and 100 ms.
    assert truths.users_held(made_truth(), 0, 200_000_000) == pytest.approx(370 / 200)
    assert truths.users_held(made_truth(), 60_000_000, 80_000_000) == pytest.approx(2)


def test_choosing_requests_keeps_the_tokens_of_each():
    chosen = truths.select(made_truth(), np.array([1, 0]))

    assert (chosen.sent_ns / 1e6).tolist() == [150, 175, 101, 121, 144]
    assert truths.gaps_ms(truths.last_requests(made_truth(), 2)).tolist() == [25]
    assert truths.arrived_between(made_truth(), 0, 50_000_000).num_tokens.tolist() == [3]


def test_rates_count_tokens_by_the_time_they_were_sent():
    assert truths.tokens_per_s(made_truth(), 120_000_000, 160_000_000) == pytest.approx(3 / 0.04)
    assert truths.whole_run_tokens_per_s(made_truth()) == pytest.approx(5 / 0.175)
    assert truths.possible_tokens_per_s(10, 64, 100, 20) == pytest.approx(640 / 1.36)


def test_the_bench_prints_a_table_for_erhpc_at_two_users(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", "--clients", "erhpc", "--users", "2", "--repeats", "1",
         "--seconds", "2", "--ttft-ms", "20", "--gap-ms", "5", "--output", tmp_path / "measurements.json"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "reported minus true" in done.stdout
    [measurement] = json.loads((tmp_path / "measurements.json").read_text())
    assert (measurement["client"], measurement["users"]) == ("erhpc", 2)
    assert measurement["true_ttft"]["mean_ms"] == pytest.approx(20, abs=5)
    assert measurement["reported_ttft"]["mean_ms"] == pytest.approx(measurement["true_ttft"]["mean_ms"], abs=5)
    assert measurement["held"] == pytest.approx(2, abs=0.3)
