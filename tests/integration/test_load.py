from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from erhpc.config import ArrivalConfig, LengthConfig, LoadConfig, ProfileConfig, ThinkTimeConfig
from erhpc.errors import ConfigError
from erhpc.load.messages import Begin, CloseWindow, End, OpenWindow, encode_line
from erhpc.load.progress import Progress
from erhpc.load.users import backoff_s
from erhpc.plan.levels import LoadPoint
from erhpc.plan.specs import ClientSpec, Endpoint
from erhpc.results.record import ClientPart, RequestRecord
from erhpc.results.store import read_part
from erhpc.workload.traces import Trace
from tests.fakes.streaming_expert import StreamingExpert
from tests.load_level import make_spec, open_loop, run_level


async def run_users(spec: ClientSpec, users: int = 4, **options: object) -> ClientPart:
    (part,) = await run_level(spec, LoadPoint(users=users), **options)
    return part


def counted(records: list[RequestRecord]) -> list[RequestRecord]:
    """All but those of the drain, which the end of the level cuts wherever they are."""
    return [record for record in records if record.phase != "drain"]


def records_of(parts: list[ClientPart]) -> list[RequestRecord]:
    return [record for part in parts for record in part.records]


async def test_each_request_of_100_users_has_one_record():
    async with StreamingExpert().serving() as expert:
        part = await run_users(make_spec(expert.url), 100)
    answered = [record for record in part.records if record.status == "ok"]
    assert 200 < len(answered) <= len(expert.bodies) <= len(part.records)
    assert len({record.request_id for record in part.records}) == len(part.records)
    assert {record.status for record in counted(part.records)} == {"ok"}
    assert {record.user for record in part.records} == set(range(100))
    assert all(record.tokens_out == record.max_tokens and record.tokens_in == 5 for record in answered)
    assert all(len(record.token_gaps_us) < record.max_tokens for record in part.records)
    assert {(record.expert, record.replica) for record in answered} == {("math", "math-0")}


async def test_connections_are_kept_and_records_say_which_request_opened_one():
    async with StreamingExpert().serving() as expert:
        part = await run_users(make_spec(expert.url), 10)
    assert len(expert.connections) == sum(record.new_connection for record in part.records) == 10 < len(expert.bodies)


async def test_a_record_tells_when_things_happened():
    async with StreamingExpert(ttft_s=0.03, gap_s=0.01).serving() as expert:
        part = await run_users(make_spec(expert.url, output_tokens=LengthConfig(mean=5)), 1)
    record = part.records[1]
    assert record.scheduled_monotonic_ns == part.records[0].end_monotonic_ns <= record.sent_monotonic_ns
    assert record.first_token_monotonic_ns - record.sent_monotonic_ns >= 29_000_000
    assert len(record.token_gaps_us) == 4
    assert all(gap_us > 5_000 for gap_us in record.token_gaps_us)
    span_ns = record.last_token_monotonic_ns - record.first_token_monotonic_ns
    assert sum(record.token_gaps_us) == pytest.approx(span_ns / 1000, abs=1)
    assert record.end_monotonic_ns >= record.last_token_monotonic_ns
    assert (record.latency_from, record.stamped_by, record.frames) == ("sent", "kernel", 5)


async def test_phases_follow_each_other_and_the_last_is_cut():
    async with StreamingExpert(gap_s=0.01).serving() as expert:
        part = await run_users(make_spec(expert.url))
    window = range(part.window_start_monotonic_ns, part.window_end_monotonic_ns + 1)
    assert len(window) / 1e9 == pytest.approx(0.5, abs=0.4)
    assert Counter(record.phase for record in part.records).keys() == {"warmup", "measure", "drain"}
    assert all((record.scheduled_monotonic_ns in window) for record in part.records if record.phase == "measure")
    assert max(record.end_monotonic_ns for record in counted(part.records)) > window.stop
    assert {record.status for record in counted(part.records)} == {"ok"}
    assert {record.status for record in part.records} == {"ok", "cancelled"}
    assert not part.interrupted
    assert part.lag_p99_s < 1


async def test_the_window_opens_once_every_user_has_finished_a_request_and_the_load_is_steady():
    async with StreamingExpert(ttft_s=0.4).serving() as expert:
        part = await run_users(make_spec(expert.url, warmup_s=0.0, warmup_max_s=30.0), 20)
    firsts = [record for record in part.records if record.sequence == 0]
    assert len(firsts) == 20
    assert max(record.end_monotonic_ns for record in firsts) <= part.window_start_monotonic_ns
    assert part.steady is True
    assert 4 < part.warmup_s < 29
    assert not part.warmup_cut


