"""What aiohttp answers by itself: in the shape that clients read, and logged only if it is the gateway's fault."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from erhpc.errors import ProcessError
from erhpc.gateway.connections import listen, run_app
from erhpc.gateway.errors import ApiError
from tests.gateways import Gate, request

pytestmark = pytest.mark.timeout(30)


async def fail(request: web.Request) -> web.Response:
    raise RuntimeError("the secret reason")


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


@asynccontextmanager
async def serving_app(noted: list[ApiError]) -> AsyncIterator[Gate]:
    app = web.Application()
    app.router.add_get("/fail", fail)
    app.router.add_post("/answer", answer)
    async with run_app(app, stop_timeout_s=1, keep_alive_s=10, note=noted.append) as (_, make_protocol):
        server = await listen(make_protocol, "127.0.0.1", 0)
        try:
            yield Gate(server.sockets[0].getsockname()[1])
        finally:
            server.close()


async def test_what_is_no_http_is_answered_400_as_an_error_object_and_told_of():
    noted: list[ApiError] = []
    async with serving_app(noted) as gate:
        head, body = await gate.ask(b"GET /answer HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n")
        error = json.loads(body)["error"]
        assert head.split(b" ")[1] == b"400"
        assert b"Content-Type: application/json" in head
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith("The request is no valid HTTP: ")
        assert "bad header" not in error["message"]
        assert [error.status for error in noted] == [400]


async def test_a_failure_is_answered_500_as_an_error_object_and_its_reason_is_only_logged(caplog):
    noted: list[ApiError] = []
    async with serving_app(noted) as gate:
        head, body = await gate.ask(
            b"GET /fail HTTP/1.1\r\nhost: a\r\naccept: text/html\r\nx-request-id: given\r\n\r\n"
        )
        assert head.startswith(b"HTTP/1.1 500 ")
        assert b"Content-Type: application/json" in head
        assert b"x-request-id: given\r\n" in head
        assert json.loads(body)["error"]["type"] == "server_error"
        assert b"secret" not in body
        assert [error.status for error in noted] == [500]
    assert "the secret reason" in caplog.text


async def test_clients_that_leave_while_they_are_told_to_go_on_are_not_logged(caplog):
    async with serving_app([]) as gate:
        for _ in range(100):
            _, writer = await gate.connect()
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.write(b"POST /answer HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
            writer.transport.abort()
        assert (await gate.ask(request(b"four", "/answer")))[1] == b"4"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_port_that_is_taken_is_said_in_one_line():
    async with serving_app([]) as gate:
        with pytest.raises(ProcessError, match=f"cannot listen on 127.0.0.1:{gate.port}: .*End the process"):
            await listen(asyncio.Protocol, "127.0.0.1", gate.port)
