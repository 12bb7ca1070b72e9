"""What a person is told when a run has ended: the table, the figures, the error, and the exit code."""

from __future__ import annotations

from rich.console import Console

from erhpc.cluster.status import RunStatus
from erhpc.results.paths import RunPaths

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


def conclude(status: RunStatus, run: RunPaths, console: Console) -> int:
    """Print the results of an ended run, write its figures, and return the exit code."""
    # pandas and matplotlib take a second to import; nobody should wait for them before a run.
    from erhpc.report.writing import write_report

    if status.levels:
        write_report([run], run.report, console)
    console.print(f"results: {run.records}\n         {run.levels}")
    if status.error:
        console.print(f"{status.state}: {status.error}", style="bold red", markup=False)
    else:
        console.print(f"{status.state}{': ' + status.detail if status.detail else ''}", markup=False)
    return EXIT_CODES.get(status.state, 1)
