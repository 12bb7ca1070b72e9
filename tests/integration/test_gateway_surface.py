"""What the gateway shows besides answers: keys, queues, other routes, what passes and what does not, counts, TLS."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

import aiohttp
import openai
import pytest
from aiohttp import web

from erhpc.config import GatewayConfig
from erhpc.errors import InputError
from erhpc.gateway import front, prober
from erhpc.gateway import keys as key_file
from erhpc.gateway.app import OTHER_PATHS
from erhpc.gateway.server import serve
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
    ScriptedReplica,
    answer_json,
    break_at_once,
    hang,
    open_stream,
    stream_forever,
    stream_frames,
    stream_then_break,
)

SECRET = "sk-ann-t0p-s3cret"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def rewrite(path, text):
    """Replace a file as users do: a new one in its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A file of keys that is looked at often."""
    monkeypatch.setattr(key_file, "REFRESH_S", 0.01)
    path = tmp_path / "keys"
    path.write_text(f"ann {SECRET}\nann {SECRET}-new\nbob b-1\n")
    return path


@asynccontextmanager
async def leaving(house, *, headers=None, **fields):
    """A request of a client of its own, which leaves when the context ends."""
    async with aiohttp.ClientSession(house.url, connector=aiohttp.TCPConnector(force_close=True)) as leaver:
        body = {"model": "auto", "messages": SUM, **fields}
        asking = asyncio.create_task(leaver.post(CHAT, json=body, headers=headers))
        yield asking
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled() and asking.exception() is None:
            asking.result().close()


async def converse(house, *sent):
    """Status of the answer to each of the byte strings, sent one after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    statuses = []
    for data in sent:
        writer.write(data)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]))
        statuses.append(int(head.split(b" ")[1]))
    writer.close()
    await writer.wait_closed()
    return statuses


def as_bytes(body, *, path=CHAT, fields=b""):
    return b"POST %b HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n" % (path.encode(), fields, len(body)) + body


ASK = json.dumps({"model": "math", "messages": SUM}).encode()


# Keys


async def test_every_key_of_the_file_and_the_runs_own_open_the_gateway_and_no_other_does(keys):
    async with housing(key="own", limits=GatewayConfig(keys=str(keys))) as house:
        for key, status in ((SECRET, 200), (f"{SECRET}-new", 200), ("b-1", 200), ("own", 200), ("b-2", 401), ("", 401)):
            async with house.ask(headers=bearer(key)) as response:
                assert response.status == status, key
                if status == 401:
                    assert (await error_of(response))["code"] == "invalid_api_key"
        assert {seen.headers["Authorization"] for seen in house.replicas["math-0"].seen} == {"Bearer own"}


async def test_keys_change_with_the_file_while_the_gateway_runs_and_none_is_told_to_anyone(keys, capfd, caplog):
    async with housing(limits=GatewayConfig(keys=str(keys))) as house:

        async def is_known(key):
            async with house.ask(headers=bearer(key)) as response:
                return response.status == 200

        async def is_unknown(key):
            return not await is_known(key)

        assert await is_known(SECRET)
        rewrite(keys, f"ann {SECRET}-new\ncarl c-1\n")
        await until(lambda: is_unknown(SECRET))
        assert await is_known("c-1")
        told = ""
        for bad in (f"ann {SECRET} {SECRET}\n", f"{SECRET}\n", ""):
            rewrite(keys, bad)
            heard = ""

            async def is_told():
                nonlocal heard
                heard += capfd.readouterr().err
                return "The keys that were known stay" in heard

            await until(is_told)
            told += heard
            assert await is_known("c-1")
        keys.unlink()
        rewrite(keys, "dora d-1\n")
        await until(lambda: is_known("d-1"))
        async with house.session.get("/metrics") as metrics, house.session.get("/status.json") as status:
            told += await metrics.text() + await status.text()
    told += "".join(capfd.readouterr()) + caplog.text
    assert SECRET not in told
    assert "c-1" not in told


