"""A gateway of several processes: what they share, and what becomes of it when one of them dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import pytest

from erhpc.config import GatewayConfig
from erhpc.gateway import supervisor
from erhpc.gateway.supervisor import MAX_EARLY_DEATHS, supervise
from erhpc.plan.specs import GatewaySpec
from tests.fakes.gateway_house import CHAT, SUM, closed_doors, free_port, make_endpoint, make_spec, until
from tests.fakes.scripted_replica import (
    FRAMES,
    ScriptedReplica,
    answer_json,
    break_at_once,
    open_stream,
    stream_forever,
)
from tests.runs import ROOT

pytestmark = pytest.mark.timeout(90)

GAUGES = ("erhpc_admitted", "erhpc_queued", 'erhpc_in_flight{replica="math-0"}')


@dataclass
class Processes:
    """A gateway process with its workers, and the replica behind it."""

    process: asyncio.subprocess.Process
    replica: ScriptedReplica
    session: aiohttp.ClientSession
    url: str
    status_url: str
    errors: list[str] = field(default_factory=list)
    """Lines of stderr."""

    @property
    def workers(self):
        """Process ids of those that pass requests on."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def ask(self, **fields):
        """Over a connection of its own: the kernel deals connections out."""
        return self.session.post(self.url + CHAT, json={"model": "math", "messages": SUM, **fields})

    async def samples(self, url=None):
        async with self.session.get(f"{url or self.status_url}/metrics") as response:
            lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def sample(self, name):
        return (await self.samples()).get(name, 0.0)

    async def is_sample(self, name, value):
        return await self.sample(name) == value

    async def outcomes(self):
        """Requests by how they ended, over all replicas."""
        found = {}
        for name, value in (await self.samples()).items():
            if match := re.match(r'erhpc_requests_total\{.*outcome="(\w+)"\}', name):
                found[match[1]] = found.get(match[1], 0) + value
        return found

    async def rows(self):
        """What /status.json says of each process."""
        async with self.session.get(f"{self.status_url}/status.json") as response:
            return (await response.json())["processes"]

    async def spread(self, number_each):
        """Ask for streams, over new connections, until each process has so many or more; the answers."""
        answers = []
        async with asyncio.timeout(20):
            while min(row["admitted"] for row in await self.rows()) < number_each:
                answers.append(await self.ask(stream=True))
        return answers


def write_spec(folder, replica, **changes):
    """A spec file for `jobs.gateway`."""
    limits = GatewayConfig(processes=2, **changes.pop("limits", {}))
    spec = make_spec([make_endpoint("math-0", replica.url)], policy="round_robin", limits=limits)
    path = folder / "spec.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(spec) | changes))
    return path


