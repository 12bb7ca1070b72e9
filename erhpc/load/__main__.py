"""The verb `python -m erhpc.load url=http://HOST:PORT users=[1,10,100]`: load on any OpenAI-compatible server.

Exit code 0: all levels measured; 1: a client failed; 2: the configuration is wrong; 130: interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console

from erhpc.cluster.preparation import check_workload
from erhpc.cluster.status import LevelResult
from erhpc.cluster.view import describe_level, describe_progress
from erhpc.composition import verb
from erhpc.config import LoadTestConfig
from erhpc.console import open_console
from erhpc.errors import ProcessError
from erhpc.load.progress import Progress
from erhpc.standalone import LoadTest, find_server, prepare_folder, read_api_key, stop_on_signals

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@verb(LoadTestConfig, "load")
def main(config: LoadTestConfig, yaml: str) -> int:
    """Measure every level, print a line for each, and the table and figures at the end."""
    return asyncio.run(_measure(config, yaml, open_console()))


async def _measure(config: LoadTestConfig, yaml: str, console: Console) -> int:
    check_workload(config.workload)
    key = read_api_key(config)
    server = await find_server(config, key)
    run = prepare_folder(config, yaml, server, key, datetime.now(UTC))
    console.print(f"run: {run.root}\nserver: {server.url}, model {server.model}", markup=False)
    stop, num_rows, error = stop_on_signals(), 0, ""
    line = console.status("") if console.is_terminal else None
    with line or contextlib.nullcontext():

        def show_progress(progress: Progress) -> None:
            if line is not None:
                line.update(describe_progress(msgspec.to_builtins(progress)))

        def show_row(row: dict[str, Any]) -> None:
            nonlocal num_rows
            num_rows += 1
            console.print(describe_level(msgspec.convert(row, LevelResult, strict=False)), markup=False)

        test = LoadTest(config, run, server, stop, on_progress=show_progress, on_row=show_row)
        try:
            if reason := await test.conduct():
                console.print(f"ended early: {reason}", markup=False)
        except ProcessError as problem:
            error = str(problem)
        finally:
            run.key.unlink(missing_ok=True)
    if num_rows:
        # pandas and matplotlib take a second to import; nobody should wait for them before a run.
        from erhpc.report.writing import write_report

        write_report([run], run.report, console)
    console.print(f"results: {run.records}\n         {run.levels}", markup=False)
    if error:
        print(f"ProcessError: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_INTERRUPTED if stop.is_set() else 0


if __name__ == "__main__":
    main()