async def test_a_gateway_does_not_start_with_a_file_of_keys_that_it_cannot_use(keys):
    keys.write_text(f"{SECRET}\n")
    with pytest.raises(InputError, match="line 1: 1 words") as caught:
        async with housing(limits=GatewayConfig(keys=str(keys))):
            pass
    assert SECRET not in str(caught.value)


async def test_a_wrong_key_is_answered_before_the_body_is_read_and_the_connection_stays_of_use(keys):
    async with housing(key="own", limits=GatewayConfig(keys=str(keys))) as house:
        wrong = as_bytes(ASK, fields=b"authorization: Bearer nobody\r\n")
        cut = len(wrong) - len(ASK)
        right = as_bytes(ASK, fields=b"authorization: Bearer b-1\r\n")
        assert await converse(house, wrong[:cut], wrong[cut:] + right, right) == [401, 200, 200]
        assert len(house.replicas["math-0"].seen) == 2
        assert await house.metric('erhpc_requests_total{expert="",replica="",outcome="refused"}') == 1


async def test_a_name_has_so_many_requests_in_flight_over_all_its_keys_and_connections(keys):
    limits = GatewayConfig(keys=str(keys), max_in_flight_per_key=2)
    async with housing(stream_forever, key="own", limits=limits) as house:
        async with house.ask(headers=bearer(SECRET)), house.ask(headers=bearer(f"{SECRET}-new")) as second:
            async with house.ask(headers=bearer(SECRET)) as third:
                assert (third.status, third.headers["Retry-After"]) == (429, "1")
                error = await error_of(third)
                assert (error["code"], "max_in_flight_per_key" in error["message"]) == ("rate_limit_exceeded", True)
            for key in ("b-1", "own", "own", "own"):
                async with house.ask(headers=bearer(key)) as other:
                    assert other.status == 200
            assert second.status == 200
        assert await house.metric('erhpc_requests_total{expert="",replica="",outcome="refused"}') == 1


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/v2/rerank", "/score", "/tokenize"])
async def test_the_limit_of_a_name_holds_on_every_route_that_asks_a_model(keys, path):
    limits = GatewayConfig(keys=str(keys), max_in_flight_per_key=1)
    async with housing(stream_forever, limits=limits) as house, house.ask(headers=bearer("b-1")) as first:
        assert first.status == 200
        body = {"model": "math", "messages": SUM, "input": "x"}
        async with house.session.post(path, json=body, headers=bearer("b-1")) as second:
            assert second.status == 429


async def refuse(request):
    return web.Response(status=400, text="{}")


@pytest.mark.parametrize(
    "end", ["answer", "error", "break", "cut", "silence", "malformed", "unknown", "leave", "queue"]
)
async def test_a_place_of_a_key_is_free_again_however_its_request_ends(keys, end):
    scripts = {"error": refuse, "break": break_at_once, "cut": stream_then_break(FRAMES[0]), "silence": hang}
    limits = GatewayConfig(keys=str(keys), max_in_flight_per_key=1, idle_timeout_s=0.1, queue_timeout_s=0.1)
    async with housing(scripts.get(end, answer_json), policy="random", overflow_limit=1, limits=limits) as house:
        headers = bearer(SECRET)
        if end == "malformed":
            async with house.session.post(CHAT, data=b"{", headers=headers) as response:
                assert response.status == 400
        elif end in ("leave", "queue"):
            house.replicas["math-0"].script = hang
            async with leaving(house, headers=headers, model="math"):
                await house.replicas["math-0"].arrivals.get()
                async with house.ask(model="code", headers=headers) as response:
                    assert response.status == 429
        else:
            async with house.ask(model="law" if end == "unknown" else "math", headers=headers) as response:
                await response.read()
        house.replicas["code-0"].script = answer_json

        async def is_free():
            async with house.ask(model="code", headers=headers) as response:
                assert response.status in (200, 429)
                return response.status == 200

        await until(is_free)
        assert await is_free()  # and not more than one place has come back
        house.replicas["code-0"].script = stream_forever
        async with house.ask(model="code", headers=headers), house.ask(model="code", headers=headers) as second:
            assert second.status == 429


# Waiting for an expert


WAIT = {"overflow": "wait", "overflow_limit": 1}


