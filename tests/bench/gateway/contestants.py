"""The gateways that are compared, each as a command line in front of one upstream; others are skipped with a reason."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from erhpc.config import GatewayConfig, RouterConfig
from erhpc.plan.specs import Endpoint, GatewaySpec
from tests.bench.load.case import Unavailable
from tests.bench.load.environments import installed_python, is_installed

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; multi_accept on; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000; client_body_buffer_size 64k;
  upstream expert {{ server {upstream}; keepalive 2048; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://expert; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off; proxy_read_timeout 600s; }}
  }}
}}
"""


ERHPC, CLASSIFYING = "erhpc", "erhpc, classifying"
FLOOR = "floor (no gateway)"


class Contestant(Protocol):
    """A gateway that the bench can start."""

    name: str
    model: str
    """What requests ask for."""
    max_users: int | None
    """It stands no more; None: as many as there are."""

    def prepare(self) -> None:
        """Install what it needs; raises Unavailable."""

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """The command line; `upstream` is HOST:PORT, `folder` is empty."""


@dataclass(frozen=True)
class Erhpc:
    """erhpc's gateway as a run has it: one process that watches over those that pass requests on, all on one core.

    With an artefact it classifies each prompt.
    """

    name: str
    limits: GatewayConfig
    artefact: Path | None = None
    max_users: int | None = None

    @property
    def model(self) -> str:
        """`auto` is classified or dealt round; an expert's name would bypass the policy."""
        return "auto"

    def prepare(self) -> None:
        """It is here."""

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """As many experts as the artefact has clusters, all at the one upstream."""
        names = [f"expert_{number}" for number in range(8 if self.artefact else 1)]
        url = f"http://{upstream}"
        endpoints = [Endpoint(replica=f"{name}-0", expert=name, model="mock", url=url) for name in names]
        spec = GatewaySpec(
            host="127.0.0.1",
            port=port,
            endpoints=endpoints,
            router=RouterConfig(policy="cluster" if self.artefact else "round_robin"),
            limits=self.limits,
            artefact=str(self.artefact) if self.artefact else None,
            seed=0,
        )
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        return [sys.executable, "-m", "jobs.gateway", "--spec", str(folder / "spec.json")]


@dataclass(frozen=True)
class Nginx:
    """nginx with one worker and without buffering."""

    name: str = "nginx"
    model: str = "mock"
    max_users: int | None = None

    def prepare(self) -> None:
        """From the system's packages."""
        if shutil.which("nginx") is None:
            raise Unavailable("there is no nginx; install nginx-light")

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """With a configuration of its own."""
        (folder / "nginx.conf").write_text(NGINX.format(upstream=upstream, port=port, folder=folder))
        return ["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


@dataclass(frozen=True)
class RustRouter:
    """sglang-router or vllm-router: written in Rust, wheels of both are in the package index."""

    package: str
    version: str
    module: str
    log_level: str
    """They write a line per request otherwise, which nobody else here does."""
    model: str = "mock"
    max_users: int | None = None

    @property
    def name(self) -> str:
        """With the version."""
        return f"{self.package} {self.version}"

    def prepare(self) -> None:
        """An environment of its own."""
        installed_python(self.package, self.package, self.version)

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """One worker behind it, chosen in turn."""
        python = installed_python(self.package, self.package, self.version)
        return [
            str(python), "-m", self.module, "--worker-urls", f"http://{upstream}", "--host", "127.0.0.1",
            "--port", str(port), "--policy", "round_robin", "--log-level", self.log_level,
        ]  # fmt: skip


@dataclass
class Litellm:
    """litellm's proxy with one worker: Python throughout. It is full with 100 streams, so it is asked for fewer."""

    versions: tuple[str, ...] = ("1.109.3", "1.108.7")
    """The first that an index has all parts of."""
    model: str = "mock"
    max_users: int | None = 20

    def __post_init__(self) -> None:
        self._version, self._python = "", Path()

    @property
    def name(self) -> str:
        """With the version, once it is known."""
        return f"litellm {self._version}".rstrip()

    def prepare(self) -> None:
        """An environment of its own."""
        self._version, self._python = install_first("litellm", "litellm[proxy]", self.versions)

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """No log, its prices from its own package, open to all on 127.0.0.1 as the others are.

        It would cut an answer that says the same a hundred times, as the mock's does.
        """
        server = {"model": "openai/mock", "api_base": f"http://{upstream}/v1", "api_key": "none"}
        config = {"model_list": [{"model_name": "mock", "litellm_params": server}]}
        # JSON is YAML.
        (folder / "config.yaml").write_bytes(msgspec.json.encode(config))
        return [
            "env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true", "REPEATED_STREAMING_CHUNK_LIMIT=1000000",
            str(self._python.with_name("litellm")), "--config", str(folder / "config.yaml"),
            "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False",
        ]  # fmt: skip


@dataclass(frozen=True)
class Floor:
    """The least that a relay on uvloop can cost; see `floor`."""

    name: str = FLOOR
    model: str = "mock"
    max_users: int | None = None

    def prepare(self) -> None:
        """It is here."""

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """A process of its own."""
        return [sys.executable, "-m", "tests.bench.gateway.floor", upstream, str(port)]


def install_first(peer: str, package: str, versions: Sequence[str]) -> tuple[str, Path]:
    """The first version that can be had, one that is installed before all others; raises Unavailable."""
    reasons = []
    for version in sorted(versions, key=lambda version: not is_installed(peer, version)):
        try:
            return version, installed_python(peer, package, version)
        except Unavailable as reason:
            reasons.append(f"{version} {reason}")
    raise Unavailable("; ".join(reasons))


def contestants(artefact: Path) -> dict[str, Contestant]:
    """All of them by the word that chooses them."""
    found: dict[str, Contestant] = {
        "plain": Erhpc("erhpc, plain relay", GatewayConfig(relay="plain")),
        "fast": Erhpc(ERHPC, GatewayConfig()),
        "classify": Erhpc(CLASSIFYING, GatewayConfig(), artefact),
        "processes": Erhpc("erhpc, 2 processes", GatewayConfig(processes=2)),
        "redirect": Erhpc("erhpc, redirect", GatewayConfig(data_path="redirect")),
        "nginx": Nginx(),
        "sglang": RustRouter("sglang-router", "0.3.2", "sglang_router.launch_router", "warn"),
        "vllm": RustRouter("vllm-router", "0.1.17", "vllm_router.launch_router", "warning"),
        "litellm": Litellm(),
        "floor": Floor(),
    }
    return found
