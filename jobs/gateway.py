"""The gateway of a run: `python -m jobs.gateway --spec FILE` serves until TERM or INT, then exits 0.

Exit code 1, with one line on stderr, if the spec, the classifier or the key is not usable or the port is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from erhpc.errors import ErhpcError, InputError
from erhpc.gateway.server import serve
from erhpc.plan.specs import GatewaySpec
from erhpc.routing.artefact import read_artefact
from erhpc.routing.classifier import Classifier


def main(arguments: list[str] | None = None) -> int:
    """Serve the gateway of the given spec; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.gateway")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file of a GatewaySpec")
    try:
        spec = read_spec(parser.parse_args(arguments).spec)
        raise_file_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(spec, load_classifier(spec), read_key(spec.key_file)))
    except ErhpcError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


async def run(spec: GatewaySpec, classifier: Classifier | None, key: str | None) -> None:
    """Serve until TERM or INT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(spec, classifier=classifier, key=key) as url:
        print(f"gateway: listening on {url}", flush=True)
        await stop.wait()


def read_spec(path: Path) -> GatewaySpec:
    """The spec in `path`. Raises InputError if it cannot be read or is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=GatewaySpec)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"--spec {path} is no readable GatewaySpec: {error}. Give a file that a plan wrote."
        ) from error


def load_classifier(spec: GatewaySpec) -> Classifier | None:
    """The classifier of the spec's artefact; None if it names none. Raises InputError as `read_artefact` does."""
    return read_artefact(Path(spec.artefact)) if spec.artefact else None


def read_key(path: str | None) -> str | None:
    """The key in `path`. Raises InputError if the file cannot be read or is empty: a gateway must not stand open."""
    if path is None:
        return None
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(
            f"key_file={path} cannot be read: {error.strerror}. Give a file that holds the key."
        ) from error
    if not key:
        raise InputError(f"key_file={path} is empty. It must hold the key of the run.")
    return key


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every stream takes two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