async def waits_for_expert(house, number):
    return await house.metric("erhpc_queued_for_expert") == number


async def test_a_request_whose_expert_is_full_waits_for_it_and_says_how_long():
    doors = closed_doors()
    async with housing(doors.answer, **WAIT) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        second = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: waits_for_expert(house, 1))
        other = asyncio.ensure_future(house.ask("a loop").__aenter__())
        await doors.arrived.acquire()
        assert await house.in_flight() == [1, 1]
        assert await house.metric("erhpc_admitted") == 3
        for _ in range(3):
            doors.open()
        answers = [await asked for asked in (first, second, other)]
        assert [answer.status for answer in answers] == [200] * 3
        waits = [answer.headers.get("x-erhpc-queue-us") for answer in answers]
        assert (waits[0], waits[2]) == (None, None)
        assert 0 < float(waits[1]) < 10e6
        assert await house.metric("erhpc_queue_seconds_count") == 1
        assert await house.metric("erhpc_queue_seconds_sum") == pytest.approx(float(waits[1]) / 1e6, rel=1e-3)
        await until(lambda: admitted(house, 0))
        assert await waits_for_expert(house, 0)
        for answer in answers:
            answer.release()


async def test_a_request_that_waits_too_long_for_its_expert_is_answered_503_and_the_next_one_is_not():
    doors = closed_doors()
    async with housing(doors.answer, limits=GatewayConfig(queue_timeout_s=0.1), **WAIT) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        async with house.ask() as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await error_of(response))["code"] == "overloaded"
        assert await house.metric('erhpc_requests_total{expert="",replica="",outcome="overloaded"}') == 1
        assert await house.metric("erhpc_queue_seconds_count") == 0
        doors.open()
        (await first).release()
        doors.open()
        async with house.ask() as response:
            assert response.status == 200
            assert "x-erhpc-queue-us" not in response.headers


async def test_who_waits_for_an_expert_when_the_gateway_stops_is_answered_503_and_the_running_answer_ends():
    doors = closed_doors()
    async with ScriptedReplica(doors.answer).serving() as replica, aiohttp.ClientSession() as session:
        spec = make_spec([make_endpoint(name, replica.url) for name in ("math-0", "code-0")], **WAIT)
        async with serve(spec, classifier=KeywordClassifier("sum", "loop")) as url:
            asked = []
            for _ in range(3):
                body = {"model": "math", "messages": SUM}
                asked.append(asyncio.ensure_future(session.post(f"{url}{CHAT}", json=body).__aenter__()))
                if len(asked) == 1:
                    await doors.arrived.acquire()

            async def are_waiting():
                async with session.get(f"{url}/metrics") as response:
                    return "\nerhpc_queued_for_expert 2\n" in await response.text()

            await until(are_waiting)

            async def go_on():
                for waiting in asked[1:]:
                    response = await waiting
                    assert (response.status, response.headers["Retry-After"]) == (503, "1")
                    assert (await error_of(response))["code"] == "overloaded"
                doors.open()

            going_on = asyncio.ensure_future(go_on())
        await going_on
        assert (await asked[0]).status == 200
        (await asked[0]).release()


async def test_a_client_that_leaves_while_it_waits_for_an_expert_leaves_its_place_to_the_next():
    doors = closed_doors()
    async with housing(doors.answer, limits=GatewayConfig(max_queued=1), **WAIT) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        async with leaving(house):
            await until(lambda: waits_for_expert(house, 1))
            async with house.ask() as third:
                assert third.status == 503
        await until(lambda: waits_for_expert(house, 0))
        assert await house.metric('erhpc_cancels_total{phase="queue"}') == 1
        assert await house.metric('erhpc_requests_total{expert="",replica="",outcome="cancelled"}') == 1
        fourth = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: waits_for_expert(house, 1))
        for _ in range(2):
            doors.open()
        for asked in (first, fourth):
            assert (await asked).status == 200
            (await asked).release()
        assert len(house.replicas["math-0"].seen) == 2