async def test_the_warm_up_ends_at_its_longest_time_though_no_user_has_finished():
    async with StreamingExpert(behaviour="hangs").serving() as expert:
        part = await run_users(make_spec(expert.url, warmup_max_s=0.3, measure_s=0.1, drain_s=0.0))
    assert part.warmup_s == pytest.approx(0.55, abs=0.4)
    assert part.warmup_cut
    assert part.steady is None


async def test_a_window_may_end_after_a_number_of_requests():
    async with StreamingExpert().serving() as expert:
        part = await run_users(make_spec(expert.url, measure_s=60.0, measure_requests=50), 10)
    assert 0.05 < (part.window_end_monotonic_ns - part.window_start_monotonic_ns) / 1e9 < 10
    assert sum(record.phase == "measure" for record in part.records) >= 50


async def test_answers_that_outlast_the_drain_are_cut_and_keep_what_came():
    async with StreamingExpert(behaviour="hangs").serving() as expert:
        part = await run_users(make_spec(expert.url, warmup_max_s=0.2, measure_s=0.1, drain_s=0.2), 10)
    assert len(part.records) == len(expert.bodies) == 10
    assert {(record.status, record.error_kind, record.http_status) for record in part.records} == {
        ("cancelled", "cancelled", 200)
    }
    assert all(record.first_token_monotonic_ns and record.tokens_out == 1 for record in part.records)
    assert not part.interrupted


async def test_a_user_who_thinks_does_not_hold_up_the_end():
    async with StreamingExpert().serving() as expert:
        started_s = time.monotonic()
        part = await run_users(make_spec(expert.url, think_time=ThinkTimeConfig(mean_s=100.0), measure_s=0.2))
    assert time.monotonic() - started_s < 5
    assert len(part.records) == 4


async def test_users_think_as_long_as_they_are_told_to():
    async with StreamingExpert().serving() as expert:
        part = await run_users(make_spec(expert.url, think_time=ThinkTimeConfig(mean_s=0.05), measure_s=1.0), 5)
    pauses_s = [
        (later.scheduled_monotonic_ns - earlier.end_monotonic_ns) / 1e9
        for user in range(5)
        for earlier, later in zip(of_user(part, user), of_user(part, user)[1:], strict=False)
    ]
    assert len(pauses_s) > 10
    assert pauses_s == pytest.approx([0.05] * len(pauses_s), abs=1e-6)


def of_user(part: ClientPart, user: int) -> list[RequestRecord]:
    return [record for record in part.records if record.user == user]


async def test_users_begin_evenly_over_the_ramp():
    async with StreamingExpert().serving() as expert:
        part = await run_users(make_spec(expert.url, ramp_s=0.5, warmup_s=0.6, warmup_max_s=0.6), 50)
    firsts_ns = sorted(record.scheduled_monotonic_ns for record in part.records if record.sequence == 0)
    assert (firsts_ns[-1] - firsts_ns[0]) / 1e9 == pytest.approx(0.49, abs=0.01)
    assert np.diff(firsts_ns).max() / 1e9 == pytest.approx(0.01, abs=0.001)


async def test_a_profile_of_steps_lets_more_and_more_users_ask():
    profile = ProfileConfig(kind="steps", steps=4)
    async with StreamingExpert(ttft_s=0.02).serving() as expert:
        part = await run_users(make_spec(expert.url, profile=profile, measure_s=2.0), 8)
    start_ns = part.window_start_monotonic_ns
    asking = [
        {r.user for r in part.records if 0.1 <= (r.sent_monotonic_ns - start_ns) / 1e9 - step / 2 < 0.5}
        for step in range(4)
    ]
    assert asking == [set(range(2)), set(range(4)), set(range(6)), set(range(8))]
    assert part.steady is None


async def test_every_failure_is_a_record_and_the_user_backs_off():
    async with StreamingExpert(behaviour="refuses").serving() as expert:
        part = await run_users(make_spec(expert.url, warmup_s=0.0, measure_s=1.0), 1)
    assert {(record.status, record.error_kind, record.http_status) for record in part.records} == {
        ("failed", "status", 404)
    }
    pauses_s = [
        (later.sent_monotonic_ns - earlier.end_monotonic_ns) / 1e9
        for earlier, later in zip(part.records, part.records[1:], strict=False)
    ]
    assert all(pause_s >= backoff_s(number) - 0.001 for number, pause_s in enumerate(pauses_s, start=1))
    assert len(part.records) == len(expert.bodies) <= 5


