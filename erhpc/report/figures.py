"""Levels as figures: throughput and latency against users, and which expert answered. The only home of matplotlib.

It reads a data frame and knows no run folder. Emulated results cannot be drawn without their mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from erhpc.report.runs import MARK, is_all_emulated, is_emulated, name_series

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#999933")
"""Okabe and Ito's colours, told apart by colour-blind readers too, without the yellow that is too pale for lines;
then wine and olive of Paul Tol's muted scheme."""
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = ("", "///", "...", "xxx")
MARK_COLOUR = "#B00020"
MUTED_COLOUR = "#555555"
WATERMARK = {"rotation": 24, "ha": "center", "va": "center", "fontweight": "bold"}
ON_WHITE = {"color": MARK_COLOUR, "alpha": 0.13, "fontsize": 34, "zorder": 1}
ON_BARS = {
    "color": MARK_COLOUR,
    "fontsize": 17,
    "zorder": 4,
    "bbox": {"facecolor": "white", "alpha": 0.8, "linewidth": 0},
}
DPI = 150
MIN_TICK_RATIO = 1.35
"""Levels nearer to each other than this share one tick label on the log axis, or labels would overlap."""
PANELS_PER_ROW = 3
TITLE_INCHES = 0.45
MARK_INCHES = 0.55


Styles = dict[tuple[str, str], dict[str, Any]]
"""Colour and marker by (experiment, engine)."""


@dataclass(frozen=True)
class Panel:
    """One plot of the overview: a title, the columns drawn (with line style), and how its axis reads."""

    title: str
    lines: tuple[tuple[str, str], ...]
    format_value: Callable[[float], str]


def format_duration(value_s: float) -> str:
    """An axis label for a duration in seconds: 20 ms, 1.5 s."""
    return f"{value_s * 1000:.4g} ms" if value_s < 0.9995 else f"{value_s:.4g} s"


def format_count(value: float) -> str:
    """An axis label for a rate: 50, 2,000."""
    return f"{value:,.10g}"


PANELS = (
    Panel("Throughput: answer tokens per second", (("output_tokens_per_s", "-"),), format_count),
    Panel("TTFT: time to first token, p50 and p99", (("ttft_p50_s", "-"), ("ttft_p99_s", "--")), format_duration),
    Panel("TPOT: time per output token, p50 and p99", (("tpot_p50_s", "-"), ("tpot_p99_s", "--")), format_duration),
    Panel("E2E: end-to-end latency, p50", (("e2e_p50_s", "-"),), format_duration),
)


