"""One real vLLM server on the CPU serves a synthetic model, lets redirected clients in, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec
import openai
import pytest

from erhpc.config import ArchitectureConfig, ExpertConfig
from erhpc.experts.engine_log import first_error
from erhpc.experts.model_directory import write_model_directory
from erhpc.experts.readiness import wait_until_ready
from erhpc.experts.vllm import write_guest_package
from erhpc.plan.passes import REPLICA_VARIABLE
from erhpc.plan.vllm_command import build_vllm_argv, build_vllm_environment
from tests.fakes.redirecting_gateway import RedirectingGateway

pytestmark = pytest.mark.vllm

TINY = ExpertConfig(
    model="tiny", architecture=ArchitectureConfig(2, 256, 512, 4, 2, 4096), max_model_len=1024, max_num_seqs=16
)
TEXT = "What is the derivative of x squared?\nWhy do cooks salt the water for pasta?\n" * 50
KEY = "not-a-secret"
REPLICA = "tiny-0"
MESSAGES = [{"role": "user", "content": "Why is the sea salty?"}]
READY_S = 240
STOP_S = 20


@pytest.fixture
def tmp() -> Iterator[Path]:
    # Not tmp_path: vLLM's Unix sockets lie there, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="erhpc-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def serve(python: Path, model: Path, port: int, tmp: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server in a process group of its own; the group is gone when the block ends."""
    argv = build_vllm_argv(
        TINY,
        python=str(python),
        model=str(model),
        served_name="tiny",
        aliases=("auto",),
        admits_passes=True,
        host="127.0.0.1",
        port=str(port),
        load_format=None,
        device="cpu",
    )
    environment = build_vllm_environment(device="cpu", tmp=str(tmp), engine_port=str(port + 1))
    write_guest_package(log.parent / "guest")
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=tmp,  # `python -m` searches the working folder first, and erhpc lies in ours
            env=os.environ
            | environment
            | {"VLLM_API_KEY": KEY, REPLICA_VARIABLE: REPLICA, "PYTHONPATH": str(log.parent / "guest")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if list_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def find_port() -> int:
    """Find a port below the ephemeral range, so that no outgoing connection takes it meanwhile."""
    for port in range(26000 + os.getpid() % 1000, 32000):
        with socket.socket() as candidate:
            if candidate.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no free port")


def list_group(group: int) -> list[int]:
    """Return the processes of a group that are no zombies."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(member_of) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


def read_resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def stream_chat(url: str, max_tokens: int) -> tuple[str, int]:
    """Return the text of one streamed answer and the number of tokens its usage reports."""
    body = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, num_tokens = "", 0
    async with (
        aiohttp.ClientSession(trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            frame = msgspec.json.decode(line.removeprefix(b"data: "))
            text += "".join(choice["delta"].get("content") or "" for choice in frame["choices"])
            num_tokens = (frame.get("usage") or {}).get("completion_tokens", num_tokens)
    return text, num_tokens


async def ask_redirected(url: str, replica: str = REPLICA, left_s: int = 60) -> tuple[int, int, str]:
    """Stream with the `openai` client through a gateway that redirects to the server with a pass for `replica`.

    Returns the status, the number of pieces of text, and the model that answered.
    """
    gateway = RedirectingGateway(url, REPLICA, KEY, lifetime_s=left_s, signed_for=replica)
    async with (
        gateway.serving(),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        try:
            stream = await client.chat.completions.create(
                model="auto", messages=MESSAGES, max_tokens=8, stream=True, extra_body={"ignore_eos": True}
            )
        except openai.APIStatusError as error:
            return error.status_code, 0, ""
        chunks = [chunk async for chunk in stream]
    return 200, sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices), chunks[0].model


async def stop_group(group: int, timeout_s: float) -> None:
    """Send TERM to a group and wait until nothing of it runs.

    Raises:
        TimeoutError: something still does.
    """
    os.killpg(group, signal.SIGTERM)
    async with asyncio.timeout(timeout_s):
        while list_group(group):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_real_vllm_streams_exactly_the_tokens_asked_for_lets_passes_in_and_stops(vllm_python, tmp, tmp_path):
    model, log, port = tmp_path / "tiny", tmp_path / "vllm.log", find_port()
    write_model_directory(
        model,
        TINY.architecture,
        dtype=TINY.dtype,
        quantization=None,
        max_model_len=TINY.max_model_len,
        weights="random",
        seed=0,
        training_text=TEXT,
    )
    url = f"http://127.0.0.1:{port}"
    with serve(vllm_python, model, port, tmp, log) as process:
        try:
            took_s = await wait_until_ready(
                url, "tiny", KEY, timeout_s=READY_S, is_alive=lambda: process.poll() is None
            )
        except Exception as error:
            error.add_note(f"first error in its log: {first_error(log.read_text())}")
            raise
        resident_bytes = sum(read_resident_bytes(pid) for pid in list_group(process.pid))
        text, num_tokens = await stream_chat(url, max_tokens=16)
        redirected = await ask_redirected(url)
        refused = [(await ask_redirected(url, **wrong))[0] for wrong in ({"left_s": -5}, {"replica": "tiny-1"})]
        started_s = time.monotonic()
        await stop_group(process.pid, STOP_S)
        print(
            f"vLLM on CPU: ready in {took_s:.1f} s, {resident_bytes / 1e9:.1f} GB resident, "
            f"stopped in {time.monotonic() - started_s:.1f} s, said {text!r}"
        )

    assert num_tokens == 16
    assert (redirected[0], redirected[2]) == (200, "tiny")
    assert redirected[1] >= 1
    assert refused == [401, 401]
    assert len(text.strip()) >= 16
