"""One client process at one level: `python -m jobs.client --spec FILE` prints progress and writes its part.

TERM and INT end the level at once; what was measured is written all the same, marked as interrupted, and the exit
code is 0. It is 1, with one line on stderr, if the spec, the prompts or the key are not usable. All libraries are
imported at the start, so that writing takes well under a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from erhpc.corpus.prompts import Prompt, read_prompts
from erhpc.errors import ErhpcError, InputError
from erhpc.load.level import run_level
from erhpc.load.progress import Progress
from erhpc.load.requests import API_PATHS, choose_prompts
from erhpc.load.streaming import AiohttpClient
from erhpc.plan.specs import ClientSpec
from erhpc.results.store import write_part


def main(arguments: list[str] | None = None) -> int:
    """Run the level of the given spec; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.client")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file of a ClientSpec")
    try:
        spec = read_spec(parser.parse_args(arguments).spec)
        prompts, key = load_prompts(spec), read_key(spec.key_file)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(spec, prompts, key))
    except ErhpcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def run(spec: ClientSpec, prompts: list[Prompt], key: str | None) -> None:
    """Run the level of `spec`, ended early by TERM or INT, and write its part."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    url = spec.url.rstrip("/") + API_PATHS[spec.workload.api]
    async with AiohttpClient(url, timeout_s=spec.workload.timeout_s, key=key) as client:
        part = await run_level(spec, client, prompts, stop=stop, on_progress=print_progress)
    # Here rather than after the loop: its signal handlers protect the writing from a second TERM.
    write_part(Path(spec.output), part)


def read_spec(path: Path) -> ClientSpec:
    """The spec in `path`. Raises InputError if it cannot be read or is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClientSpec)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--spec {path} is no readable ClientSpec: {error}. Give a file that a plan wrote.") from error


def load_prompts(spec: ClientSpec) -> list[Prompt]:
    """The prompts of the workload and the domains asked for; none if the texts are synthetic."""
    if spec.workload.format == "synthetic":
        return []
    return choose_prompts(read_prompts(spec.workload.prompts, spec.workload.format), spec.domains)


def read_key(path: str | None) -> str | None:
    """The bearer token in `path`, None if there is no path. Raises InputError if the file is unreadable or empty."""
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


def print_progress(progress: Progress) -> None:
    """One JSON line on stdout; a reader that has left must not cost the level its results."""
    try:
        os.write(sys.stdout.fileno(), msgspec.json.encode(progress) + b"\n")
    except BrokenPipeError:
        return


if __name__ == "__main__":
    sys.exit(main())