def test_the_back_off_doubles_up_to_five_seconds():
    assert [backoff_s(failures) for failures in (1, 2, 3, 6, 7, 10_000)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]


async def test_a_replica_asked_without_a_gateway_is_named_in_the_records():
    async with StreamingExpert(named=False).serving() as expert:
        direct = Endpoint(replica="law-1", expert="law", model="m", url=expert.url)
        part = await run_users(replace(make_spec(expert.url), direct=direct))
    assert {(record.expert, record.replica) for record in part.records} == {("law", "law-1")}


async def test_the_key_is_sent_with_each_request():
    async with StreamingExpert().serving() as expert:
        await run_users(make_spec(expert.url), key="secret")
    assert expert.keys == {"Bearer secret"}


async def test_the_reference_client_takes_the_place_of_the_native_one():
    async with StreamingExpert().serving() as expert:
        part = await run_users(make_spec(expert.url, load=LoadConfig(client="aiohttp")), 5)
    assert {(record.status, record.stamped_by) for record in counted(part.records)} == {("ok", "loop")}


async def test_a_stop_cuts_all_requests_at_once():
    stop = asyncio.Event()
    async with StreamingExpert(gap_s=10).serving() as expert:
        level = asyncio.create_task(run_users(make_spec(expert.url, measure_s=60), 50, stop=stop))
        for _ in range(50):
            await expert.arrivals.get()
        stop.set()
        part = await asyncio.wait_for(level, 3.0)
    assert part.interrupted
    assert len(part.records) == 50
    assert {record.status for record in part.records} == {"cancelled"}


async def test_a_user_asks_the_same_whatever_the_number_of_users_and_of_processes():
    async with StreamingExpert().serving() as expert:
        few = await run_level(make_spec(expert.url), LoadPoint(users=2))
        many = await run_level(make_spec(expert.url), LoadPoint(users=20), num_workers=3)
    for user in (0, 1):
        asked = [[r.prompt_id for r in records_of(parts) if r.user == user] for parts in (few, many)]
        shorter = min(map(len, asked))
        assert shorter > 1
        assert asked[0][:shorter] == asked[1][:shorter]


async def test_users_are_dealt_to_the_processes_and_share_one_window():
    async with StreamingExpert().serving() as expert:
        parts = await run_level(make_spec(expert.url), LoadPoint(users=10), num_workers=4)
    assert [{record.user for record in part.records} for part in parts] == [{0, 4, 8}, {1, 5, 9}, {2, 6}, {3, 7}]
    assert [{record.worker for record in part.records} for part in parts] == [{0}, {1}, {2}, {3}]
    assert len(counted(records_of(parts))) <= len(expert.bodies) <= len(records_of(parts))
    for of in (lambda part: part.window_start_monotonic_ns, lambda part: part.window_end_monotonic_ns):
        edges_ns = [of(part) - part.clock_offset_ns for part in parts]
        assert max(edges_ns) - min(edges_ns) < 1_000_000
    # All in this process: one clock, so that what is found is the error of looking.
    assert all(abs(part.clock_offset_ns) <= 1_000_000 for part in parts)


async def test_an_open_loop_does_not_wait_for_answers():
    async with StreamingExpert(ttft_s=0.5).serving() as expert:
        spec = make_spec(expert.url, **open_loop("constant"), warmup_s=0.2, warmup_max_s=0.2, measure_s=1.0)
        (part,) = await run_level(spec, LoadPoint(rate_per_s=100.0))
    scheduled_s = np.array([record.scheduled_monotonic_ns for record in part.records]) / 1e9
    assert np.diff(np.sort(scheduled_s)) == pytest.approx(np.full(len(scheduled_s) - 1, 0.01), abs=1e-6)
    assert 100 < len(counted(part.records)) <= len(expert.bodies) <= len(part.records)
    assert {record.latency_from for record in part.records} == {"scheduled"}
    late_s = [(record.sent_monotonic_ns - record.scheduled_monotonic_ns) / 1e9 for record in part.records]
    assert np.median(late_s) < 0.005


