from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from erhpc.load.level import run_level

from erhpc.config import LengthConfig, WorkloadConfig
from erhpc.corpus.prompts import Prompt
from erhpc.errors import ConfigError
from erhpc.load.progress import Progress
from erhpc.load.requests import RequestSource
from erhpc.load.streaming import AiohttpClient
from erhpc.load.users import backoff_s
from erhpc.plan.specs import ClientSpec, Endpoint
from erhpc.results.record import ClientPart
from erhpc.results.store import read_part
from tests.fakes.streaming_expert import StreamingExpert

PROMPTS = [Prompt(f"p{number}", "math", f"What is {number} + {number}?") for number in range(40)]


def spec_of(url: str, users: int = 4, **workload: object) -> ClientSpec:
    lengths = LengthConfig(kind="uniform", low=4, high=12, mean=8)
    times = {"warmup_s": 0.1, "warmup_max_s": 5.0, "measure_s": 0.5, "drain_s": 5.0, "output_tokens": lengths}
    config = WorkloadConfig(**(times | workload))
    return ClientSpec(url=url, model="auto", level=2, users=users, workload=config, seed=5, output="unused")


async def run(
    spec: ClientSpec,
    *,
    stop: asyncio.Event | None = None,
    progress: list[Progress] | None = None,
    key: str | None = None,
) -> ClientPart:
    seen = [] if progress is None else progress
    url = spec.url + "/v1/chat/completions"
    async with AiohttpClient(url, timeout_s=spec.workload.timeout_s, key=key) as client:
        return await run_level(spec, client, PROMPTS, stop=stop or asyncio.Event(), on_progress=seen.append)


async def test_each_request_of_100_users_has_one_record():
    async with StreamingExpert().serving() as expert:
        part = await run(spec_of(expert.url, users=100))
    assert len(part.records) == len(expert.bodies) > 200
    assert len({record.request_id for record in part.records}) == len(part.records)
    assert {record.status for record in part.records} == {"ok"}
    assert {record.user for record in part.records} == set(range(100))
    assert all(record.tokens_out == record.max_tokens and record.tokens_in == 5 for record in part.records)
    assert all(len(record.token_gaps_us) < record.max_tokens for record in part.records)
    assert {(record.expert, record.replica) for record in part.records} == {("math", "math-0")}


async def test_connections_are_kept():
    async with StreamingExpert().serving() as expert:
        await run(spec_of(expert.url, users=10))
    assert len(expert.connections) == 10 < len(expert.bodies)


async def test_a_record_tells_when_things_happened():
    async with StreamingExpert(ttft_s=0.03, gap_s=0.01).serving() as expert:
        part = await run(spec_of(expert.url, users=1, output_tokens=LengthConfig(mean=5)))
    record = part.records[1]
    assert record.scheduled_monotonic_ns == part.records[0].end_monotonic_ns <= record.sent_monotonic_ns
    assert record.first_token_monotonic_ns - record.sent_monotonic_ns >= 30_000_000
    assert len(record.token_gaps_us) == 4
    assert all(gap_us > 5_000 for gap_us in record.token_gaps_us)
    span_ns = record.last_token_monotonic_ns - record.first_token_monotonic_ns
    assert sum(record.token_gaps_us) == pytest.approx(span_ns / 1000, abs=1)
    assert record.end_monotonic_ns >= record.last_token_monotonic_ns


async def test_phases_follow_each_other_and_nothing_is_sent_after_the_window():
    async with StreamingExpert(gap_s=0.01).serving() as expert:
        part = await run(spec_of(expert.url))
    window = range(part.window_start_monotonic_ns, part.window_end_monotonic_ns + 1)
    assert len(window) / 1e9 == pytest.approx(0.5, abs=0.4)
    assert Counter(record.phase for record in part.records).keys() == {"warmup", "measure"}
    # A request is due within the window and leaves a moment later.
    assert all((record.scheduled_monotonic_ns in window) for record in part.records if record.phase == "measure")
    assert max(record.sent_monotonic_ns for record in part.records) < window.stop + 100_000_000
    assert max(record.end_monotonic_ns for record in part.records) > window.stop
    assert not part.interrupted
    assert part.lag_p99_s < 1


async def test_the_window_opens_once_every_user_has_finished_a_request():
    async with StreamingExpert(ttft_s=0.4).serving() as expert:
        part = await run(spec_of(expert.url, users=20, warmup_s=0.0))
    firsts = [record for record in part.records if record.sequence == 0]
    assert len(firsts) == 20
    assert max(record.end_monotonic_ns for record in firsts) <= part.window_start_monotonic_ns
    assert part.warmup_s >= 0.4
    assert not part.warmup_cut