async def test_requests_go_on_waiting_while_their_expert_is_down_and_go_there_when_it_is_back(monkeypatch):
    monkeypatch.setattr(prober, "SILENCE_S", 0.05)
    monkeypatch.setattr(prober, "PROBE_INTERVAL_S", 0.01)
    doors = closed_doors()
    async with housing(doors.answer, **WAIT) as house:
        replica = house.replicas["math-0"]
        replica.healthy = False
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        second = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: waits_for_expert(house, 1))
        await until(lambda: is_state(house, 1))
        doors.open()
        assert (await first).status == 200
        assert await waits_for_expert(house, 1)
        replica.healthy = True
        await doors.arrived.acquire()
        doors.open()
        assert (await second).status == 200
        assert "x-erhpc-queue-us" in (await second).headers
        for answer in (await first, await second):
            answer.release()


async def test_a_request_whose_expert_is_down_when_it_comes_does_not_wait():
    async with housing(absent={"math-0": free_port()}, **WAIT) as house:
        async with house.ask() as response:
            assert response.status == 502
        async with house.ask() as response:
            assert (response.status, (await error_of(response))["code"]) == (503, "no_live_replica")
            assert int(response.headers["Retry-After"]) > 0
        assert await waits_for_expert(house, 0)
        assert await house.metric("erhpc_admitted") == 0


async def is_state(house, state, replica="math-0"):
    return await house.metric(f'erhpc_circuit_state{{replica="{replica}"}}') == state


async def test_only_those_who_waited_for_a_turn_are_told_how_long():
    doors = closed_doors()
    async with housing(doors.answer, limits=GatewayConfig(max_in_flight=1)) as house:
        first = asyncio.ensure_future(house.ask().__aenter__())
        await doors.arrived.acquire()
        second = asyncio.ensure_future(house.ask().__aenter__())
        await until(lambda: queued(house, 1))
        doors.open()
        assert "x-erhpc-queue-us" not in (await first).headers
        doors.open()
        assert float((await second).headers["x-erhpc-queue-us"]) > 0
        assert await house.metric("erhpc_queue_seconds_count") == 1
        for answer in (await first, await second):
            answer.release()


# Replicas that are silent


async def test_a_replica_that_answers_nothing_is_closed_off_also_while_more_requests_keep_coming(monkeypatch):
    monkeypatch.setattr(prober, "SILENCE_S", 0.4)
    monkeypatch.setattr(prober, "PROBE_INTERVAL_S", 0.02)
    monkeypatch.setattr(front, "WATCH_S", 0.02)
    async with housing(hang, policy="round_robin") as house:
        house.replicas["math-0"].healthy = False
        asked = []
        async with asyncio.timeout(10):
            while not await is_state(house, 1):
                if len(asked) < 200:
                    asked.append(asyncio.ensure_future(house.ask(model="math").__aenter__()))
                await asyncio.sleep(0.05)
        assert len(asked) > 1
        assert await is_state(house, 1)
        for asking in asked:
            asking.cancel()
        await asyncio.wait(asked)


async def test_a_replica_that_answers_is_not_probed_though_one_of_its_requests_takes_long(monkeypatch):
    monkeypatch.setattr(prober, "SILENCE_S", 2.0)
    monkeypatch.setattr(prober, "PROBE_INTERVAL_S", 0.01)
    async with housing(hang) as house:
        replica = house.replicas["math-0"]
        async with leaving(house):
            await replica.arrivals.get()
            replica.script = answer_json
            loop = asyncio.get_running_loop()
            end_s = loop.time() + 2.6
            while loop.time() < end_s:
                async with house.ask() as response:
                    assert response.status == 200
                await asyncio.sleep(0.05)
            assert replica.num_probes < 5  # 0, unless this machine stood still for as long


# Other routes


@pytest.mark.parametrize("path", OTHER_PATHS)
async def test_other_routes_of_experts_are_classified_by_their_text_and_passed_on(path):
    field = "query" if path.endswith(("rerank", "score")) else "prompt" if "tokenize" in path else "input"
    raw = json.dumps({"model": "auto", field: "a loop", "extra": [1.5]}).encode()
    async with housing() as house:
        async with house.session.post(path, data=raw) as response:
            assert (response.status, await response.read()) == (200, b'{"id":"1",  "choices":[]}')
            assert response.headers["x-erhpc-replica"] == "code-0"
        seen = house.replicas["code-0"].seen[0]
        assert (seen.path, seen.body) == (path, msgspec_like(raw))
        assert await house.metric("erhpc_classify_seconds_count") == 1


