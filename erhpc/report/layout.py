"""Rows of levels that fit the console: a table that gives up room and then columns, never digits.

It knows rich, and neither a column of the results nor what a cell says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from erhpc.report.runs import EXTERNAL, describe_mark
from erhpc.report.series import Series

STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "collapse_padding": True,
    "title_style": "bold",
}
SECTION_STYLE: dict[str, Any] = {"show_header": False, "title_justify": "left"}
BLANK_LINE = Text()

Level = Mapping[str, Any]


@dataclass(frozen=True)
class TableColumn:
    """One column: its heading, and what it says of a level."""

    heading: str
    show: Callable[[Level], str]
    is_dispensable: bool = False
    """Left out where the console is too narrow, the last such column first."""


class LevelTable:
    """The levels of some runs, one row each; of several runs, each below its own name, all lined up."""

    def __init__(self, title: Text, series: Sequence[Series], columns: Sequence[TableColumn]) -> None:
        self._title = title
        self._series = series
        self._columns = columns
        self._levels = [level for run in series for level in run.levels.to_dict("records")]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The fullest layout that the console is wide enough for, or the barest one."""
        *fuller, barest = self._list_layouts()
        columns, gap = next((way for way in fuller if self._measure(*way) <= options.max_width), barest)
        alone = len(self._series) == 1
        yield self._make_table(columns, gap, self._series[0].levels if alone else None, title=self._title)
        if alone:
            yield BLANK_LINE
            return
        for run in self._series:
            yield self._make_table(columns, gap, run.levels, title=run.full_name, **SECTION_STYLE)
            yield BLANK_LINE

    def _list_layouts(self) -> Iterator[tuple[Sequence[TableColumn], int]]:
        columns = list(self._columns)
        yield columns, 2
        yield columns, 1
        for column in reversed(self._columns):
            if column.is_dispensable:
                columns = [kept for kept in columns if kept is not column]
                yield columns, 1

    def _measure(self, columns: Sequence[TableColumn], gap: int) -> int:
        return sum(map(self._measure_column, columns)) + gap * (len(columns) - 1)

    def _measure_column(self, column: TableColumn) -> int:
        """Width in characters over all runs, so that their sections line up."""
        cells = (column.heading, *map(column.show, self._levels))
        return max(len(line) for cell in cells for line in cell.split("\n"))

    def _make_table(self, columns: Sequence[TableColumn], gap: int, levels: pd.DataFrame | None, **style: Any) -> Table:
        table = Table(padding=(0, gap - 1), **(STYLE | style))
        for column in columns:
            width = self._measure_column(column)
            table.add_column(column.heading, justify="right", no_wrap=True, min_width=width)
        for level in [] if levels is None else levels.to_dict("records"):
            cells = (column.show(level) for column in columns)
            table.add_row(*cells, style=None if level["valid"] else "yellow")
        return table


def make_title(text: str, levels: pd.DataFrame) -> Text:
    """A title that says which of `levels` were not measured on GPUs, or not on servers that erhpc started."""
    title = Text(text)
    if (levels["engine"] == EXTERNAL).all():
        title.append(f" ({EXTERNAL})")
    for mark in (describe_mark(levels, "runs") or "").splitlines():
        title.append("\n").append(f" {mark} ", style="bold white on red")
    return title