async def test_the_warm_up_ends_at_its_longest_time_though_no_user_has_finished():
    async with StreamingExpert(behaviour="hangs").serving() as expert:
        part = await run(spec_of(expert.url, warmup_max_s=0.3, measure_s=0.1, drain_s=0.0))
    assert part.warmup_s == pytest.approx(0.3, abs=0.3)
    assert part.warmup_cut


async def test_a_warm_up_of_fixed_length_is_not_cut_when_everybody_has_finished():
    async with StreamingExpert().serving() as expert:
        part = await run(spec_of(expert.url, warmup_s=0.5, warmup_max_s=0.5))
    assert not part.warmup_cut


async def test_answers_that_outlast_the_drain_are_cut_and_keep_what_came():
    async with StreamingExpert(behaviour="hangs").serving() as expert:
        part = await run(spec_of(expert.url, users=10, warmup_max_s=0.2, measure_s=0.1, drain_s=0.2))
    assert len(part.records) == len(expert.bodies) == 10
    assert {(record.status, record.error_kind, record.http_status) for record in part.records} == {
        ("cancelled", "cancelled", 200)
    }
    assert all(record.first_token_monotonic_ns and record.tokens_out == 1 for record in part.records)
    assert not part.interrupted


async def test_a_user_who_thinks_does_not_hold_up_the_end():
    async with StreamingExpert().serving() as expert:
        started_s = time.monotonic()
        part = await run(spec_of(expert.url, think_time_s=100.0, measure_s=0.2))
    assert time.monotonic() - started_s < 3
    assert len(part.records) == 4


@pytest.mark.parametrize(
    ("behaviour", "kind", "http_status", "text"),
    [
        ("refuses", "status", 404, "model not found"),
        ("hangs", "timeout", 200, "within 0.3 s"),
        ("mute", "timeout", None, "within 0.3 s"),
        ("drops", "truncated", 200, ""),
        ("ends_early", "truncated", 200, "without"),
        ("tells_error", "stream_error", 200, "engine died"),
        ("babbles", "malformed", 200, "<html>"),
        ("answers_json", "malformed", 200, "application/json"),
    ],
)
async def test_every_failure_is_a_record_with_its_kind(behaviour: str, kind: str, http_status: int | None, text: str):
    async with StreamingExpert(behaviour=behaviour).serving() as expert:
        part = await run(spec_of(expert.url, timeout_s=0.3))
    assert len(part.records) == len(expert.bodies) >= 4
    failed = [record for record in part.records if record.status == "failed"]
    assert {(record.error_kind, record.http_status) for record in failed} == {(kind, http_status)}
    assert all(text in record.error_text for record in failed)


async def test_a_server_that_is_not_there_is_a_connect_failure():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: refused for as long as it is held
        spec = replace(
            spec_of(f"http://127.0.0.1:{held.getsockname()[1]}"),
            direct=Endpoint(replica="law-1", expert="law", model="m", url="unused"),
        )
        part = await run(spec)
    assert {(record.status, record.error_kind, record.http_status) for record in part.records} == {
        ("failed", "connect", None)
    }
    assert {(record.expert, record.replica) for record in part.records} == {("law", "law-1")}


async def test_a_user_whose_requests_fail_backs_off():
    async with StreamingExpert(behaviour="refuses").serving() as expert:
        part = await run(spec_of(expert.url, users=1, warmup_s=0.0, measure_s=1.0))
    pauses_s = [
        (later.sent_monotonic_ns - earlier.end_monotonic_ns) / 1e9
        for earlier, later in zip(part.records, part.records[1:], strict=False)
    ]
    assert all(pause_s >= backoff_s(number) - 0.001 for number, pause_s in enumerate(pauses_s, start=1))
    assert len(part.records) <= 4


def test_the_back_off_doubles_up_to_five_seconds():
    assert [backoff_s(failures) for failures in (1, 2, 3, 6, 7, 10_000)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]


async def test_a_replica_asked_without_a_gateway_is_named_in_the_records():
    async with StreamingExpert(named=False).serving() as expert:
        direct = Endpoint(replica="law-1", expert="law", model="m", url=expert.url)
        part = await run(replace(spec_of(expert.url), direct=direct))
    assert {(record.expert, record.replica) for record in part.records} == {("law", "law-1")}


