"""Says whether a server is ready: it is healthy, serves the model under the right name, and has answered once.

This module knows neither what engine runs behind the URL nor who started it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import msgspec

from erhpc.errors import ProcessError

QUICK_TIMEOUT_S = 5.0
"""Patience for /health and /v1/models, which a server answers at once or not yet."""
COMPLETION_TIMEOUT_S = 120.0
"""Patience for the one completion: the first step may still compile kernels."""
LONGEST_QUOTE = 200


@dataclass(frozen=True)
class Readiness:
    """How far a server has come on its way to ready."""

    stage: str
    """What it has not passed yet: connecting, health, models or completion; or ready."""
    message: str

    @property
    def is_ready(self) -> bool:
        """Whether every stage is passed."""
        return self.stage == "ready"


async def probe(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    key: str | None,
    on_stage: Callable[[Readiness], None] = lambda _: None,
) -> Readiness:
    """Ask a server once for everything that makes it ready, and return the first stage it fails.

    Args:
        url: http://address:port, without a path.
        model: name the server must serve.
        key: bearer token of the run, if any.
        on_stage: told of each stage as it is tried.
    """
    server = _Server(session, url, model, key)
    for stage, check in server.checks():
        on_stage(Readiness(stage, f"{url} has not answered yet"))
        try:
            problem = await check()
        except aiohttp.ClientConnectorError as error:
            return Readiness("connecting", f"{url}: {error.strerror or error}")
        except TimeoutError:
            problem = "accepts connections but did not answer in time"
        except aiohttp.ClientError as error:
            problem = f"broke off: {error}"
        if problem is not None:
            return Readiness(stage, f"{url} {problem}")
    return Readiness("ready", f"{url} serves {model}")


async def wait_until_ready(
    url: str,
    model: str,
    key: str | None,
    *,
    timeout_s: float,
    is_alive: Callable[[], bool],
    poll_s: float = 0.5,
) -> float:
    """Probe a server until it is ready, and return how many seconds that took.

    Args:
        is_alive: whether the process behind the URL still runs; asked every `poll_s`, also during a slow probe.

    Raises:
        ProcessError: time is up, or the process died; the message names the last stage.
    """
    started_s = time.monotonic()
    poller = _Poller(url, model, key)
    polling = asyncio.create_task(poller.poll(poll_s))
    watching = asyncio.create_task(_wait_for_death(is_alive, poll_s))
    try:
        await asyncio.wait({polling, watching}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        polling.cancel()
        watching.cancel()
        await asyncio.gather(polling, watching, return_exceptions=True)
    # Death is looked at first: what answered may be another process on the same port.
    if not watching.cancelled() or not is_alive():
        raise ProcessError(f"{model}: the process for {url} died before it was ready ({poller.last.message}).")
    if polling.cancelled():
        raise ProcessError(
            f"{model} was not ready within {timeout_s:g} s. Last stage: {poller.last.stage} ({poller.last.message}). "
            "If it only needs longer, raise engine.ready_timeout_s."
        )
    polling.result()
    return time.monotonic() - started_s


class _Poller:
    """Repeats probes and keeps the last thing that is known."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        self.url, self.model, self.key = url, model, key
        self.last = Readiness("connecting", f"{url} was not asked yet")

    async def poll(self, poll_s: float) -> None:
        async with aiohttp.ClientSession(trust_env=False) as session:
            while True:
                self.last = await probe(session, self.url, self.model, self.key, self._enter)
                if self.last.is_ready:
                    return
                await asyncio.sleep(poll_s)

    def _enter(self, trying: Readiness) -> None:
        # What the last attempt at this stage was told says more than that another attempt has begun.
        if trying.stage != self.last.stage:
            self.last = trying


async def _wait_for_death(is_alive: Callable[[], bool], poll_s: float) -> None:
    # A process handle has no event to wait on that works for every kind of handle, so it is asked.
    while is_alive():  # noqa: ASYNC110
        await asyncio.sleep(poll_s)


class _Server:
    """The three questions to one server; an answer of None means passed, else it says what is wrong."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, key: str | None) -> None:
        self.session, self.url, self.model = session, url, model
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def checks(self) -> tuple[tuple[str, Callable[[], Awaitable[str | None]]], ...]:
        return ("health", self.check_health), ("models", self.check_models), ("completion", self.check_completion)

    async def check_health(self) -> str | None:
        status, body = await self._request("GET", "/health", QUICK_TIMEOUT_S)
        return None if status == 200 else f"answers /health with {status}: {_quote(body)}"

    async def check_models(self) -> str | None:
        status, body = await self._request("GET", "/v1/models", QUICK_TIMEOUT_S)
        served = _parse_models(body) if status == 200 else None
        if served is None:
            return f"answers /v1/models with {status}: {_quote(body)}"
        return None if self.model in served else f"serves {', '.join(served) or 'no model'}, not {self.model}"

    async def check_completion(self) -> str | None:
        body = msgspec.json.encode({"model": self.model, "prompt": "Hello", "max_tokens": 1})
        status, answer = await self._request("POST", "/v1/completions", COMPLETION_TIMEOUT_S, body)
        return None if status == 200 else f"answers /v1/completions with {status}: {_quote(answer)}"

    async def _request(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> tuple[int, bytes]:
        headers = self.headers if body is None else self.headers | {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self.session.request(method, self.url + path, data=body, headers=headers, timeout=timeout) as answer:
            return answer.status, await answer.read()


def _parse_models(body: bytes) -> list[str] | None:
    try:
        return [str(entry["id"]) for entry in msgspec.json.decode(body)["data"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None


def _quote(body: bytes) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return text[:LONGEST_QUOTE] or "(empty)"
