"""Shows a run to a person: a live table on a terminal, plain lines on a pipe. Reads only; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from erhpc.cluster.queue import QueueState
from erhpc.cluster.status import LevelResult, RunStatus

_STATE_STYLES = {"finished": "bold green", "failed": "bold red", "interrupted": "bold yellow", "ready": "green"}


def format_number(value: float | None, scale: float = 1.0, digits: int = 0) -> str:
    """A number for a table cell, "-" where there is none."""
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def describe_load(users: int | None, rate_per_s: float | None) -> str:
    """The load of a level in words, the number right-aligned."""
    if users is not None:
        return f"{users:>5} user{'' if users == 1 else 's'}"
    return f"{rate_per_s:>5g} req/s" if rate_per_s else "trace"


def describe_level(level: LevelResult) -> str:
    """A finished level in one line."""
    mark = "" if level.valid else f"  INVALID: {'; '.join(level.invalid_reasons)}"
    return (
        f"{describe_load(level.users, level.rate_per_s)}  {format_number(level.output_tokens_per_s):>7} tok/s  "
        f"TTFT p50 {format_number(level.ttft_p50_s, 1e3)} p99 {format_number(level.ttft_p99_s, 1e3)} ms  "
        f"TPOT p50 {format_number(level.tpot_p50_s, 1e3, 1)} ms  "
        f"{level.requests_ok} ok, {level.requests_failed} failed{mark}"
    )


def describe_progress(progress: Mapping[str, Any] | None) -> str:
    """The running level in one line, "" between levels; `progress` has the fields of `erhpc.load.progress`."""
    if not progress:
        return ""
    load = describe_load(progress.get("users"), progress.get("rate_per_s")).strip()
    failed = f"{progress.get('requests_failed')} failed"
    if progress.get("commonest_failure"):
        failed += f" ({progress['commonest_failure']})"
    return (
        f"{load}, {progress.get('phase')} {progress.get('elapsed_s', 0):.0f} s: "
        f"{format_number(progress.get('output_tokens_per_s'))} tok/s, "
        f"TTFT p50 {format_number(progress.get('ttft_p50_s'), 1e3)} ms, "
        f"{progress.get('in_flight')} in flight, {failed}"
    )


def describe_state(status: RunStatus | None, queue: QueueState) -> str:
    """Where the run stands, in a few words."""
    if status is None:
        return f"queue: {queue.state}" + (f" ({queue.reason})" if queue.reason else "")
    return f"{status.state}" + (f": {status.detail}" if status.detail else "")


class LiveView:
    """A table that is redrawn in place."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def show(self, status: RunStatus | None, queue: QueueState) -> None:
        """Redraw."""
        self._live.update(draw_status(self._title, status, queue))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()


class LineView:
    """A line for each thing that happens; the end is one too if it `tells_end`."""

    def __init__(self, console: Console, *, tells_end: bool = True) -> None:
        self._console = console
        self._tells_end = tells_end
        self._state = ""
        self._ready: set[str] = set()
        self._num_levels = 0

    def show(self, status: RunStatus | None, queue: QueueState) -> None:
        """Print what is new since the last time."""
        if status is not None:
            self._show_news(status)
            if status.is_final and not self._tells_end:
                return
        state = describe_state(status, queue)
        if state != self._state:
            self._say(state)
            self._state = state

    def _show_news(self, status: RunStatus) -> None:
        for name, replica in status.replicas.items():
            if replica.state == "ready" and name not in self._ready:
                self._ready.add(name)
                self._say(f"ready: {name} on {replica.node} after {format_number(replica.load_s, digits=1)} s")
        for level in status.levels[self._num_levels :]:
            self._say(describe_level(level))
        self._num_levels = len(status.levels)

    def close(self) -> None:
        """Nothing to put back."""

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def make_view(console: Console, title: str) -> LiveView | LineView:
    """The view that suits the console. How the run ended, whoever follows it says after its results."""
    return LiveView(console, title) if console.is_terminal else LineView(console, tells_end=False)


def draw_status(title: str, status: RunStatus | None, queue: QueueState) -> RenderableType:
    """The whole picture: state, replicas, finished levels, the level that runs."""
    state = status.state if status is not None else "queued"
    head = Text(f"{title}  ", style="bold")
    head.append(describe_state(status, queue), style=_STATE_STYLES.get(state, "cyan"))
    if status is None:
        return head
    parts: list[RenderableType] = [head, _draw_replicas(status)]
    if status.levels:
        parts.append(_draw_levels(status))
    if progress := describe_progress(status.progress):
        parts.append(Text(f"  level {len(status.levels) + 1}/{status.num_levels}  {progress}", style="cyan"))
    return Group(*parts)


def _draw_replicas(status: RunStatus) -> Text:
    text = Text("  ")
    for name, replica in status.replicas.items():
        where = f"@{replica.node}" if replica.node else ""
        text.append(f"{name}{where} {replica.state}   ", style=_STATE_STYLES.get(replica.state, "dim"))
    return text


def _draw_levels(status: RunStatus) -> Table:
    table = Table(box=None, pad_edge=True)
    for heading in ("load", "tok/s", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "ok", "failed"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for level in status.levels:
        table.add_row(
            describe_load(level.users, level.rate_per_s).strip(),
            format_number(level.output_tokens_per_s),
            format_number(level.ttft_p50_s, 1e3),
            format_number(level.ttft_p99_s, 1e3),
            format_number(level.tpot_p50_s, 1e3, 1),
            str(level.requests_ok),
            str(level.requests_failed),
            "" if level.valid else f"INVALID: {'; '.join(level.invalid_reasons)}",
            style=None if level.valid else "yellow",
        )
    return table