def msgspec_like(raw):
    """What only the name of the model is changed in, without blanks between fields."""
    return raw.replace(b'"auto"', b'"llama"').replace(b'": ', b'":').replace(b', "', b',"')


async def test_a_list_of_inputs_and_a_request_that_names_no_model_are_routed_too():
    async with housing() as house:
        async with house.session.post("/v1/embeddings", json={"model": "auto", "input": ["x", "a loop"]}) as response:
            assert response.headers["x-erhpc-replica"] == "code-0"
        async with house.session.post("/tokenize", json={"prompt": "a loop"}) as response:
            assert response.headers["x-erhpc-replica"] == "code-0"
        async with house.session.post("/detokenize", json={"model": "code", "tokens": [1, 2]}) as response:
            assert response.headers["x-erhpc-replica"] == "code-0"
        bodies = [json.loads(seen.body) for seen in house.replicas["code-0"].seen]
        assert bodies[1] == {"prompt": "a loop", "model": "llama"}


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/files", "/v1/embeddings/x", "/sleep", "/v1/"]
)
async def test_routes_that_change_a_server_or_that_nobody_knows_are_404_and_reach_no_replica(path):
    async with housing() as house:
        async with house.session.post(path, json={"model": "math", "input": "x"}) as response:
            assert response.status == 404
            await error_of(response)
        assert not house.replicas["math-0"].seen


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
async def test_what_stands_behind_the_question_mark_reaches_the_replica(path):
    query = "api-version=2024-10-21&flag=&text=a%20b%26c%2Fd&text=%C3%A9"
    async with housing() as house:
        body = {"model": "math", "messages": SUM, "prompt": "x", "input": "x"}
        async with house.session.post(f"{path}?{query}", json=body) as response:
            assert response.status == 200
        [seen] = house.replicas["math-0"].seen
        assert seen.path == path
        assert parse_qsl(seen.query, keep_blank_values=True) == parse_qsl(query, keep_blank_values=True)


async def test_each_model_has_a_card_and_others_have_none():
    async with housing() as house, official_client(house, "-") as client:
        listed = [model async for model in client.models.list()]
        assert [await client.models.retrieve(name) for name in ("auto", "math", "code")] == listed
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("law")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# What passes and what does not


TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "rojo=1,congo=t61"}


@pytest.mark.parametrize("key", [None, "own"])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_the_trace_context_reaches_the_replica_and_nothing_else_of_the_client(keys, key, path):
    others = {
        "Authorization": "Bearer b-1",
        "Cookie": "session=1",
        "X-Api-Key": "k",
        "User-Agent": "curl",
        "baggage": "user=ann",
        "X-Forwarded-For": "10.0.0.1",
        "x-session-id": "s-1",
        "Accept-Encoding": "gzip",
        "OpenAI-Organization": "org",
    }
    async with housing(key=key, limits=GatewayConfig(keys=str(keys))) as house:
        body = {"model": "math", "messages": SUM, "input": "x"}
        async with house.session.post(path, json=body, headers={**TRACE, **others}) as response:
            assert response.status == 200
            request_id = response.headers["x-request-id"]
        headers = {name.lower(): value for name, value in house.replicas["math-0"].seen[0].headers.items()}
    told = {"content-type": "application/json", "x-request-id": request_id, **TRACE}
    if key is not None:
        told["authorization"] = f"Bearer {key}"
    assert {name: headers[name] for name in told} == told
    assert set(headers) - set(told) <= {"host", "content-length", "accept"}


