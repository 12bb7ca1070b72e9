"""A level is stored with what the servers say of themselves, over real sockets."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from erhpc.cluster.levels import LevelStore
from erhpc.plan.levels import LoadPoint
from erhpc.results.paths import RunPaths
from erhpc.results.store import read_levels, write_part
from tests.integration.synthetic_results import make_part
from tests.unit.experiments import plan

SECOND = 1_000_000_000
ON_TIME = {"lag_p99_s": 0.001, "step_lateness_p99_s": 0.002}
GATEWAY = {"lag_p99_s": 0.003}


@asynccontextmanager
async def serving(answer, asked=None):
    """A server whose /telemetry answers `answer`, a status or a JSON value; yields its URL."""

    async def telemetry(request):
        if asked is not None:
            asked.append((float(request.query["window_s"]), float(request.query["ago_s"])))
        return web.Response(status=answer) if isinstance(answer, int) else web.json_response(answer)

    app = web.Application()
    app.router.add_get("/telemetry", telemetry)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def store_level(tmp_path, *, gateway=GATEWAY, experts=None, reasons=(), asked=None, part=None):
    """The stored row of level 0 of the quickstart; `experts` are the telemetry answers of its first replicas."""
    planned, run = plan("quickstart"), RunPaths(tmp_path)
    # The window of a synthetic part began when the machine did, long before any server could remember.
    write_part(run.part(0, 0), part or replace(make_part(3), window_start_monotonic_ns=-3600 * 10**9))
    answers = [*(experts or []), *[ON_TIME] * len(planned.replicas)][: len(planned.replicas)]
    async with AsyncExitStack() as stack:
        gateway_url = await stack.enter_async_context(serving(gateway, asked))
        urls = [await stack.enter_async_context(serving(answer, asked)) for answer in answers]
        store = await stack.enter_async_context(LevelStore(planned, run, "key", gateway_url, urls))
        await store.store(planned.levels[0], LoadPoint(users=1), list(reasons))
    return read_levels(tmp_path).iloc[0]


async def test_the_servers_are_asked_for_no_more_than_they_remember(tmp_path):
    asked = []

    row = await store_level(tmp_path, asked=asked)

    assert set(asked) == {(600.0, 0.0)}
    assert row["gateway_lag_p99_s"] == 0.003


async def test_the_servers_are_asked_for_the_time_of_the_requests_that_count(tmp_path):
    asked, now_ns = [], time.monotonic_ns()
    (measured, *_) = make_part(3).records
    ends_ns = {"measure": now_ns - 100 * SECOND, "drain": now_ns}
    records = [replace(measured, phase=phase, end_monotonic_ns=end_ns) for phase, end_ns in ends_ns.items()]
    window_ns = (now_ns - 150 * SECOND, now_ns - 120 * SECOND)
    part = replace(
        make_part(3), records=records, window_start_monotonic_ns=window_ns[0], window_end_monotonic_ns=window_ns[1]
    )

    await store_level(tmp_path, asked=asked, part=part)

    ((window_s, ago_s),) = set(asked)
    assert window_s == pytest.approx(50, abs=0.01)  # from the window's begin to the end of its last request
    assert 100 <= ago_s < 200


async def test_an_emulated_expert_was_as_late_as_its_event_loop_or_its_steps(tmp_path):
    row = await store_level(tmp_path, experts=[{"lag_p99_s": 0.004, "step_lateness_p99_s": 0.5}])

    assert row["engine_lag_p99_s"] == 0.5
    assert "emulated-expert-bound: p99 lag 500.0 ms > 10.0 ms" in row["invalid_reasons"]


@pytest.mark.parametrize(
    ("answer", "why"), [(500, "HTTP 500"), ({"lag_p99_s": None}, "Expected"), ({}, "missing"), (["no"], "Expected")]
)
async def test_a_server_that_does_not_tell_how_late_it_ran_is_a_reason(tmp_path, answer, why):
    row = await store_level(tmp_path, gateway=answer, experts=[answer])

    gateway, expert = row["invalid_reasons"][:2]
    assert gateway.startswith("gateway: no telemetry (")
    assert expert.startswith("expert_0-0: no telemetry (")
    assert why in gateway
    assert row["gateway_lag_p99_s"] != row["gateway_lag_p99_s"], "null is read as NaN"


async def test_a_run_whose_server_died_asks_nobody(tmp_path):
    asked = []

    row = await store_level(tmp_path, reasons=["server died: law-0"], asked=asked)

    assert asked == []
    assert row["invalid_reasons"][0] == "server died: law-0"
