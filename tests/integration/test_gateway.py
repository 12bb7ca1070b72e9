"""A real gateway before scripted replicas, all on loopback sockets, asked by real clients."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import aiohttp
import openai
import pytest
from aiohttp import web

from erhpc.config import GatewayConfig
from erhpc.errors import ConfigError, ProcessError
from erhpc.gateway import prober
from erhpc.gateway.server import serve
from tests.fakes.full_backlog import full_backlog
from tests.fakes.gateway_house import (
    CHAT,
    SUM,
    admitted,
    closed_doors,
    error_of,
    free_port,
    housing,
    make_endpoint,
    make_spec,
    official_client,
    queued,
    relay,  # noqa: F401 - used by every test here
    until,
)
from tests.fakes.routing import KeywordClassifier
from tests.fakes.scripted_replica import (
    DONE,
    FRAMES,
    answer_json,
    break_at_once,
    break_whole,
    hang,
    lose,
    open_stream,
    stream_forever,
    stream_frames,
    stream_then_break,
)

# Routing


async def test_a_prompt_is_answered_by_the_expert_of_its_cluster_and_the_headers_say_so():
    async with housing() as house, house.ask("a loop", headers={"x-request-id": "mine-1"}) as response:
        assert response.status == 200
        assert await response.read() == b'{"id":"1",  "choices":[]}'
        headers = response.headers
        assert (headers["x-erhpc-expert"], headers["x-erhpc-replica"]) == ("code", "code-0")
        assert (headers["x-erhpc-cluster"], headers["x-request-id"]) == ("1", "mine-1")
        assert 0 < float(headers["x-erhpc-classify-us"]) < 1e5
        assert headers["x-erhpc-engine"] == "emulated"
        assert headers["Content-Type"] == "application/json"
        assert house.replicas["code-0"].seen[0].headers["x-request-id"] == "mine-1"
        assert await house.requests("ok", "code-0") == 1
        assert await house.metric("erhpc_classify_seconds_count") == 1


async def test_a_prompt_with_no_known_word_goes_to_the_default_expert_and_is_counted():
    async with housing(default_expert="code") as house:
        async with house.ask("?") as response:
            assert response.headers["x-erhpc-expert"] == "code"
            assert "x-erhpc-cluster" not in response.headers
        assert await house.metric("erhpc_default_expert_total") == 1


async def test_a_request_that_names_an_expert_is_pinned_and_not_classified():
    async with housing() as house, house.ask("a loop", model="math") as response:
        assert response.headers["x-erhpc-expert"] == "math"
        assert "x-erhpc-classify-us" not in response.headers
        assert await house.metric("erhpc_classify_seconds_count") == 0


async def test_round_robin_takes_turns():
    async with housing(policy="round_robin") as house:
        assert await replicas_of(house, 4) == ["math-0", "code-0", "math-0", "code-0"]


async def test_random_choices_repeat_with_the_seed():
    async with housing(policy="random") as house:
        first = await replicas_of(house, 12)
    async with housing(policy="random") as house:
        assert await replicas_of(house, 12) == first
    assert set(first) == {"math-0", "code-0"}


async def test_least_loaded_avoids_busy_replicas():
    async with housing(stream_forever, policy="least_loaded") as house, house.ask(model="math"):
        assert await house.in_flight() == [1, 0]
        async with house.ask() as second:
            assert second.headers["x-erhpc-replica"] == "code-0"


async def test_the_least_loaded_replica_of_the_clusters_expert_answers():
    names = ("math-0", "code-0", "math-1")
    async with housing(stream_forever, names=names) as house, house.ask("sum") as first, house.ask("sum") as second:
        assert {r.headers["x-erhpc-replica"] for r in (first, second)} == {"math-0", "math-1"}


async def replicas_of(house, count, text="a sum", **asked):
    names = []
    for _ in range(count):
        async with house.ask(text, **asked) as response:
            names.append(response.headers["x-erhpc-replica"])
    return names


SIX = ("math-0", "math-1", "math-2", "code-0", "code-1", "code-2")


async def test_requests_of_one_session_are_answered_by_one_replica_and_sessions_spread():
    async with housing(names=SIX, policy="session", replica_policy="session") as house:
        homes = []
        for number in range(48):
            by_header = await replicas_of(house, 2, headers={"x-session-id": f"Zoë {number}"}, user="someone else")
            by_field = await replicas_of(house, 2, path="/v1/completions", user=f"Zoë {number}")
            assert len({*by_header, *by_field}) == 1
            homes.append(by_field[0])
        assert set(homes) == set(SIX)
        assert set(await replicas_of(house, 6)) == set(SIX)


async def test_a_session_moves_when_its_replica_is_gone_and_the_others_stay():
    port = free_port()
    async with housing(names=SIX[:3], absent={"math-1": port}, policy="session", replica_policy="session") as house:
        before = [await replicas_of(house, 2, user=f"s{number}") for number in range(20)]
        after = [await replicas_of(house, 1, user=f"s{number}") for number in range(20)]
        stayed = [(old, new) for old, new in zip(before, after, strict=True) if "math-1" not in old]
        assert len(stayed) > 5
        assert all(old[0] == old[1] == new[0] for old, new in stayed)
        assert {name for names in after for name in names} == {"math-0", "math-2"}


async def test_prompts_that_begin_alike_are_answered_by_one_replica_of_their_expert():
    async with housing(names=SIX, replica_policy="prefix_affinity", prefix_limit_chars=20) as house:
        homes = set()
        for number in range(24):
            begin = f"sum of prefix {number}".ljust(20, ".")
            names = {(await replicas_of(house, 1, f"{begin} {end}"))[0] for end in ("one", "two")}
            assert len(names) == 1
            homes |= names
        assert homes == {"math-0", "math-1", "math-2"}


async def test_a_hot_prefix_overloads_no_replica():
    async with housing(
        stream_forever, names=SIX[:3], policy="prefix_affinity", replica_policy="prefix_affinity", affinity_slack=2
    ) as house:
        responses = [await house.ask(stream=True) for _ in range(30)]
        loads = await house.in_flight()
        assert sum(loads) == 30
        assert 8 < max(loads) <= 1.5 * 10 + 2
        for response in responses:
            response.close()


async def test_a_prompt_whose_expert_is_full_is_answered_by_the_nearest_with_room_and_this_is_said_and_counted():
    names = ("math-0", "math-1", "code-0")
    async with housing(stream_forever, names=names, overflow="next_nearest", overflow_limit=2) as house:
        own = [await house.ask() for _ in range(4)]
        assert await house.in_flight() == [2, 2, 0]
        assert not any("x-erhpc-overflow-from" in response.headers for response in own)
        async with house.ask() as response:
            headers = response.headers
            assert (headers["x-erhpc-expert"], headers["x-erhpc-overflow-from"]) == ("code", "math")
            assert headers["x-erhpc-cluster"] == "0"
            assert await house.metric('erhpc_overflow_total{from="math",to="code"}') == 1
        async with house.ask("a loop"), house.ask("a loop"), house.ask() as last:
            # Nobody has room now, so the prompt goes where it belongs.
            assert last.headers["x-erhpc-expert"] == "math"
            assert await house.metric('erhpc_overflow_total{from="math",to="code"}') == 1


async def test_a_prompt_whose_expert_is_down_overflows_where_that_is_allowed():
    async with housing(absent={"math-0": free_port()}, overflow="next_nearest") as house:
        async with house.ask() as response:
            assert response.status == 502
        async with house.ask() as response:
            assert (response.status, response.headers["x-erhpc-overflow-from"]) == (200, "math")
        async with house.ask(model="math") as response:
            assert response.status == 503


# What is forwarded


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_the_body_is_forwarded_as_received_but_for_the_model_name(path):
    prompt = b'"messages":[{"role":"user","content":"sum"}]' if path == CHAT else b'"prompt":"sum"'
    raw = b'{"x_unknown":{"a": [1.50e0]},"model":"auto",' + prompt + b',"temperature":0.0}'
    async with housing() as house:
        async with house.session.post(path, data=raw) as response:
            assert response.status == 200
        seen = house.replicas["math-0"].seen[0]
    assert (seen.path, seen.body) == (path, raw.replace(b'"auto"', b'"llama"'))
    assert seen.headers["Content-Type"] == "application/json"
    assert not {"accept-encoding", "authorization", "cookie"} & {name.lower() for name in seen.headers}


async def test_an_error_of_the_replica_is_passed_on_unchanged():
    async def refuse(request):
        return web.Response(status=429, body=b'{"no":1}', headers={"Retry-After": "3"})

    async with housing(refuse) as house:
        async with house.ask() as response:
            assert (response.status, await response.read()) == (429, b'{"no":1}')
            assert response.headers["Retry-After"] == "3"
        assert await house.requests("rejected") == 1


async def test_a_compressed_answer_is_passed_on_as_it_is():
    async def compressed(request):
        response = web.Response(body=b"x" * 5000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with housing(compressed) as house, house.ask() as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert await response.read() == b"x" * 5000


# Streams


async def test_a_stream_is_relayed_byte_for_byte():
    async with housing(stream_frames) as house, house.ask(stream=True) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert await response.read() == b"".join(FRAMES) + DONE
        assert await house.requests("ok") == 1


async def test_each_token_is_relayed_before_the_next_one_is_made():
    may_go_on = asyncio.Queue()

    async def one_by_one(request):
        response = await open_stream(request)
        for frame in FRAMES:
            await may_go_on.get()
            await response.write(frame)
        return response

    may_go_on.put_nowait(None)
    async with housing(one_by_one) as house, house.ask(stream=True) as response:
        for frame in FRAMES:
            assert await asyncio.wait_for(response.content.readany(), 5) == frame
            may_go_on.put_nowait(None)


@pytest.mark.parametrize("parts", [FRAMES[:2], (FRAMES[0], FRAMES[1][:20])])
async def test_a_stream_that_breaks_ends_in_an_error_event_and_is_counted(parts):
    async with housing(stream_then_break(*parts)) as house:
        async with house.ask(stream=True) as response:
            body = await response.read()
        assert body.startswith(b"".join(parts))
        events = body.split(b"\n\n")
        assert events[-1] == b""
        error = json.loads(events[-2].removeprefix(b"data: "))["error"]
        assert (error["code"], error["type"]) == ("replica_broken", "server_error")
        assert await house.requests("broken") == 1
        assert await house.in_flight() == [0, 0]


async def test_a_stream_that_falls_silent_ends_in_an_error_event():
    async with housing(stream_forever, limits=GatewayConfig(idle_timeout_s=0.2)) as house:
        async with house.ask(stream=True) as response:
            body = await response.read()
        assert b'"replica_silent"' in body
        assert await house.requests("silent") == 1
        assert await house.replicas["math-0"].departures.get() is True


async def test_a_slow_reader_holds_the_replica_back_and_still_gets_every_byte():
    block = b"data: " + b"x" * 65528 + b"\n\n"
    held_back = asyncio.Event()

    async def flood(request):
        response = await open_stream(request)
        for _ in range(800):
            writing = asyncio.create_task(response.write(block))
            if not (await asyncio.wait({writing}, timeout=0.2))[0]:
                held_back.set()
            await writing
        return response

    async with housing(flood) as house, house.ask(stream=True) as response:
        begin = await response.content.readexactly(len(block))
        await asyncio.wait_for(held_back.wait(), 10)
        rest = [chunk async for chunk in response.content.iter_any()]
        assert begin + b"".join(rest) == 800 * block


async def test_the_official_client_streams_through_the_gateway():
    async with housing(stream_frames, key="secret") as house, official_client(house, "secret") as client:
        names = [model.id async for model in client.models.list()]
        stream = await client.chat.completions.create(model="auto", messages=SUM, stream=True)
        text = "".join([event.choices[0].delta.content async for event in stream])
    assert (names, text) == (["auto", "math", "code"], "t0t1t2t3t4")
    assert house.replicas["math-0"].seen[0].headers["Authorization"] == "Bearer secret"


async def test_the_official_client_raises_when_a_stream_breaks_or_a_model_is_unknown():
    async with housing(stream_then_break(*FRAMES)) as house, official_client(house, "-") as client:
        stream = await client.chat.completions.create(model="auto", messages=SUM, stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            _ = [event async for event in stream]
        with pytest.raises(openai.NotFoundError, match=r"Allowed: auto, math, code"):
            await client.chat.completions.create(model="law", messages=SUM)


# Refusals


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"{", None),
        (b'{"model":"auto"}', "messages"),
        (b'{"model":"auto","messages":[{"role":1}]}', "messages[0].role"),
    ],
)
async def test_a_malformed_body_is_answered_400(raw, param):
    async with housing() as house, house.session.post(CHAT, data=raw) as response:
        assert response.status == 400
        error = await error_of(response)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert await house.metric('erhpc_requests_total{expert="",replica="",outcome="refused"}') == 1


async def test_an_unknown_model_is_answered_404():
    async with housing() as house, house.ask(model="law") as response:
        assert response.status == 404
        assert (await error_of(response))["code"] == "model_not_found"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_answered_413_and_one_at_the_limit_is_not(chunked):
    head, foot = b'{"model":"auto","messages":[{"role":"user","content":"sum', b'"}]}'
    exact = head + b"x" * (2048 - len(head) - len(foot)) + foot

    async def in_parts(body):
        yield body[:1000]
        yield body[1000:]

    async with housing(limits=GatewayConfig(max_body_bytes=2048)) as house:
        for body, status in ((exact, 200), (exact + b" ", 413)):
            async with house.session.post(CHAT, data=in_parts(body) if chunked else body) as response:
                assert response.status == status
                if status == 413:
                    assert "2048 bytes" in (await error_of(response))["message"]


async def test_a_request_waits_for_its_turn_and_one_too_many_is_answered_503():
    doors = closed_doors()
    async with housing(doors.answer, limits=GatewayConfig(max_in_flight=1, max_queued=1)) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        second = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: queued(house, 1))
        async with house.ask() as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert (await error_of(response))["code"] == "overloaded"
        doors.open()
        assert (await first).status == 200
        await doors.arrived.acquire()
        doors.open()
        assert (await second).status == 200
        assert await house.metric('erhpc_requests_total{expert="",replica="",outcome="overloaded"}') == 1
        await until(lambda: admitted(house, 0))
        for response in (await first, await second):
            response.release()


async def test_whoever_waits_too_long_for_a_turn_is_answered_503():
    doors = closed_doors()
    async with housing(doors.answer, limits=GatewayConfig(max_in_flight=1, queue_timeout_s=0.2)) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        async with house.ask() as response:
            assert response.status == 503
            assert (await error_of(response))["code"] == "overloaded"
        doors.open()
        (await first).release()
        doors.open()
        async with house.ask() as response:
            assert response.status == 200


async def test_a_client_that_leaves_the_queue_makes_room_in_it():
    doors = closed_doors()
    async with housing(doors.answer, limits=GatewayConfig(max_in_flight=1, max_queued=1)) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        second = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: queued(house, 1))
        second.cancel()
        await until(lambda: queued(house, 0))
        third = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: queued(house, 1))
        doors.open()
        doors.open()
        for asked in (first, third):
            assert (await asked).status == 200
            (await asked).release()
        await until(lambda: admitted(house, 0))


@pytest.mark.parametrize(("is_emulated", "owner"), [(True, "erhpc-emulated"), (False, "erhpc")])
async def test_the_list_of_models_says_whether_experts_are_emulated(is_emulated, owner):
    async with housing(is_emulated=is_emulated) as house, house.session.get("/v1/models") as response:
        assert {card["owned_by"] for card in (await response.json())["data"]} == {owner}


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer secre", "secret", "Bearer s\u00e9cret"])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/telemetry"])
async def test_a_missing_or_wrong_key_is_answered_401(authorization, path):
    headers = {"Authorization": authorization} if authorization else {}
    async with housing(key="secret") as house:
        ask = house.session.post if path == CHAT else house.session.get
        async with ask(path, headers=headers) as response:
            assert response.status == 401
            assert (await error_of(response))["code"] == "invalid_api_key"
        assert not house.replicas["math-0"].seen


async def test_health_and_metrics_need_no_key():
    async with housing(key="secret") as house:
        assert [await house.status("/health"), await house.status("/metrics")] == [200, 200]


async def test_an_unknown_path_is_answered_404_and_a_wrong_method_405():
    async with housing() as house:
        async with house.session.get("/v2/nothing") as response:
            assert response.status == 404
            assert (await error_of(response))["message"] == "GET /v2/nothing: Not Found."
        async with house.session.get(CHAT) as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            await error_of(response)


async def test_a_body_that_is_not_encoded_as_its_headers_say_is_answered_400():
    headers = {"Content-Encoding": "gzip"}
    async with housing() as house, house.session.post(CHAT, data=b"no gzip", headers=headers) as response:
        assert response.status == 400
        await error_of(response)


# Replicas that fail


async def test_an_unreachable_replica_is_answered_502_then_503_until_it_is_well_again():
    port = free_port()
    async with housing(absent={"math-0": port}) as house:
        async with house.ask() as response:
            assert response.status == 502
            assert (await error_of(response))["code"] == "replica_unreachable"
            assert response.headers["x-erhpc-replica"] == "math-0"
        async with house.ask() as response:
            assert response.status == 503
            assert "'math'" in (await error_of(response))["message"]
        async with house.ask("a loop") as response:
            assert response.status == 200
        async with house.session.get("/health") as response:
            assert response.status == 503
            assert (await response.json())["experts_without_live_replica"] == ["math"]
        assert await house.metric('erhpc_requests_total{expert="math",replica="",outcome="no_replica"}') == 1
        async with house.replicas["math-0"].serving(port):
            await until(lambda: is_status(house, 200))
            async with house.ask() as response:
                assert response.status == 200


async def test_a_replica_that_takes_no_connection_is_answered_502_when_the_patience_for_it_is_over():
    with full_backlog() as port:
        async with housing(absent={"math-0": port}, limits=GatewayConfig(connect_timeout_s=0.3)) as house:
            began_s = time.monotonic()
            async with house.ask() as response:
                assert response.status == 502
                assert (await error_of(response))["code"] == "replica_unreachable"
            assert 0.3 <= time.monotonic() - began_s < 30
            assert await house.in_flight() == [0, 0]


async def test_an_expert_is_missing_only_when_none_of_its_replicas_is_live():
    async with housing(names=("math-0", "math-1"), absent={"math-0": free_port()}, policy="round_robin") as house:
        assert await replicas_of(house, 4) == ["math-1"] * 4
        assert await house.metric('erhpc_replica_up{replica="math-0"}') == 0
        assert await house.status() == 200


# Retries


RETRIED = 'erhpc_retries_total{{replica="math-0",outcome="{}"}}'
TWINS = {"names": ("math-0", "math-1"), "policy": "round_robin", "replica_policy": "round_robin"}


async def test_a_request_whose_replica_is_gone_is_answered_by_another_and_this_is_said_and_counted():
    async with housing(absent={"math-0": free_port()}, **TWINS) as house:
        async with house.ask() as response:
            assert (response.status, response.headers["x-erhpc-replica"]) == (200, "math-1")
            assert response.headers["x-erhpc-retries"] == "1"
        async with house.ask() as response:
            assert "x-erhpc-retries" not in response.headers
        assert await house.metric(RETRIED.format("unreachable")) == 1
        assert await house.requests("ok", "math-1") == 2
        assert await house.requests("unreachable", "math-0") == 0
        assert await house.in_flight() == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_before_its_first_byte_is_made_elsewhere(stream):
    async with housing(**TWINS) as house:
        act(house, break_at_once, stream_frames)
        async with house.ask(stream=stream) as response:
            assert await response.read() == b"".join((*FRAMES, DONE))
            assert response.headers["x-erhpc-replica"] == "math-1"
        assert await house.metric(RETRIED.format("broken")) == 1


async def test_a_stream_that_breaks_after_its_first_byte_is_not_made_again():
    async with housing(**TWINS) as house:
        act(house, stream_then_break(FRAMES[0]), stream_frames)
        async with house.ask(stream=True) as response:
            assert b"replica_broken" in await response.read()
        assert await house.metric(RETRIED.format("broken")) == 0


@pytest.mark.parametrize(
    ("status", "headers", "goes_elsewhere"),
    [
        (502, {}, True),
        (504, {}, True),
        (503, {"Retry-After": "1"}, True),
        (429, {"Retry-After": "1"}, True),
        (503, {}, False),
        (429, {}, False),
        (500, {}, False),
        (400, {}, False),
    ],
)
async def test_only_answers_that_may_be_had_elsewhere_are_asked_for_elsewhere(status, headers, goes_elsewhere):
    async def fail(request):
        await request.read()
        return web.Response(status=status, headers=headers, text="{}")

    async with housing(**TWINS) as house:
        act(house, fail, answer_json)
        async with house.ask() as response:
            assert response.status == (200 if goes_elsewhere else status)
        assert await house.metric(RETRIED.format("rejected")) == goes_elsewhere
        assert await house.requests("rejected") == (not goes_elsewhere)


async def test_retries_stop_when_most_requests_fail(monkeypatch):
    monkeypatch.setattr(prober, "PROBE_INTERVAL_S", 0.01)
    async with housing(**TWINS) as house:
        act(house, break_at_once, break_at_once)
        await keep_up(house)
        for _ in range(40):
            async with house.ask() as response:
                assert response.status == 502
            await keep_up(house)
        retries = sum(
            [await house.metric(f'erhpc_retries_total{{replica="math-{k}",outcome="broken"}}') for k in (0, 1)]
        )
        assert 10 <= retries <= 15
        answers = sum([await house.requests("broken", f"math-{k}") for k in (0, 1)])
        assert answers == 40


async def keep_up(house):
    """Wait until the replicas that were closed off are let in again: they are well, as their /health says."""
    await until(lambda: are_up(house, 2), within_s=20)


async def are_up(house, number):
    return sum([await house.metric(f'erhpc_replica_up{{replica="math-{k}"}}') for k in (0, 1)]) == number


def act(house, *scripts):
    """Let the replicas do these, in order."""
    for replica, script in zip(house.replicas.values(), scripts, strict=True):
        replica.script = script


# Replicas that are closed off


async def test_three_broken_answers_in_a_row_close_a_replica_off_until_two_probes_are_good():
    async with housing(break_at_once) as house:
        for number in range(3):
            assert await house.metric('erhpc_circuit_opened_total{replica="math-0"}') == 0
            async with house.ask() as response:
                assert response.status == 502, number
        assert await house.metric('erhpc_circuit_opened_total{replica="math-0"}') == 1
        async with house.ask() as response:
            assert response.status == 503
        await until(lambda: is_status(house, 200))
        assert house.replicas["math-0"].num_probes >= 2


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_refusals_and_errors_of_a_request_close_no_replica_off(status):
    async def fail(request):
        await request.read()
        return web.Response(status=status, text="{}")

    async with housing(fail) as house:
        for _ in range(5):
            async with house.ask() as response:
                assert response.status == status
        assert await house.metric('erhpc_circuit_state{replica="math-0"}') == 0


async def test_an_answer_between_failures_starts_the_count_again():
    async with housing() as house:
        statuses = []
        for script in (break_at_once, break_at_once, answer_json, break_at_once, break_at_once):
            house.replicas["math-0"].script = script
            async with house.ask() as response:
                statuses.append(response.status)
        assert statuses == [502, 502, 200, 502, 502]
        assert await house.metric('erhpc_circuit_state{replica="math-0"}') == 0


async def test_a_silent_replica_whose_health_does_not_answer_is_closed_off(monkeypatch):
    monkeypatch.setattr(prober, "SILENCE_S", 0.05)
    monkeypatch.setattr(prober, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(prober, "PROBE_INTERVAL_S", 0.02)
    async with housing(hang) as house:
        house.replicas["math-0"].healthy = False
        async with aiohttp.ClientSession(house.url, connector=aiohttp.TCPConnector(force_close=True)) as leaver:
            body = {"model": "math", "messages": SUM}
            asking = asyncio.create_task(leaver.post(CHAT, json=body))
            await house.replicas["math-0"].arrivals.get()
            await until(lambda: is_status(house, 503))
            assert await house.metric('erhpc_circuit_opened_total{replica="math-0"}') == 1
            house.replicas["math-0"].healthy = True
            await until(lambda: is_status(house, 200))
            asking.cancel()
            await asyncio.wait([asking])


async def test_a_user_of_the_file_of_keys_takes_no_replica_out(tmp_path):
    (tmp_path / "keys").write_text("ann for-ann\n")
    async with housing(key="secret", limits=GatewayConfig(keys=str(tmp_path / "keys"))) as house:
        async with house.ask(headers={"Authorization": "Bearer for-ann"}) as response:
            assert response.status == 200
        for key, status in (("for-ann", 403), ("nobody's", 401), ("secret", 200)):
            headers = {"Authorization": f"bearer {key}"}
            async with house.session.post("/replicas/math-0/drain", headers=headers) as response:
                assert response.status == status


async def test_a_replica_that_is_drained_gets_no_new_request_and_ends_those_it_has():
    async with housing(stream_forever, key="secret", **TWINS) as house:
        headers = {"Authorization": "Bearer secret"}
        async with house.ask(stream=True, headers=headers) as first:
            assert first.headers["x-erhpc-replica"] == "math-0"
            async with house.session.post("/replicas/math-0/drain") as refused:
                assert refused.status == 401
            async with house.session.post("/replicas/math-0/drain", headers=headers) as told:
                assert (await told.json())["state"] == "draining"
            for _ in range(3):
                async with house.ask(stream=True, headers=headers) as other:
                    assert other.headers["x-erhpc-replica"] == "math-1"
            assert await first.content.readany()
            async with house.session.post("/replicas/math-0/resume", headers=headers) as told:
                assert (await told.json())["state"] == "up"
            async with house.session.post("/replicas/nobody/drain", headers=headers) as unknown:
                assert unknown.status == 404
                assert "math-0, math-1" in (await error_of(unknown))["message"]


async def test_a_replica_that_breaks_off_before_or_within_a_whole_answer_is_answered_502():
    for script in (break_at_once, break_whole):
        async with housing(script) as house:
            async with house.ask() as response:
                assert response.status == 502
                assert (await error_of(response))["code"] == "replica_broken"
            assert await house.requests("broken") == 1
            assert await house.status() == 200


@pytest.mark.parametrize("length", [True, False])
async def test_a_long_whole_answer_is_passed_on_before_its_end_and_not_taken_for_complete_if_it_breaks(length):
    part, goes_on = b"x" * (2 * 1024 * 1024), asyncio.Event()

    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if length:
            response.content_length = 2 * len(part)
        await response.prepare(request)
        await response.write(part)
        await goes_on.wait()
        return lose(request, response)

    async with housing(answer) as house:
        async with house.ask() as response:
            assert response.status == 200
            assert await response.content.readexactly(len(part)) == part
            goes_on.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert await house.requests("broken") == 1


async def test_a_replica_that_never_answers_is_answered_504():
    async with housing(hang, limits=GatewayConfig(idle_timeout_s=0.2)) as house, house.ask() as response:
        assert response.status == 504
        assert "idle_timeout_s" in (await error_of(response))["message"]


async def is_status(house, status):
    return await house.status() == status


# Clients that leave


@pytest.mark.parametrize(("script", "stream"), [(hang, False), (hang, True), (stream_forever, True)])
async def test_a_client_that_leaves_ends_the_replicas_request_at_once(script, stream):
    async with housing(script) as house:
        async with aiohttp.ClientSession(house.url, connector=aiohttp.TCPConnector(force_close=True)) as leaver:
            body = {"model": "math", "messages": [{"role": "user", "content": "x"}], "stream": stream}
            asking = asyncio.create_task(leaver.post(CHAT, json=body))
            await house.replicas["math-0"].arrivals.get()
            if script is stream_forever:
                await (await asking).content.readany()
            assert await house.in_flight() == [1, 0]
            asking.cancel()
            await asyncio.wait([asking])
            if script is stream_forever:
                asking.result().close()
        assert await asyncio.wait_for(house.replicas["math-0"].departures.get(), 5) is True
        await until(lambda: is_cancelled(house, 1))
        assert await house.in_flight() == [0, 0]


async def test_many_clients_that_leave_at_once_leave_nothing_behind():
    async with housing(stream_forever) as house:
        responses = await asyncio.gather(*(house.ask(stream=True) for _ in range(100)))
        for response in responses:
            response.close()
        await until(lambda: is_cancelled(house, 100))
        assert await house.in_flight() == [0, 0]
        for _ in responses:
            assert await asyncio.wait_for(house.replicas["math-0"].departures.get(), 5) is True


async def is_cancelled(house, count):
    return await house.requests("cancelled") == count


# The rest of the surface


async def test_telemetry_tells_the_lag_of_the_event_loop():
    async with housing() as house:
        async with house.session.get("/telemetry?window_s=5") as response:
            assert (await response.json())["lag_p99_s"] >= 0
        assert [await house.status(f"/telemetry?window_s={w}") for w in ("0", "x", "nan", "1e9")] == [400] * 4


async def test_a_port_in_use_is_a_process_error():
    async with housing() as house:
        spec = make_spec([make_endpoint("math-0", house.url)], policy="random")
        with pytest.raises(ProcessError, match=r"cannot listen on 127\.0\.0\.1"):
            async with serve(replace(spec, port=house.url.rpartition(":")[2])):
                pass


async def test_a_classifier_with_another_number_of_clusters_is_refused():
    spec = make_spec([make_endpoint("math-0", "http://127.0.0.1:1")])
    with pytest.raises(ConfigError, match=r"2 clusters.*1 experts"):
        async with serve(spec, classifier=KeywordClassifier("sum", "loop")):
            pass