async def test_the_key_is_sent_with_each_request():
    async with StreamingExpert().serving() as expert:
        await run(spec_of(expert.url), key="secret")
    assert expert.keys == {"Bearer secret"}


async def test_a_stop_cuts_all_requests_at_once():
    stop = asyncio.Event()
    async with StreamingExpert(gap_s=10).serving() as expert:
        level = asyncio.create_task(run(spec_of(expert.url, users=50, measure_s=60), stop=stop))
        for _ in range(50):
            await expert.arrivals.get()
        stop.set()
        part = await asyncio.wait_for(level, 3.0)
    assert part.interrupted
    assert part.window_end_monotonic_ns - part.window_start_monotonic_ns < 1_000_000_000
    assert len(part.records) == 50
    assert {record.status for record in part.records} == {"cancelled"}


async def test_a_user_asks_the_same_whatever_the_number_of_users():
    async with StreamingExpert().serving() as expert:
        few, many = await run(spec_of(expert.url, users=2)), await run(spec_of(expert.url, users=20))
    for user in (0, 1):
        asked = [[r.prompt_id for r in part.records if r.user == user] for part in (few, many)]
        shorter = min(map(len, asked))
        assert shorter > 1
        assert asked[0][:shorter] == asked[1][:shorter]


async def test_a_second_client_goes_on_where_the_first_ones_users_end():
    async with StreamingExpert().serving() as expert:
        spec = replace(spec_of(expert.url, users=3), first_user=7)
        part = await run(spec)
    assert {record.user for record in part.records} == {7, 8, 9}
    first = next(record for record in part.records if record.user == 8)
    assert first.prompt_id == RequestSource(8, spec.seed, "auto", spec.workload, PROMPTS).draw().prompt_id


async def test_progress_is_reported_twice_a_second():
    progress: list[Progress] = []
    async with StreamingExpert(gap_s=0.02).serving() as expert:
        await run(spec_of(expert.url, measure_s=1.6), progress=progress)
    assert len(progress) >= 3
    last = progress[-1]
    assert (last.level, last.users, last.in_flight) == (2, 4, 4)
    assert last.output_tokens_per_s == pytest.approx(4 / 0.025, rel=0.5)
    assert last.ttft_p50_s == pytest.approx(0.005, abs=0.02)
    assert [report.requests_ok for report in progress] == sorted(report.requests_ok for report in progress)
    assert {report.phase for report in progress} >= {"measure"}


async def test_more_users_than_open_files_are_refused_before_the_first_request():
    async with StreamingExpert().serving() as expert:
        with pytest.raises(ConfigError, match=r"users need .* open files"):
            await run(spec_of(expert.url, users=2**31))
    assert not expert.bodies


async def start_job(spec: ClientSpec, folder: Path) -> asyncio.subprocess.Process:
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobs.client", "--spec", str(folder / "spec.json"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_the_job_prints_progress_and_writes_its_part(tmp_path: Path):
    async with StreamingExpert().serving() as expert:
        spec = replace(spec_of(expert.url, measure_s=1.0), output=str(tmp_path / "part.parquet"))
        job = await start_job(spec, tmp_path)
        printed, complaints = await job.communicate()
    assert (job.returncode, complaints) == (0, b"")
    assert {json.loads(line)["users"] for line in printed.splitlines()} == {4}
    part = read_part(tmp_path / "part.parquet")
    assert len(part.records) == len(expert.bodies)
    assert not part.interrupted


async def test_a_job_that_is_terminated_saves_its_part_within_a_second(tmp_path: Path):
    async with StreamingExpert(behaviour="hangs").serving() as expert:
        spec = replace(spec_of(expert.url, users=50, measure_s=60.0), output=str(tmp_path / "part.parquet"))
        job = await start_job(spec, tmp_path)
        await job.stdout.readline()
        os.kill(job.pid, signal.SIGTERM)
        terminated_s = time.monotonic()
        await job.communicate()
        assert time.monotonic() - terminated_s < 2
    assert job.returncode == 0
    part = read_part(tmp_path / "part.parquet")
    assert part.interrupted
    assert [record.status for record in part.records] == ["cancelled"] * 50


async def test_a_job_without_prompts_fails_with_one_line(tmp_path: Path):
    spec = spec_of("http://127.0.0.1:9", prompts=str(tmp_path / "absent.jsonl"))
    job = await start_job(spec, tmp_path)
    _, complaints = await job.communicate()
    assert job.returncode == 1
    assert len(complaints.splitlines()) == 1
    assert b"absent.jsonl" in complaints
