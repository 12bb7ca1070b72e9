"""Real child processes: their output, their end, and the proof of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erhpc.cluster.janitor import Janitor
from erhpc.cluster.process import ChildProcess, end_session, find_session_members
from erhpc.errors import ProcessError
from tests import runs

IGNORES_TERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
GRANDPARENT = (
    "import subprocess, sys; "
    f"child = subprocess.Popen([sys.executable, '-c', {IGNORES_TERM + 'time.sleep(600)'!r}]); "
    "child.wait()"
)
AGENT = """
import asyncio, sys
from pathlib import Path
from erhpc.cluster.janitor import Janitor
from erhpc.cluster.process import ChildProcess

async def main():
    folder = Path(sys.argv[1]).parent / "tmp"
    folder.mkdir()
    janitor = Janitor(folder)
    child = await ChildProcess.start("child", ["sleep", "600"], {}, Path(sys.argv[1]))
    other = await ChildProcess.start("other", ["sleep", "0"], {}, Path(sys.argv[1]))
    janitor.watch(child.pid)
    janitor.watch(other.pid)
    await other.wait()
    janitor.forget(other.pid)
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def start(tmp_path):
    """Starts children whose log is tmp_path/log; ends every one of them after the test."""
    children = []

    async def start_child(*argv, **options):
        child = await ChildProcess.start("child", argv, os.environ, tmp_path / "log", **options)
        children.append(child)
        return child

    yield start_child
    for child in children:
        await child.stop(0.1)


def run_python(start, code, **options):
    return start(sys.executable, "-c", code, **options)


async def wait_for(condition, deadline_s=20.0):
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true"
        await asyncio.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_what_a_command_prints_goes_to_its_log_and_its_exit_code_is_told(start, tmp_path):
    child = await start("sh", "-c", "echo out; echo err >&2; exit 7")

    assert await child.wait() == 7
    assert not child.is_alive
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


async def test_lines_of_output_are_handed_over_and_errors_still_go_to_the_log(start, tmp_path):
    lines = []

    child = await start("sh", "-c", "echo one; echo two >&2; printf three", on_line=lines.append)

    assert await child.wait() == 0
    assert lines == [b"one", b"three"]
    assert (tmp_path / "log").read_text() == "two\n"


async def test_a_line_longer_than_any_progress_does_not_hide_the_end_of_the_command(start):
    lines = []

    child = await run_python(start, "print('x' * 3_000_000); print('after')", on_line=lines.append)

    assert await asyncio.wait_for(child.wait(), 20) == 0
    assert lines[-1] == b"after"


async def test_a_command_leads_a_session_of_its_own(start):
    child = await start("sleep", "600")

    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert find_session_members(child.pid) == [child.pid]


async def test_a_command_that_heeds_term_is_not_killed(start):
    child = await start("sleep", "600")

    assert await child.stop(10) is False
    assert await child.wait() == -signal.SIGTERM
    assert find_session_members(child.pid) == []


async def test_stopping_what_has_ended_is_nothing(start):
    child = await start("true")
    await child.wait()

    assert await child.stop(10) is False


async def test_a_command_that_ignores_term_is_killed(start, tmp_path):
    child = await run_python(start, IGNORES_TERM + "time.sleep(600)")
    await wait_for(lambda: "up" in (tmp_path / "log").read_text())

    assert await child.stop(0.3) is True
    assert await child.wait() == -signal.SIGKILL
    assert find_session_members(child.pid) == []


async def test_a_grandchild_that_outlives_its_parent_is_killed_too(start, tmp_path):
    child = await run_python(start, GRANDPARENT)
    await wait_for(lambda: "up" in (tmp_path / "log").read_text())
    family = find_session_members(child.pid)
    assert len(family) == 2

    assert await child.stop(0.3) is True
    assert not any(is_running(pid) for pid in family)


async def test_an_orphaned_grandchild_is_found_after_its_parent_ended_by_itself(start):
    child = await start("sh", "-c", "sleep 600 & exit 0")
    await child.wait()
    assert len(find_session_members(child.pid)) == 1

    await child.stop(5)

    assert find_session_members(child.pid) == []


async def test_a_process_that_is_born_while_the_session_is_ended_does_not_survive(start, tmp_path):
    """A shell that answers TERM by starting something new."""
    child = await start("sh", "-c", "trap 'sleep 600 & ' TERM; echo up; while :; do sleep 0.05; done")
    await wait_for(lambda: "up" in (tmp_path / "log").read_text())

    await child.stop(1.0)

    assert find_session_members(child.pid) == []


@pytest.mark.parametrize("command", ["/no/such/command", "/etc/passwd"])
async def test_a_command_that_cannot_be_executed_is_an_error_that_names_it(start, command):
    with pytest.raises(ProcessError, match=f"child: cannot execute '{command}': (No such file|Permission denied)"):
        await start(command)


async def test_ending_a_session_that_never_was_is_nothing():
    assert await end_session(2**22 + 1, 1.0) is False


def test_children_of_a_killed_agent_are_ended(tmp_path):
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    with agent:
        child = int(agent.stdout.readline())
        assert is_running(child)

        agent.kill()

    runs.wait_until(lambda: not is_running(child), 20, "the end of the child")
    runs.wait_until(lambda: not (tmp_path / "tmp").exists(), 20, "the end of its folder")


async def test_a_janitor_that_is_closed_ends_what_it_was_not_told_to_forget(start, tmp_path):
    forgotten, watched = await start("sleep", "600"), await start("sleep", "600")
    janitor = Janitor(tmp_path / "none")
    janitor.watch(forgotten.pid)
    janitor.watch(watched.pid)
    janitor.forget(forgotten.pid)

    await asyncio.to_thread(janitor.close)

    assert await watched.wait() == -signal.SIGTERM
    assert forgotten.is_alive
    await forgotten.stop(5)


async def test_a_janitor_that_somebody_killed_costs_the_run_nothing(tmp_path):
    janitor = Janitor(tmp_path)
    await wait_for(find_janitors)
    (pid,) = find_janitors()
    os.kill(pid, signal.SIGKILL)
    await wait_for(lambda: not is_running(pid))

    janitor.watch(1)
    janitor.forget(1)
    janitor.close()

    assert find_janitors() == []


def find_janitors():
    threads = Path("/proc/self/task").glob("*/children")
    pids = [pid for thread in threads for pid in thread.read_text().split()]
    return [int(pid) for pid in pids if b"erhpc.cluster.janitor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
