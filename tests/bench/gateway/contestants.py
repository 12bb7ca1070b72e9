"""The gateways that are compared, each as a command line in front of one upstream; others are skipped with a reason."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from erhpc.config import GatewayConfig, RouterConfig
from erhpc.plan.specs import Endpoint, GatewaySpec
from tests.bench.load.case import Unavailable
from tests.bench.load.environments import installed_python

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


class Contestant(Protocol):
    """A gateway that the bench can start."""

    name: str
    model: str
    """What requests ask for."""

    def prepare(self) -> None:
        """Install what it needs; raises Unavailable."""

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """The command line; `upstream` is HOST:PORT, `folder` is empty."""


@dataclass(frozen=True)
class Erhpc:
    """erhpc's gateway; with an artefact it classifies each prompt."""

    name: str
    relay: str
    artefact: Path | None = None

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
            limits=GatewayConfig(relay=self.relay),
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

    name: str
    package: str
    version: str
    launch: tuple[str, ...]
    model: str = "mock"

    def prepare(self) -> None:
        """An environment of its own."""
        installed_python(self.package, self.package, self.version)

    def command(self, upstream: str, port: int, folder: Path) -> list[str]:
        """One worker behind it, chosen in turn."""
        python = installed_python(self.package, self.package, self.version)
        return [
            str(python), *self.launch, "--worker-urls", f"http://{upstream}", "--host", "127.0.0.1",
            "--port", str(port), "--policy", "round_robin",
        ]  # fmt: skip


def contestants(artefact: Path) -> dict[str, Contestant]:
    """All of them by the word that chooses them."""
    found: dict[str, Contestant] = {
        "plain": Erhpc("erhpc, plain relay", "plain"),
        "fast": Erhpc("erhpc", "fast"),
        "classify": Erhpc("erhpc, classifying", "fast", artefact),
        "nginx": Nginx(),
        "sglang": RustRouter("sglang-router", "sglang-router", "0.3.2", ("-m", "sglang_router.launch_router")),
        "vllm": RustRouter("vllm-router", "vllm-router", "0.1.17", ("-m", "vllm_router.launch_router")),
    }
    return found
