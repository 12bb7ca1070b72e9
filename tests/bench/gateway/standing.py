"""A gateway as a process of its own before given replicas, with its counters read over HTTP."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import msgspec

from erhpc.config import GatewayConfig, RouterConfig
from erhpc.plan.specs import Endpoint, GatewaySpec
from tests.bench.load.process import PAGE_BYTES

_OPENER = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Standing:
    """A running gateway."""

    url: str
    pid: int

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def outcomes(self) -> dict[str, int]:
        """How many requests ended in each way."""
        found: dict[str, int] = {}
        for outcome, count in re.findall(r'erhpc_requests_total\{.*outcome="(\w+)"\} (\d+)', self._metrics()):
            found[outcome] = found.get(outcome, 0) + int(count)
        return found

    def gauges(self) -> dict[str, int]:
        """Requests admitted and queued, and in flight at each replica."""
        found = re.findall(r"^(erhpc_(?:admitted|queued|in_flight\{.*\})) (\d+)$", self._metrics(), re.MULTILINE)
        return {name: int(value) for name, value in found}

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES

    def num_sockets(self) -> int:
        """Sockets that are open now."""
        num_sockets = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                num_sockets += str(entry.readlink()).startswith("socket:")
        return num_sockets

    def _metrics(self) -> str:
        with _OPENER.open(f"{self.url}/metrics", timeout=30) as answer:
            return answer.read().decode()


@contextlib.contextmanager
def standing(urls: Sequence[str], limits: GatewayConfig) -> Iterator[Standing]:
    """A gateway on a free port of 127.0.0.1 until the context ends; `urls` are replicas of one expert."""
    endpoints = [Endpoint(replica=f"a-{number}", expert="a", model="mock", url=url) for number, url in enumerate(urls)]
    spec = GatewaySpec(
        host="127.0.0.1",
        port=0,
        endpoints=endpoints,
        router=RouterConfig(policy="least_loaded"),
        limits=limits,
        artefact=None,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec.json"
        file.write_bytes(msgspec.json.encode(spec))
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.gateway", "--spec", str(file)], stdout=subprocess.PIPE, text=True
        )
        with process:
            try:
                assert process.stdout is not None
                yield Standing(process.stdout.readline().split()[-1], process.pid)
            finally:
                process.terminate()
