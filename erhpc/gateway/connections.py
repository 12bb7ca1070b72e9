"""Connections of clients as aiohttp serves them, with the errors that it answers by itself in OpenAI's shape too.

What is no HTTP, and what fails in a handler, is seen by no route and no middleware.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from erhpc.errors import ProcessError
from erhpc.gateway.errors import ApiError, answer_error, failed, no_http
from erhpc.gateway.requests import REQUEST_ID, choose_request_id

BACKLOG = 4096
"""Connections that may wait to be accepted: all users arrive at once."""
LINGER_S = 60.0
"""How long a client may go on sending what was refused; cut before, it would not see why."""
LOGGER = logging.getLogger("erhpc.gateway")
"""For aiohttp: what it has to say of requests that the gateway does not take itself."""


def is_own_fault(record: logging.LogRecord) -> bool:
    """Whether `record` tells of more than a client that is wrong or gone: each would fill the log with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionResetError)


LOGGER.addFilter(is_own_fault)


class Connection(web.RequestHandler):
    """One client's connection. `note` is told of each error that aiohttp answers by itself."""

    __slots__ = ("_note",)

    def __init__(
        self,
        server: web.Server,
        note: Callable[[ApiError], None],
        *,
        loop: asyncio.AbstractEventLoop,
        keep_alive_s: float,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=keep_alive_s,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type] # as web.AppRunner takes it
            logger=LOGGER,
            auto_decompress=False,  # it knows no limit: a thousandth of what a body holds may arrive
        )
        self._note = note

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See `web.RequestHandler`: whatever it says becomes JSON."""
        plain = super().handle_error(request, status, exc, message)
        error = no_http(plain.status, message or "") if plain.status < 500 else failed(plain.status)
        self._note(error)
        response = answer_error(error, {REQUEST_ID: choose_request_id(request.headers.get(REQUEST_ID))})
        response.force_close()
        return response


@asynccontextmanager
async def run_app(
    app: web.Application, *, stop_timeout_s: float, keep_alive_s: float, note: Callable[[ApiError], None]
) -> AsyncIterator[tuple[web.Server, Callable[[], Connection]]]:
    """aiohttp's server of `app`, and what makes the protocol of a connection, while the context is open.

    Answers may take `stop_timeout_s` to end when it closes.
    """
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=stop_timeout_s)
    await runner.setup()
    try:
        assert runner.server is not None  # setup made it
        loop = asyncio.get_running_loop()
        yield runner.server, partial(Connection, runner.server, note, loop=loop, keep_alive_s=keep_alive_s)
    finally:
        await runner.cleanup()


async def listen(
    make_protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    context: ssl.SSLContext | None = None,
    *,
    is_shared: bool = False,
) -> asyncio.Server:
    """Accept connections; `is_shared`: the kernel deals them out to all processes that listen there.

    Raises ProcessError if the port cannot be had.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(
            make_protocol, host, port, backlog=BACKLOG, ssl=context, reuse_port=is_shared or None
        )
    except OSError as error:
        raise ProcessError(
            f"The gateway cannot listen on {host}:{port}: {error.strerror}. "
            "End the process that holds the port, or change cluster.ports."
        ) from error
