"""The page /status as a browser shows it, which runs its script and asks a real gateway."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from contextlib import asynccontextmanager

import pytest

from erhpc.gateway.status_page import STATUS_PAGE
from tests.fakes.gateway_house import CHAT, housing
from tests.fakes.scripted_replica import FRAMES, stream_forever

pytestmark = pytest.mark.timeout(120)

ODD = "<img src=x onerror=alert(1)>-0"
SHOWN = "&lt;img src=x onerror=alert(1)&gt;-0"
OPTIONS = (
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "no chromium on the PATH: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("ERHPC_REQUIRE_ALL") else pytest.skip(reason)
    return found


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page; the document as it is when so many seconds have gone by for it, during which it may wait."""

    async def open_page(url, page_s):
        process = await asyncio.create_subprocess_exec(
            *(browser, *OPTIONS, f"--user-data-dir={tmp_path}", f"--virtual-time-budget={page_s * 1000}"),
            *("--dump-dom", url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        return output.decode()

    return open_page


def cells(document, table):
    """The texts of a table, by row."""
    (body,) = re.findall(rf'<table id="{table}">(.*?)</table>', document, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def opening(document, name):
    """The tag that opens the element of this id."""
    return re.search(rf'<\w+ id="{name}"[^>]*>', document)[0]


async def test_the_page_shows_replicas_their_states_and_that_they_are_emulated(show):
    names = ("math-0", "math-1", ODD)
    async with housing(stream_forever, names=names, is_emulated=True, replica_policy="round_robin") as house:
        async with house.session.post("/replicas/math-1/drain"):
            pass
        async with house.ask(stream=True) as response:
            assert await response.content.readany() == FRAMES[0]
            document = await show(f"{house.url}/status", 3)
    assert cells(document, "replicas") == [
        ["replica", "expert", "state", "in flight", "answered", "cancelled", "failed"],
        ["math-0", "math", "up", "1", "0", "0", "0"],
        ["math-1", "math", "draining", "0", "0", "0", "0"],
        [SHOWN, SHOWN.removesuffix("-0"), "up", "0", "0", "0", "0"],
    ]
    assert "<img" not in document
    assert "hidden" not in opening(document, "mark")
    assert "EMULATED experts" in document
    assert 'class="draining"' in document
    assert re.search(r'id="trouble"[^>]*></p>', document), "there is no trouble"
    assert [row[0] for row in cells(document, "processes")] == ["process", "0"]
    assert ["classify", "1"] in [[row[0], row[-1]] for row in cells(document, "times")]


async def test_the_page_does_not_call_real_experts_emulated_and_counts_what_failed(show):
    async with housing(names=("math-0", "code-0")) as house:
        async with house.ask() as response:
            assert response.status == 200
        async with house.session.post(CHAT, data=b"{"):
            pass
        document = await show(f"{house.url}/status", 2)
    assert "hidden" in opening(document, "mark")
    assert cells(document, "replicas")[1] == ["math-0", "math", "up", "0", "1", "0", "0"]
    tiles = re.findall(r"<b>([^<]*)</b>([^<]+)</div>", document)
    assert ("2", "ended") in tiles, "what a browser asks for the page is no request"


@asynccontextmanager
async def forwarding(port, on_ask):
    """A port from which bytes are passed on to `port` and back; `on_ask` is awaited before each request is."""

    async def visit(reader, writer):
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            writer.close()
            return

        async def pass_back():
            while data := await back_reader.read(65536):
                writer.write(data)
            writer.close()

        passing = asyncio.create_task(pass_back())
        try:
            while data := await reader.read(65536):
                await on_ask(data)
                back_writer.write(data)
        except ConnectionError:
            pass
        finally:
            back_writer.close()
            await asyncio.wait([passing])
            writer.close()

    async with await asyncio.start_server(visit, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


async def test_when_the_gateway_is_gone_the_page_says_so_and_keeps_what_it_knew(show):
    num_asked = 0
    is_time, is_gone = asyncio.Event(), asyncio.Event()

    async def hold_up(data):
        nonlocal num_asked
        num_asked += b"GET /status.json" in data
        if num_asked > 1:
            is_time.set()
            await is_gone.wait()

    async with asyncio.TaskGroup() as showing:
        async with housing() as house:
            port = int(house.url.rpartition(":")[2])
            forwarder = forwarding(port, hold_up)
            front = await forwarder.__aenter__()
            page = showing.create_task(show(f"http://127.0.0.1:{front}/status", 4))
            await asyncio.wait_for(is_time.wait(), 60)
        is_gone.set()
    await forwarder.__aexit__(None, None, None)
    document = page.result()
    assert "The gateway does not answer (" in document.split("<script>")[0]
    assert "what is shown is old." in document.split("<script>")[0]
    assert [row[0] for row in cells(document, "replicas")] == ["replica", "math-0", "code-0"]


def test_the_page_needs_nothing_from_elsewhere():
    assert re.findall(r"https?:|//\w|\bsrc=|\bhref=(?!.data:)|@import|url\(", STATUS_PAGE) == []