@pytest.mark.parametrize("value", [b"\xff\xfe", "rojo=€".encode(), b"a=\x80"])
async def test_a_trace_context_that_is_no_text_harms_nobody(value):
    async with housing() as house:
        assert await converse(house, *[as_bytes(ASK, fields=b"tracestate: " + value + b"\r\n")] * 2) == [200, 200]
        assert await house.in_flight() == [0, 0]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_tools_logprobs_and_whatever_else_a_request_has_pass_byte_for_byte(path):
    prompt = b'"messages":[{"role":"user","content":[{"type":"text","text":"a \\u0073um"}],"name":"x"}]'
    raw = (
        b'{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":false},"logprobs":true,'
        b'"top_logprobs":5,"model":"auto",' + (prompt if path == CHAT else b'"prompt":"a sum"') + b',"tools":[{"type":'
        b'"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"type":"number"}}}}}],'
        b'"tool_choice":{"type":"function","function":{"name":"f"}},"guided_json":{"a":  [1e-7, 1.0E+2]},"n":1,'
        b'"logit_bias":{"50256":-100},"chat_template_kwargs":{"thinking":false},"seed":12345678901234567890,'
        b'"temperature":0.70,"user":"\xc3\xa9\\ud83d\\ude00"}'
    )
    async with housing(stream_frames) as house:
        async with house.session.post(path, data=raw) as response:
            assert await response.read() == b"".join((*FRAMES, DONE))
        assert house.replicas["math-0"].seen[0].body == raw.replace(b'"auto"', b'"llama"')


# Counts


def event(**fields):
    return b"data: " + json.dumps({"id": "c-1", **fields}).encode() + b"\n\n"


DELTA = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
USAGE = {"prompt_tokens": 12, "total_tokens": 30, "completion_tokens": 18}
WITH_USAGE = (event(**DELTA, usage=None), event(**DELTA, usage=None), event(choices=[], usage=USAGE), DONE)


async def tokens(house):
    return [await house.metric(f'erhpc_tokens_total{{replica="math-0",kind="{k}"}}') for k in ("prompt", "completion")]


@pytest.mark.parametrize("paced", [False, True])
async def test_the_tokens_that_a_stream_says_it_used_are_counted_in_however_many_pieces_it_comes(paced):
    may_go_on = asyncio.Semaphore(0)

    async def stream(request):
        response = await open_stream(request)
        for piece in WITH_USAGE:
            if paced:
                await may_go_on.acquire()
            await response.write(piece)
        if paced:
            await may_go_on.acquire()
        return response

    async with housing(stream) as house:
        for number in (1, 2):
            may_go_on.release()
            async with house.ask(stream=True, stream_options={"include_usage": True}) as response:
                for piece in WITH_USAGE:
                    assert await response.content.readexactly(len(piece)) == piece
                    may_go_on.release()
                assert await response.read() == b""
            assert await tokens(house) == [12 * number, 18 * number]


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        (json.dumps({"choices": [], "usage": USAGE}).encode(), [12, 18]),
        (json.dumps({"data": [0.1] * 2000, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode(), [7, 0]),
        (json.dumps({"usage": USAGE, "choices": ["x" * 3000]}).encode(), [12, 18]),
        (b'{"choices":[],"usage":null}', [0, 0]),
        (b"{}", [0, 0]),
    ],
)
async def test_the_tokens_that_a_whole_answer_says_it_used_are_counted(body, counted):
    async def answer(request):
        return web.Response(body=body, content_type="application/json")

    async with housing(answer) as house:
        async with house.ask() as response:
            assert await response.read() == body
        assert await tokens(house) == counted


async def test_each_request_is_counted_once_in_each_distribution_of_times():
    async with housing(stream_frames) as house:
        for number in range(1, 6):
            async with house.ask(stream=True) as response:
                await response.read()
            counts = [
                await house.metric(f"erhpc_{name}_seconds_count") for name in ("classify", "forward", "first_write")
            ]
            assert counts == [number] * 3
        assert await house.metric("erhpc_queue_seconds_count") == 0
        for name in ("classify", "forward", "first_write"):
            assert 0 < await house.metric(f"erhpc_{name}_seconds_sum") < 5
        await until(lambda: house.metric("erhpc_loop_lag_seconds_count"))


