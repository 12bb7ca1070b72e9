"""The null expert as a process: `python -m jobs.null_expert` prints its port as a JSON line and answers on 127.0.0.1.

It ends by TERM, INT, when its stdin closes (give it a pipe: it then ends with whoever started it), or after
`--max-life-s`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from contextlib import suppress
from functools import partial

from erhpc.load.null_expert import NullPace, serve_null_expert
from jobs.process import run_until_stopped


async def run(pace: NullPace, port: int, max_life_s: float, stop: asyncio.Event) -> None:
    """Serve until `stop`, the end of stdin, or for `max_life_s`."""
    server = await serve_null_expert(pace, port)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    stop_at_end_of_stdin(stop)
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max_life_s)
    server.close()  # connections end with the process


def stop_at_end_of_stdin(stop: asyncio.Event) -> None:
    """Set `stop` when stdin closes; by a thread, because a loop cannot wait for every kind of file."""
    loop = asyncio.get_running_loop()

    def read_to_the_end() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        with suppress(RuntimeError):  # the loop has ended before stdin did
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=read_to_the_end, daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    """Serve as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.null_expert")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--ttft-ms", type=float, default=100.0, help="from a request to its first token")
    parser.add_argument("--gap-ms", type=float, default=20.0, help="from token to token")
    parser.add_argument("--max-life-s", type=float, default=600.0, help="ends after this time in any case")
    given = parser.parse_args(arguments)
    pace = NullPace(ttft_s=given.ttft_ms / 1000, gap_s=given.gap_ms / 1000)
    try:
        run_until_stopped(partial(run, pace, given.port, given.max_life_s))
    except OSError as error:
        print(f"null_expert: error: --port {given.port} cannot be listened on: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