async def test_the_processes_of_an_open_loop_share_one_schedule():
    async with StreamingExpert().serving() as expert:
        spec = make_spec(expert.url, **open_loop("poisson"), measure_s=1.0)
        parts = await run_level(spec, LoadPoint(rate_per_s=200.0), num_workers=3)
    alone = sorted(record.user for record in counted(records_of(parts)))
    assert alone == list(range(len(alone)))
    assert all(record.user % 3 == record.worker for record in records_of(parts))


async def test_a_trace_is_replayed_with_its_lengths_and_ends_the_level_when_it_ends():
    at_s = np.array([0.0, 0.2, 0.3, 0.9])
    tokens_in, tokens_out = np.array([30, 20, 10, 5], dtype=np.int32), np.array([3, 4, 5, 6], dtype=np.int32)
    trace = Trace(at_s=at_s, tokens_in=tokens_in, tokens_out=tokens_out)
    fields = {
        "arrivals": ArrivalConfig(kind="trace"),
        "trace": "given",
        "format": "synthetic",
        "input_tokens": LengthConfig(kind="trace"),
        "output_tokens": LengthConfig(kind="trace"),
    }
    async with StreamingExpert().serving() as expert:
        spec = make_spec(expert.url, **fields, warmup_s=0.0, measure_s=60.0)
        started_s = time.monotonic()
        (part,) = await run_level(spec, LoadPoint(), trace=trace)
    assert time.monotonic() - started_s < 20
    assert [record.max_tokens for record in part.records] == [3, 4, 5, 6]
    scheduled_s = np.array([record.scheduled_monotonic_ns for record in part.records]) / 1e9
    assert scheduled_s - scheduled_s[0] == pytest.approx(at_s, abs=1e-6)
    assert [len(body["messages"][-1]["content"]) for body in expert.bodies] == [120, 80, 40, 20]


async def test_a_conversation_repeats_what_was_said():
    async with StreamingExpert().serving() as expert:
        spec = make_spec(expert.url, turns=LengthConfig(mean=3), output_tokens=LengthConfig(mean=4))
        part = await run_users(spec, 1)
    assert [record.turn for record in part.records[:5]] == [0, 1, 2, 0, 1]
    lengths = [len(body["messages"]) for body in expert.bodies[:4]]
    assert lengths == [1, 3, 5, 1]
    assert expert.bodies[2]["messages"][:3] == expert.bodies[1]["messages"]


async def test_progress_is_reported_twice_a_second():
    progress: list[Progress] = []
    async with StreamingExpert(gap_s=0.02).serving() as expert:
        await run_users(make_spec(expert.url, measure_s=2.6), progress=progress)
    assert len(progress) >= 4
    last = progress[-1]
    assert (last.level, last.users) == (2, 4)
    assert last.output_tokens_per_s == pytest.approx(4 / 0.025, rel=0.6)
    assert [report.requests_ok for report in progress] == sorted(report.requests_ok for report in progress)
    assert {report.phase for report in progress} >= {"measure"}


async def test_more_users_than_open_files_are_refused_before_the_first_request():
    async with StreamingExpert().serving() as expert:
        with pytest.raises(ConfigError, match=r"users need .* open files"):
            await run_users(make_spec(expert.url), 2**31)
    assert not expert.bodies