async def test_the_time_a_replica_takes_from_its_head_to_its_first_token_is_not_the_gateways():
    async def think(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(0.5)
        for piece in (*FRAMES, DONE):
            await response.write(piece)
        return response

    async with housing(think) as house:
        async with house.ask(stream=True) as response:
            assert await response.read() == b"".join((*FRAMES, DONE))
        assert await house.metric("erhpc_first_write_seconds_count") == 1
        assert await house.metric("erhpc_first_write_seconds_sum") < 0.4


async def test_a_request_that_is_made_again_elsewhere_is_one_in_each_distribution():
    names = ("math-0", "math-1")
    async with housing(stream_frames, names=names, policy="round_robin", replica_policy="round_robin") as house:
        house.replicas["math-0"].script = break_at_once
        async with house.ask(stream=True) as response:
            assert await response.read() == b"".join((*FRAMES, DONE))
            assert response.headers["x-erhpc-retries"] == "1"
        assert await house.metric("erhpc_forward_seconds_count") == 1
        assert await house.metric("erhpc_first_write_seconds_count") == 1


async def test_clients_that_leave_are_counted_by_how_far_their_request_had_come():
    heads = asyncio.Queue()

    async def send_head(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        heads.put_nowait(None)
        return await hang(request)

    async with housing(limits=GatewayConfig(max_in_flight=1)) as house:
        replica = house.replicas["math-0"]

        async def cancels():
            return [await house.metric(f'erhpc_cancels_total{{phase="{p}"}}') for p in ("queue", "prefill", "stream")]

        async def are_cancels(*numbers):
            return await cancels() == list(numbers)

        replica.script = hang
        async with leaving(house):
            await replica.arrivals.get()
            async with leaving(house):
                await until(lambda: queued(house, 1))
            await until(lambda: are_cancels(1, 0, 0))
        await until(lambda: are_cancels(1, 1, 0))
        replica.script = stream_forever
        async with leaving(house, stream=True) as asking:
            assert await (await asking).content.readany()
        await until(lambda: are_cancels(1, 1, 1))
        replica.script = send_head
        async with leaving(house, stream=True):
            await heads.get()
        await until(lambda: are_cancels(1, 2, 1))
        await until(lambda: admitted(house, 0))
        assert await house.requests("cancelled") == 3


async def test_status_tells_what_metrics_tell():
    async with housing(stream_forever, is_emulated=True) as house, house.ask(stream=True):
        async with house.session.get("/status.json") as response:
            assert response.headers["Cache-Control"] == "no-store"
            status = await response.json()
        assert status["is_emulated"] is True
        assert (status["admitted"], status["queued"], len(status["processes"])) == (1, 0, 1)
        assert [(one["name"], one["state"], one["in_flight"]) for one in status["replicas"]] == [
            ("math-0", "up", 1),
            ("code-0", "up", 0),
        ]
        assert status["times"]["erhpc_classify_seconds"]["number"] == 1


# Errors as the official client sees them


@pytest.mark.parametrize(
    ("script", "asked", "kind", "status", "code", "param"),
    [
        (answer_json, {"messages": []}, openai.BadRequestError, 400, None, "messages"),
        (answer_json, {"model": "law"}, openai.NotFoundError, 404, "model_not_found", "model"),
        (answer_json, {"user": "x" * 5000}, openai.APIStatusError, 413, None, None),
        (break_at_once, {}, openai.InternalServerError, 502, "replica_broken", None),
        (hang, {}, openai.InternalServerError, 504, "replica_silent", None),
    ],
)
async def test_the_official_client_reads_every_error(script, asked, kind, status, code, param):
    limits = GatewayConfig(max_body_bytes=4096, idle_timeout_s=0.1)
    async with housing(script, key="own", limits=limits) as house, official_client(house, "own") as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**{"model": "auto", "messages": SUM, **asked})
        error = caught.value
        assert (error.status_code, error.code, error.param) == (status, code, param)
        assert error.type == ("server_error" if status >= 500 else "invalid_request_error")
        assert error.body["message"]
        assert error.response.headers["x-request-id"]


async def test_the_official_client_knows_a_wrong_key_and_comes_back_when_it_is_told_to(keys):
    limits = GatewayConfig(keys=str(keys), max_in_flight_per_key=1)
    async with housing(stream_forever, limits=limits) as house:
        async with official_client(house, "nobody") as client:
            with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
                await client.chat.completions.create(model="auto", messages=SUM)
        async with official_client(house, "b-1", max_retries=2) as client, official_client(house, "b-1") as hasty:
            first = await client.chat.completions.create(model="auto", messages=SUM, stream=True)
            with pytest.raises(openai.RateLimitError) as caught:
                await hasty.chat.completions.create(model="auto", messages=SUM)
            assert caught.value.code == "rate_limit_exceeded"
            second = asyncio.create_task(client.chat.completions.create(model="auto", messages=SUM, stream=True))
            await until(lambda: are_refused(house, 3))
            await first.close()
            await (await second).close()  # asked again after Retry-After


async def are_refused(house, number):
    return await house.metric('erhpc_requests_total{expert="",replica="",outcome="refused"}') >= number


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """PEM files with a certificate for 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "2", "-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)
    return paths


async def test_https_serves_streams_and_other_routes_on_one_connection(certificate):
    trust = ssl.create_default_context(cafile=certificate[0])
    limits = GatewayConfig(tls_certificate=str(certificate[0]), tls_key=str(certificate[1]))
    async with housing(stream_frames, limits=limits, trust=trust) as house:
        assert house.url.startswith("https://127.0.0.1:")
        for _ in range(2):
            async with house.ask(stream=True) as response:
                assert await response.read() == b"".join((*FRAMES, DONE))
            async with house.session.get("/v1/models") as response:
                assert response.status == 200
        async with openai.DefaultAsyncHttpxClient(verify=trust) as http:
            client = official_client(house, "-", http_client=http)
            stream = await client.chat.completions.create(model="auto", messages=SUM, stream=True)
            assert "".join([part.choices[0].delta.content async for part in stream]) == "t0t1t2t3t4"
        assert await house.requests("ok") == 3


async def test_over_https_tokens_that_come_one_by_one_are_encrypted_too(certificate):
    tokens = [b"data: %03d" % number + b"x" * 300 + b"\n\n" for number in range(100)]

    async def stream_tokens(request):
        response = await open_stream(request)
        for token in tokens:
            await response.write(token)
            await asyncio.sleep(0.001)  # each is read by itself
        return response

    trust = ssl.create_default_context(cafile=certificate[0])
    limits = GatewayConfig(tls_certificate=str(certificate[0]), tls_key=str(certificate[1]))
    async with housing(stream_tokens, limits=limits, trust=trust) as house, house.ask(stream=True) as response:
        assert await response.read() == b"".join(tokens)


async def test_over_https_a_client_that_leaves_ends_the_replicas_request_too(certificate):
    trust = ssl.create_default_context(cafile=certificate[0])
    limits = GatewayConfig(tls_certificate=str(certificate[0]), tls_key=str(certificate[1]))
    async with housing(stream_forever, limits=limits, trust=trust) as house:
        response = await house.ask(stream=True)
        assert await response.content.readany() == FRAMES[0]
        response.close()
        assert await asyncio.wait_for(house.replicas["math-0"].departures.get(), 5) is True


async def test_whoever_speaks_http_to_an_https_gateway_or_does_not_trust_it_harms_nobody(certificate):
    trust = ssl.create_default_context(cafile=certificate[0])
    limits = GatewayConfig(tls_certificate=str(certificate[0]), tls_key=str(certificate[1]))
    async with housing(limits=limits, trust=trust) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
        writer.write(as_bytes(ASK))
        assert b"200" not in await asyncio.wait_for(reader.read(), 5)
        writer.close()
        async with aiohttp.ClientSession() as stranger:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await stranger.get(f"{house.url}/health")
        async with house.ask() as response:
            assert response.status == 200


async def test_a_certificate_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gateway\.tls_certificate=.*Give a certificate chain"):
        async with housing(limits=GatewayConfig(tls_certificate=str(tmp_path / "none.pem"))):
            pass