def write_figures(levels: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every figure of `levels` (LEVEL_COLUMNS of any number of runs) as PNG in `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"overview.png": draw_overview(levels), "expert_share.png": draw_expert_share(levels)}
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return [folder / name for name in figures]


def draw_overview(levels: pd.DataFrame) -> Figure:
    """Throughput, TTFT, TPOT and E2E against users: a colour per experiment, a line per run, hollow if invalid."""
    styles = _choose_styles(levels)
    figure = Figure(figsize=(11.5, 8.6 + 0.08 * len(styles)))
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        _draw_panel(axes, panel, levels, styles)
    _add_title(figure, levels, f"Expert Router under load: {_describe_runs(levels)}")
    handles = [*_make_series_handles(styles), *_make_style_handles(levels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    return figure


def draw_expert_share(levels: pd.DataFrame) -> Figure:
    """Which expert answered how much: a panel per run, a stacked bar per level, a colour per expert."""
    runs = [run for _, run in levels.groupby(["experiment", "run_id"], sort=False)]
    experts = sorted({expert for shares in levels["expert_share"] for expert in shares})
    num_columns = min(PANELS_PER_ROW, len(runs))
    num_rows = ceil(len(runs) / num_columns)
    figure = Figure(figsize=(max(6.4, 4.2 * num_columns), 1.6 + 2.9 * num_rows))
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, run in zip(panels, runs, strict=False):
        _draw_shares(axes, run, experts)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    _add_title(figure, levels, "Share of requests that each expert answered")
    handles = [Patch(**_style_expert(experts.index(expert)), label=expert) for expert in experts]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    return figure


def choose_ticks(users: Iterable[int]) -> list[int]:
    """The levels to label on a log axis: all of them, less those that would touch a larger neighbour's label."""
    ticks: list[int] = []
    for count in sorted(set(users), reverse=True):
        if not ticks or ticks[-1] / count >= MIN_TICK_RATIO:
            ticks.append(count)
    return ticks[::-1]


def choose_digits(span: float) -> tuple[float, ...]:
    """Which multiples of each power of ten to label on a log axis whose ends have the ratio `span`."""
    if span > 2000:
        return (1,)
    if span > 10:
        return (1, 2, 5)
    return (1, 1.5, 2, 3, 4, 5, 7) if span > 2 else tuple(digit / 10 for digit in range(10, 100, 5))


def _choose_styles(levels: pd.DataFrame) -> Styles:
    """Colour by experiment; the marker tells apart experiments that share a colour, and engines of one experiment."""
    experiments = list(dict.fromkeys(levels["experiment"]))
    styles: Styles = {}
    for experiment, engine in dict.fromkeys(zip(levels["experiment"], levels["engine"], strict=True)):
        index = experiments.index(experiment)
        num_engines_before = sum(known == experiment for known, _ in styles)
        marker = MARKERS[(index // len(COLOURS) + 2 * num_engines_before) % len(MARKERS)]
        styles[experiment, engine] = {"color": COLOURS[index % len(COLOURS)], "marker": marker}
    return styles


def _draw_panel(axes: Any, panel: Panel, levels: pd.DataFrame, styles: Styles) -> None:
    for (experiment, engine, _), run in levels.groupby(["experiment", "engine", "run_id"], sort=False):
        for column, line_style in panel.lines:
            _draw_line(axes, run.sort_values("users"), column, line_style, styles[experiment, engine])
    _draw_user_axis(axes, levels["users"])
    if any(levels[column].notna().any() for column, _ in panel.lines):
        axes.set_yscale("log")
        _label_value_axis(axes, panel.format_value)
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _add_watermark(axes, levels, ON_WHITE)


def _draw_line(axes: Any, run: pd.DataFrame, column: str, line_style: str, style: dict[str, str]) -> None:
    users, values = (run[name].to_numpy(dtype=float, na_value=float("nan")) for name in ("users", column))
    valid = run["valid"].to_numpy(dtype=bool)
    width = 1.8 if line_style == "-" else 1.3
    axes.plot(users, values, line_style, color=style["color"], linewidth=width, zorder=2)
    for chosen, fill in ((valid, style["color"]), (~valid, "white")):
        axes.plot(
            users[chosen],
            values[chosen],
            linestyle="none",
            marker=style["marker"],
            markersize=5.5 if line_style == "-" else 4.5,
            markeredgecolor=style["color"],
            markerfacecolor=fill,
            zorder=3,
        )


def _draw_user_axis(axes: Any, users: Iterable[int]) -> None:
    ticks = choose_ticks(int(count) for count in users)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ticks[0] / 1.3, max(ticks[-1], ticks[0] * 2) * 1.3)
    axes.set_xlabel("concurrent users")


def _label_value_axis(axes: Any, format_value: Callable[[float], str]) -> None:
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=choose_digits(high / low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_shares(axes: Any, run: pd.DataFrame, experts: Sequence[str]) -> None:
    levels = run.sort_values("users").to_dict("records")
    for position, level in enumerate(levels):
        bottom = 0.0
        for expert, share in sorted(level["expert_share"].items()):
            axes.bar(position, share, bottom=bottom, width=0.72, **_style_expert(experts.index(expert)))
            bottom += share
        if not level["expert_share"]:
            axes.text(position, 0.5, "no answer", rotation=90, ha="center", va="center", color=MUTED_COLOUR)
    first = levels[0]
    title = f"{name_series(first['experiment'], first['engine'])}\n{first['run_id']}"
    axes.set_title(title, loc="left", fontsize=9)
    names = [f"{level['users']:,}{'' if level['valid'] else '*'}" for level in levels]
    axes.set_xticks(range(len(levels)), names, fontsize=9 if len(levels) < 8 else 7)
    axes.set_xlabel(
        "concurrent users" + ("" if all(level["valid"] for level in levels) else "   (* not to be trusted)")
    )
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, max(len(levels), 3) - 0.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.spines[["top", "right"]].set_visible(False)
    _add_watermark(axes, run, ON_BARS)


def _style_expert(index: int) -> dict[str, Any]:
    hatch = HATCHES[index // len(COLOURS) % len(HATCHES)]
    return {"facecolor": COLOURS[index % len(COLOURS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}


def _add_title(figure: Figure, levels: pd.DataFrame, title: str) -> None:
    """Title of the figure, and above it the boxed mark if any of `levels` is emulated; the plots end below both."""
    height_inches = figure.get_figheight()
    mark_inches = MARK_INCHES if is_emulated(levels) else 0.0
    plots_end = 1 - (mark_inches + TITLE_INCHES) / height_inches
    figure.set_layout_engine("constrained", rect=(0, 0, 1, plots_end), w_pad=0.12, h_pad=0.1)
    figure.text(0.5, plots_end + TITLE_INCHES / 2 / height_inches, title, fontsize=13, ha="center", va="center")
    if is_emulated(levels):
        figure.text(
            0.5,
            1 - 0.6 * mark_inches / height_inches,
            MARK if is_all_emulated(levels) else f"Series named (emulated) are {MARK}",
            bbox={"boxstyle": "square,pad=0.4", "facecolor": "white", "edgecolor": MARK_COLOUR, "linewidth": 2},
            color=MARK_COLOUR,
            fontsize=13,
            fontweight="bold",
            ha="center",
            va="center",
        )


def _add_watermark(axes: Any, levels: pd.DataFrame, style: dict[str, Any]) -> None:
    # In every panel: a panel cut out of its figure must still say what it shows.
    if is_emulated(levels):
        text = "EMULATED" if is_all_emulated(levels) else "PARTLY\nEMULATED"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, **WATERMARK, **style)


def _make_series_handles(styles: Styles) -> Iterator[Line2D]:
    for (experiment, engine), style in styles.items():
        yield Line2D([], [], linewidth=1.8, label=name_series(experiment, engine), **style)


def _make_style_handles(levels: pd.DataFrame) -> Iterator[Line2D]:
    yield Line2D([], [], color=MUTED_COLOUR, label="p50, throughput")
    yield Line2D([], [], color=MUTED_COLOUR, linestyle="--", label="p99")
    if not levels["valid"].all():
        yield Line2D([], [], color=MUTED_COLOUR, marker="o", markerfacecolor="white", label="hollow: not to be trusted")


def _describe_runs(levels: pd.DataFrame) -> str:
    num_runs = levels["run_id"].nunique()
    names = ", ".join(dict.fromkeys(levels["experiment"]))
    return f"{names}, run {levels['run_id'].iloc[0]}" if num_runs == 1 else f"{num_runs} runs"