class ClientJob:
    """`python -m jobs.client` as a conductor sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, spec: ClientSpec, folder: Path) -> ClientJob:
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        pipe = asyncio.subprocess.PIPE
        arguments = ("-m", "jobs.client", "--spec", str(folder / "spec.json"))
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        return cls(process)

    def tell(self, *commands: object) -> None:
        for command in commands:
            self.process.stdin.write(encode_line(command))

    async def hear(self, kind: str) -> dict[str, object]:
        while line := await self.process.stdout.readline():
            report = json.loads(line)
            if report["type"] == kind:
                return report
        raise AssertionError(f"the client ended without a report of type {kind}")


async def test_the_job_obeys_its_conductor_and_writes_its_part(tmp_path: Path):
    async with StreamingExpert().serving() as expert:
        job = await ClientJob.start(make_spec_with(expert.url, tmp_path), tmp_path)
        await job.hear("ready")
        now_ns = time.monotonic_ns()
        job.tell(
            Begin(at_ns=now_ns, users=4),
            OpenWindow(at_ns=now_ns + 200_000_000, steady=None, cut=False),
            CloseWindow(at_ns=now_ns + 700_000_000),
        )
        while not (tally := await job.hear("tally"))["drained"]:
            assert tally["elapsed_s"] < 30
        job.tell(End())
        _, complaints = await job.process.communicate()
    assert (job.process.returncode, complaints) == (0, b"")
    assert tally["requests_failed"] == 0
    part = read_part(tmp_path / "part.parquet")
    assert 4 < len(counted(part.records)) <= len(expert.bodies) <= len(part.records)
    assert part.window_end_monotonic_ns - part.window_start_monotonic_ns == 500_000_000
    assert not part.interrupted


def make_spec_with(url: str, folder: Path, **workload: object) -> ClientSpec:
    return replace(make_spec(url, **workload), output=str(folder / "part.parquet"))


@pytest.mark.parametrize("how", ["term", "end of stdin", "end"])
async def test_a_job_that_is_told_to_end_saves_its_part_at_once(tmp_path: Path, how: str):
    async with StreamingExpert(behaviour="hangs").serving() as expert:
        job = await ClientJob.start(make_spec_with(expert.url, tmp_path), tmp_path)
        await job.hear("ready")
        job.tell(Begin(at_ns=time.monotonic_ns(), users=50))
        for _ in range(50):
            await expert.arrivals.get()
        if how == "term":
            os.kill(job.process.pid, signal.SIGTERM)
        elif how == "end":
            job.tell(End())
        else:
            job.process.stdin.close()
        ended_s = time.monotonic()
        await job.process.communicate()
        assert time.monotonic() - ended_s < 10  # not the 60 s that answers may take
    assert job.process.returncode == 0
    part = read_part(tmp_path / "part.parquet")
    assert part.interrupted == (how != "end")
    assert [record.status for record in part.records] == ["cancelled"] * 50


async def test_a_job_without_prompts_fails_with_one_line(tmp_path: Path):
    spec = make_spec_with("http://127.0.0.1:9", tmp_path, prompts=str(tmp_path / "absent.jsonl"))
    job = await ClientJob.start(spec, tmp_path)
    _, complaints = await job.process.communicate()
    assert job.process.returncode == 1
    assert len(complaints.splitlines()) == 1
    assert b"absent.jsonl" in complaints


async def test_a_domain_that_no_prompt_has_is_refused(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "How?", "domain": "math"}) + "\n")
    spec = make_spec_with("http://127.0.0.1:9", tmp_path, prompts=str(file), mixture={"law": 1.0})
    job = await ClientJob.start(spec, tmp_path)
    _, complaints = await job.process.communicate()
    assert job.process.returncode == 1
    assert b"law" in complaints
    assert b"math" in complaints


async def test_a_process_without_users_holds_up_nobody():
    async with StreamingExpert().serving() as expert:
        parts = await run_level(make_spec(expert.url), LoadPoint(users=1), num_workers=3)
    assert [bool(part.records) for part in parts] == [True, False, False]
    assert not any(part.warmup_cut for part in parts)


async def test_arrivals_of_an_open_loop_go_on_until_the_last_answer_of_the_window_is_there():
    async with StreamingExpert(ttft_s=0.6).serving() as expert:
        spec = make_spec(expert.url, **open_loop("constant"), warmup_s=0.8, warmup_max_s=0.8)
        parts = await run_level(spec, LoadPoint(rate_per_s=100.0), num_workers=2)
    records = records_of(parts)
    last_ns = max(record.end_monotonic_ns for record in counted(records))
    scheduled_ns = np.sort([record.scheduled_monotonic_ns for record in records])
    assert {record.status for record in counted(records)} == {"ok"}
    assert np.diff(scheduled_ns[scheduled_ns < last_ns]) == pytest.approx(
        10_000_000, abs=1_000_000
    )  # two processes, two offsets
    assert last_ns - scheduled_ns[-1] < 100_000_000


async def test_an_open_loop_is_warm_once_an_answer_has_come():
    async with StreamingExpert(ttft_s=0.05).serving() as expert:
        spec = make_spec(expert.url, **open_loop("constant"), warmup_s=0.2, warmup_max_s=0.2)
        (part,) = await run_level(spec, LoadPoint(rate_per_s=100.0))
    assert not part.warmup_cut


def test_a_load_without_a_server_says_what_is_missing():
    done = subprocess.run([sys.executable, "-m", "erhpc.load"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "ConfigError: url is missing. Give url=...\n")