async def start(path):
    """Start the gateway of a spec."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jobs.gateway", "--spec", str(path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )


async def keep_lines(stream, lines):
    async for line in stream:
        lines.append(line.decode().rstrip())


@asynccontextmanager
async def running(folder, script=answer_json, **changes):
    """A gateway of two processes before one replica."""
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(ScriptedReplica(script).serving())
        process = await start(write_spec(folder, replica, **changes))
        errors = []
        reading = asyncio.create_task(keep_lines(process.stderr, errors))
        workers = []
        try:
            urls = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode().split()[-1:] for _ in range(2)]
            assert all(urls), errors
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            status_url = urls[1][0].removesuffix("/status")
            house = Processes(process, replica, session, urls[0][0], status_url, errors)
            workers = house.workers
            assert len(workers) == 2
            yield house
        finally:
            if process.returncode is None:
                process.terminate()
                await asyncio.wait_for(process.wait(), 20)
            await asyncio.wait_for(reading, 10)
            for pid in workers:
                assert not is_running(pid)


def is_running(pid):
    return Path(f"/proc/{pid}").exists()


def end(answers):
    for answer in answers:
        answer.close()


async def test_connections_are_dealt_out_and_each_port_tells_of_the_whole(tmp_path):
    async with running(tmp_path, stream_forever) as house:
        answers = await house.spread(2)
        number = len(answers)
        assert {answer.status for answer in answers} == {200}
        assert sum(row["admitted"] for row in await house.rows()) == number
        assert await house.sample('erhpc_in_flight{replica="math-0"}') == number
        for _ in range(8):  # whichever process answers
            on_data_port = await house.samples(house.url)
            assert on_data_port['erhpc_in_flight{replica="math-0"}'] == number
            assert on_data_port["erhpc_processes"] == 2
        end(answers)
        await until(lambda: house.is_sample('erhpc_cancels_total{phase="stream"}', number))
        apart, here = await house.samples(), await house.samples(house.url)
        steady = {name for name in apart if "loop_lag" not in name}
        assert {name: here[name] for name in steady} == {name: apart[name] for name in steady}
        assert [apart[name] for name in GAUGES] == [0, 0, 0]
        assert all(row["seen_s_ago"] < 5 for row in await house.rows())


async def test_the_places_are_those_of_both_processes_and_one_gets_what_the_other_gives_up(tmp_path):
    doors = closed_doors()
    async with running(tmp_path, doors.answer, limits={"max_in_flight": 2}) as house:
        asked = [asyncio.ensure_future(house.ask().__aenter__()) for _ in range(12)]
        await until(lambda: house.is_sample("erhpc_queued", 10))
        assert await house.sample("erhpc_admitted") == 2
        assert sum(row["queued"] for row in await house.rows()) == 10
        most = 0
        for _ in asked:
            await doors.arrived.acquire()
            most = max(most, await house.sample('erhpc_in_flight{replica="math-0"}'))
            doors.open()
        assert {(await asking).status for asking in asked} == {200}
        # Two processes that look at the same time may each take the last place.
        assert 2 <= most <= 3
        await until(lambda: house.is_sample("erhpc_admitted", 0))
        assert await house.sample("erhpc_queued") == 0
        assert await house.sample("erhpc_queue_seconds_count") == 10
        end([await asking for asking in asked])


async def test_a_place_that_one_process_gives_up_goes_to_whoever_waits_at_the_other(tmp_path):
    async with running(tmp_path, stream_forever, limits={"max_in_flight": 1}) as house:
        first = await house.ask(stream=True)
        rows = await house.rows()
        other = 1 - [row["admitted"] for row in rows].index(1)
        async with asyncio.timeout(20):
            while True:
                asking = asyncio.ensure_future(house.ask(stream=True).__aenter__())
                await until(lambda: house.is_sample("erhpc_queued", 1))
                if (await house.rows())[other]["queued"] == 1:
                    break
                asking.cancel()  # it came to the same process
                await until(lambda: house.is_sample("erhpc_queued", 0))
        first.close()
        async with asyncio.timeout(5):
            second = await asking
        assert second.status == 200
        rows = await house.rows()
        assert [rows[other]["admitted"], rows[1 - other]["admitted"]] == [1, 0]
        second.close()


async def test_a_process_that_is_killed_is_started_again_and_what_it_had_is_counted_as_lost(tmp_path):
    async with running(tmp_path, stream_forever) as house:
        answers = await house.spread(3)
        rows, victim = await house.rows(), house.workers[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: house.is_sample("erhpc_process_restarts_total", 1), within_s=20)
        await until(lambda: house.is_sample("erhpc_processes", 2), within_s=20)
        assert len(house.workers) == 2
        assert victim not in house.workers
        lost = (await house.outcomes())["lost"]
        assert lost in {row["admitted"] for row in rows}
        assert await house.sample('erhpc_in_flight{replica="math-0"}') == len(answers) - lost

        house.replica.script = answer_json
        for _ in range(10):
            async with house.ask() as answer:
                assert answer.status == 200
        end(answers)
        await until(lambda: house.is_sample('erhpc_in_flight{replica="math-0"}', 0))
        assert [await house.sample(name) for name in GAUGES] == [0, 0, 0]
        assert await house.outcomes() == {"ok": 10, "lost": lost, "cancelled": len(answers) - lost}
        assert f"gateway: process 0 ended with code -{signal.SIGKILL}; starting it again" in house.errors


async def test_a_gateway_whose_process_dies_again_and_again_gives_up(tmp_path):
    async with running(tmp_path) as house:
        stayed = house.workers[1]
        for number in range(MAX_EARLY_DEATHS):
            await until(lambda: house.is_sample("erhpc_processes", 2), within_s=20)
            assert await house.sample("erhpc_process_restarts_total") == number
            (victim,) = set(house.workers) - {stayed}
            os.kill(victim, signal.SIGKILL)
            if number < MAX_EARLY_DEATHS - 1:
                await until(lambda n=number: house.is_sample("erhpc_process_restarts_total", n + 1), within_s=20)
        assert await asyncio.wait_for(house.process.wait(), 20) == 1
        assert not is_running(stayed)
    assert house.errors[-1].startswith("gateway: error: Process 0 of the gateway died 3 times within 10 s of its start")
    assert len(house.errors) == MAX_EARLY_DEATHS


@asynccontextmanager
async def supervising(folder):
    """A gateway that is watched over by this process; its status URL and the ids of its processes."""
    async with ScriptedReplica(answer_json).serving() as replica:
        path = write_spec(folder, replica)
        before = find_children()
        spec = msgspec.json.decode(path.read_bytes(), type=GatewaySpec)
        async with supervise(spec, path, key=None) as places, aiohttp.ClientSession() as session:

            async def restarts():
                async with session.get(f"{places.status_url}/status.json") as response:
                    return (await response.json())["restarts"]

            yield restarts, find_children() - before


def find_children():
    threads = Path("/proc/self/task").glob("*/children")
    return {int(pid) for thread in threads for pid in thread.read_text().split()}


async def test_a_process_that_stands_still_is_killed_and_started_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervisor, "STARE_S", 1.0)
    async with supervising(tmp_path) as (restarts, workers):
        victim = min(workers)
        os.kill(victim, signal.SIGSTOP)

        async def is_restarted():
            return await restarts() == 1

        await until(is_restarted, within_s=20)
        assert not is_running(victim)
    assert "stands still; killing it" in capfd.readouterr().err


async def test_processes_that_stood_still_with_the_one_that_watches_are_left_alone(tmp_path, monkeypatch):
    """Slurm suspends jobs, and people press Ctrl-Z."""
    monkeypatch.setattr(supervisor, "STARE_S", 2.0)
    async with supervising(tmp_path) as (restarts, workers):
        assert await restarts() == 0
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(3.0)  # this process stands still too, and is the first to go on
        assert await restarts() == 0
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for _ in range(20):
            assert await restarts() == 0
        assert all(map(is_running, workers))


async def test_the_status_port_answers_while_the_processes_stand_still(tmp_path):
    async with running(tmp_path, stream_forever) as house:
        async with house.ask(stream=True):
            workers = house.workers
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(5), house.session.get(f"{house.status_url}/health") as response:
                    assert (response.status, await response.json()) == (200, {"status": "ok"})
                assert sum(row["admitted"] for row in await house.rows()) == 1
                assert await house.sample('erhpc_in_flight{replica="math-0"}') == 1
            finally:
                for pid in workers:
                    os.kill(pid, signal.SIGCONT)
            async with house.ask(stream=True) as response:
                assert await response.content.readany() == FRAMES[0]
        assert house.workers == workers


async def test_the_processes_end_by_themselves_when_the_one_that_watches_is_killed(tmp_path):
    async with running(tmp_path) as house:
        workers = house.workers
        house.process.kill()
        await house.process.wait()

        async def are_gone():
            return not any(map(is_running, workers))

        await until(are_gone, within_s=15)


async def test_a_second_gateway_on_the_same_port_is_refused_in_one_line_and_the_first_goes_on(tmp_path):
    async with running(tmp_path) as house:
        second = tmp_path / "second"
        second.mkdir()
        process = await start(write_spec(second, house.replica, port=house.url.rpartition(":")[2]))
        output, errors = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, output) == (1, b"")
        assert errors.decode().count("\n") == 1, errors
        assert errors.startswith(b"gateway: error: The gateway cannot listen on 127.0.0.1:")
        for _ in range(4):
            async with house.ask() as answer:
                assert answer.status == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artefact": "/nowhere/router"}, "/nowhere/router"),
        ({"limits": {"tls_certificate": "/nowhere/certificate"}}, "gateway.tls_certificate=/nowhere/certificate"),
        ({"limits": {"keys": "/nowhere/keys"}}, "gateway.keys=/nowhere/keys cannot be read"),
    ],
)
async def test_processes_that_cannot_start_end_the_gateway_in_one_line(tmp_path, changes, message):
    process = await start(write_spec(tmp_path, ScriptedReplica(answer_json, url="http://127.0.0.1:9"), **changes))
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, output) == (1, b"")
    assert errors.decode().count("\n") == 1, errors.decode()
    assert errors.startswith(b"gateway: error: ")
    assert message in errors.decode()


async def test_a_replica_that_one_process_finds_down_gets_nothing_from_the_other_until_it_is_well(tmp_path):
    async with running(tmp_path, break_at_once) as house:
        house.replica.healthy = False
        statuses = []
        for _ in range(40):
            async with house.ask() as answer:
                statuses.append(answer.status)
        # Three failures in all, not in each; the kernel sends both of them connections.
        assert statuses == [502] * 3 + [503] * 37
        assert len(house.replica.seen) == 3
        assert await house.sample('erhpc_circuit_opened_total{replica="math-0"}') == 1
        async with house.session.get(f"{house.status_url}/health") as response:
            assert response.status == 503
        house.replica.script, house.replica.healthy = answer_json, True
        await until(lambda: house.is_sample('erhpc_circuit_state{replica="math-0"}', 0))
        for _ in range(10):
            async with house.ask() as answer:
                assert answer.status == 200


def hold_stream():
    """A replica that begins an answer, says so, and ends it once it may."""
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def stream(request):
        response = await open_stream(request)
        await response.write(FRAMES[0])
        begun.set()
        await may_end.wait()
        await response.write(FRAMES[1])
        return response

    return begun, may_end, stream


async def test_a_running_answer_ends_before_the_gateway_does(tmp_path):
    begun, may_end, stream = hold_stream()
    async with running(tmp_path, stream) as house:
        async with house.ask(stream=True) as answer:
            await begun.wait()
            house.process.terminate()

            async def is_closed():
                try:
                    async with house.session.get(f"{house.url}/health"):
                        return False
                except aiohttp.ClientError:
                    return True

            await until(is_closed)
            may_end.set()
            assert await answer.read() == FRAMES[0] + FRAMES[1]
        assert await asyncio.wait_for(house.process.wait(), 10) == 0
        assert house.errors == []


async def test_who_waits_when_the_gateway_is_told_to_stop_is_answered_503_and_the_running_answer_ends(tmp_path):
    begun, may_end, stream = hold_stream()
    async with running(tmp_path, stream, limits={"max_in_flight": 1}) as house:
        async with house.ask(stream=True) as answer:
            await begun.wait()
            waiting = [asyncio.ensure_future(house.ask(pad="x" * 1000 * n).__aenter__()) for n in range(8)]
            await until(lambda: house.is_sample("erhpc_queued", 8))
            house.process.terminate()
            for told in await asyncio.wait_for(asyncio.gather(*waiting), 10):
                assert (told.status, told.headers["Retry-After"]) == (503, "1")
                assert told.content_type == "application/json"
                assert (await told.json())["error"]["code"] == "overloaded"
            may_end.set()
            assert await answer.read() == FRAMES[0] + FRAMES[1]
        assert await asyncio.wait_for(house.process.wait(), 10) == 0
        assert (house.errors, len(house.replica.seen)) == ([], 1)


def replace_text(path, text):
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_all_processes_follow_the_file_of_keys_the_one_that_watches_too(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann old-key\n")
    async with running(tmp_path, limits={"keys": str(keys), "max_in_flight_per_key": 1}) as house:

        async def statuses(key):
            """Of the data port, some times, and of the status port."""
            found = []
            for url in (*[f"{house.url}/v1/models"] * 6, f"{house.status_url}/telemetry"):
                async with house.session.get(url, headers={"Authorization": f"Bearer {key}"}) as response:
                    found.append(response.status)
            return set(found)

        async def is_told():
            return bool(house.errors)

        async def have_changed():
            return await statuses("new-key") == {200} and await statuses("old-key") == {401}

        assert await statuses("old-key") == {200}
        replace_text(keys, "ann\n")
        await until(is_told, within_s=10)
        assert await statuses("old-key") == {200}
        replace_text(keys, "ann new-key\n")
        await until(have_changed, within_s=10)

        house.replica.script = stream_forever
        headers = {"Authorization": "Bearer new-key"}
        body = {"model": "math", "messages": SUM, "stream": True}
        async with house.session.post(house.url + CHAT, json=body, headers=headers) as first:
            assert first.status == 200
            for _ in range(10):  # to both processes
                async with house.session.post(house.url + CHAT, json=body, headers=headers) as other:
                    assert other.status == 429
        told = [line for line in house.errors if "gateway.keys" in line]
        assert len(told) == 1
        assert "line 1: 1 words" in told[0]
        assert not [line for line in house.errors if "-key" in line]


async def test_a_replica_that_is_drained_on_the_status_port_gets_nothing_from_any_process(tmp_path):
    async with running(tmp_path) as house:
        async with house.session.post(f"{house.status_url}/replicas/math-0/drain") as told:
            assert (await told.json())["state"] == "draining"
        for _ in range(10):
            async with house.ask() as answer:
                assert answer.status == 503
        async with house.session.post(f"{house.status_url}/replicas/math-0/resume") as told:
            assert (await told.json())["state"] == "up"
        async with house.ask() as answer:
            assert answer.status == 200
        assert len(house.replica.seen) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_serves_until_it_is_told_to_stop_and_exits_0(tmp_path, number):
    (tmp_path / "key").write_text("secret\n")
    async with ScriptedReplica(answer_json).serving() as replica:
        spec = make_spec([make_endpoint("math-0", replica.url)], policy="round_robin")
        document = msgspec.to_builtins(spec) | {"port": str(free_port()), "key_file": str(tmp_path / "key")}
        (tmp_path / "spec.json").write_bytes(msgspec.json.encode(document))
        process = await asyncio.create_subprocess_exec(*command(tmp_path / "spec.json"), stdout=subprocess.PIPE)
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
            url = line.split()[-1]
            body = {"model": "math", "messages": [{"role": "user", "content": "x"}]}
            async with (
                aiohttp.ClientSession(headers={"Authorization": "Bearer secret"}) as session,
                session.post(url + CHAT, json=body) as response,
            ):
                assert response.status == 200
        finally:
            process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_file": "/nowhere/key"}, "key_file=/nowhere/key cannot be read"),
        ({"key_file": "/dev/null"}, "key_file=/dev/null is empty"),
        ({"expert_key_file": "/nowhere/key"}, "expert_key_file=/nowhere/key cannot be read"),
        ({"artefact": "/nowhere/router"}, "artefact /nowhere/router"),
        ({"port": "x", "endpoints": 3}, "no readable GatewaySpec"),
        ({"router": {"policy": "magic"}}, "magic"),
        ({}, "needs a classifier"),
    ],
)
def test_a_spec_that_cannot_be_served_ends_in_one_line_and_exit_1(tmp_path, changes, message):
    document = msgspec.to_builtins(make_spec([make_endpoint("math-0", "http://127.0.0.1:1")])) | changes
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(document))
    ended = subprocess.run(command(tmp_path / "spec.json"), capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert message in ended.stderr


def command(spec):
    return (sys.executable, "-m", "jobs.gateway", "--spec", str(spec))
