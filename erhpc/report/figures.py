"""Levels as figures: throughput and latency against the load, and which expert answered. The only home of matplotlib.

It reads a data frame and knows no run folder. Emulated results cannot be drawn without their mark, and closed and open
loops not on one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, isfinite, nan
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from erhpc.report.loads import read_loads, split_loops
from erhpc.report.panels import Panel, choose_panels, name_load_axis
from erhpc.report.runs import EXTERNAL, describe_mark, describe_watermark
from erhpc.report.scales import choose_digits, choose_ticks, format_load
from erhpc.report.series import Series, split_series
from erhpc.results.record import BOUNDED_COLUMNS, name_bound

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#999933")
"""Okabe and Ito's colours, told apart by colour-blind readers too, without the yellow that is too pale for lines;
then wine and olive of Paul Tol's muted scheme."""
MARKERS = ("o", "s", "^", "D", "v")
"""Their number shares no factor with that of the colours: 45 runs look different, and not by colour alone."""
HATCHES = ("", "///", "...", "xxx")
MARK_COLOUR = "#B00020"
MUTED_COLOUR = "#555555"
WATERMARK = {"color": MARK_COLOUR, "rotation": 24, "ha": "center", "va": "center", "fontweight": "bold"}
BELOW_LINES = {"fontsize": 34, "alpha": 0.13, "zorder": 1}
ABOVE_BARS = {"fontsize": 28, "alpha": 0.28, "zorder": 4}
DPI = 150
PANELS_PER_ROW = 3
TITLE_INCHES = 0.45
MARK_INCHES = 0.55
OVERVIEW_INCHES = 11.5
PANEL_ROW_INCHES = 4.2
LEGEND_ROW_INCHES = 0.2
LEGEND_HANDLE_INCHES = 0.65
LEGEND_LETTER_INCHES = 0.075
"""Mean width of a letter at the legend's 9 points."""

PREDICTED_LABEL = "dash-dotted: PREDICTED, not measured; band: its 90 % interval"
PREDICTED_NOTE = "dash-dotted: PREDICTED"

Style = dict[str, Any]


def write_figures(
    levels: pd.DataFrame,
    folder: Path,
    limits: Mapping[str, float] | None = None,
    predictions: pd.DataFrame | None = None,
) -> list[Path]:
    """Draw every figure of `levels` (LEVEL_COLUMNS of any number of runs) as PNG in `folder`; returns the files.

    Closed and open loops have an overview each. Figures that an earlier report left there and this one has no levels
    for are deleted. `limits` is the largest load that met the SLO, by the id of the run that searched for it;
    `predictions` (PREDICTION_COLUMNS) are drawn beside the runs that they are of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    closed, opened = split_loops(levels)
    figures = {
        "overview.png": draw_overview(closed, limits, predictions) if len(closed) else None,
        "overview_rate.png": draw_overview(opened, limits, predictions) if len(opened) else None,
        "expert_share.png": draw_expert_share(levels) if any(levels["expert_share"]) else None,
    }
    for name, figure in figures.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            figure.savefig(folder / name, dpi=DPI)
    return [folder / name for name, figure in figures.items() if figure is not None]


def draw_overview(
    levels: pd.DataFrame, limits: Mapping[str, float] | None = None, predictions: pd.DataFrame | None = None
) -> Figure:
    """Throughput, latencies and, with an SLO, goodput against the load: a colour and a line per run.

    An invalid level is hollow; a dotted line is the largest load that met the SLO (`limits`, by the run's id). What was
    predicted of a run is dash-dotted in its colour, on a band that is the interval, and named in every panel.

    Raises:
        ValueError: some levels are of closed loops and some of open ones.
    """
    series, panels = split_series(levels), choose_panels(levels)
    marks = {index: limits[run.run_id] for index, run in enumerate(series) if limits and run.run_id in limits}
    predicted = {} if predictions is None else _pick_predictions(series, predictions)
    handles = [*_make_series_handles(series), *_make_style_handles(levels, list(marks.values()))]
    handles += [Line2D([], [], color=MUTED_COLOUR, linestyle="-.", label=PREDICTED_LABEL)] if predicted else []
    num_columns = choose_legend_columns([str(handle.get_label()) for handle in handles])
    height_inches = PANEL_ROW_INCHES * len(panels) / 2 + LEGEND_ROW_INCHES * ceil(len(handles) / num_columns)
    figure = Figure(figsize=(OVERVIEW_INCHES, height_inches))
    for axes, panel in zip(figure.subplots(len(panels) // 2, 2).flat, panels, strict=True):
        _draw_panel(axes, panel, levels, series)
        _draw_predictions(axes, panel, predicted)
        for index, load in marks.items():
            axes.axvline(load, color=_style_series(index)["color"], linestyle=":", linewidth=1.5, zorder=1.5)
    _add_title(figure, levels, f"{_describe_subject(levels)} under load: {_describe_runs(series)}")
    figure.legend(handles=handles, loc="outside lower center", ncols=num_columns, frameon=False, fontsize=9)
    return figure


def draw_expert_share(levels: pd.DataFrame) -> Figure:
    """Which expert answered how much: a panel per run, a stacked bar per level, a colour per expert."""
    series = split_series(levels)
    experts = sorted({expert for shares in levels["expert_share"] for expert in shares})
    num_columns = min(PANELS_PER_ROW, len(series))
    num_rows = ceil(len(series) / num_columns)
    figure = Figure(figsize=(max(6.4, 4.2 * num_columns), 1.6 + 2.9 * num_rows))
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, run in zip(panels, series, strict=False):
        _draw_shares(axes, run, experts)
    for axes in panels[len(series) :]:
        axes.set_visible(False)
    _add_title(figure, levels, "Share of requests that each expert answered")
    handles = [Patch(**_style_expert(experts.index(expert)), label=expert) for expert in experts]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    return figure


def choose_legend_columns(labels: Sequence[str]) -> int:
    """How many columns of the longest of `labels` fit below the overview."""
    longest_inches = LEGEND_HANDLE_INCHES + LEGEND_LETTER_INCHES * max(len(label) for label in labels)
    return max(1, min(4, int(OVERVIEW_INCHES / longest_inches)))


def _style_series(index: int) -> Style:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_panel(axes: Any, panel: Panel, levels: pd.DataFrame, series: Sequence[Series]) -> None:
    for index, run in enumerate(series):
        for column, line_style in panel.lines:
            _draw_line(
                axes, _sort_by_load(run.levels), column, line_style, _style_series(index), is_log=not panel.is_share
            )
    _draw_load_axis(axes, levels)
    columns = [column for column, _ in panel.lines]
    if panel.is_share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: panel.format_value(value)))
    elif (levels[columns] > 0).any(axis=None):
        axes.set_yscale("log")
        _label_value_axis(axes, panel.format_value)
    else:
        _say_nothing_to_draw(axes, levels, columns)
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _add_watermark(axes, levels, BELOW_LINES)


def _pick_predictions(series: Sequence[Series], predictions: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The predicted levels of each run that has some, by its index."""
    own = {
        index: predictions[(predictions["run_id"] == run.run_id) & (predictions["experiment"] == run.experiment)]
        for index, run in enumerate(series)
    }
    return {index: frame for index, frame in own.items() if len(frame)}


def _draw_predictions(axes: Any, panel: Panel, predicted: Mapping[int, pd.DataFrame]) -> None:
    """The first line of a panel as it was predicted, with its interval."""
    column = panel.lines[0][0]
    drawn = False
    for index, frame in predicted.items():
        levels = _sort_by_load(frame)
        if not (levels[column] > 0).any():
            continue
        colour, loads = _style_series(index)["color"], levels["load"].to_numpy(dtype=float)
        axes.plot(
            loads, levels[column].to_numpy(dtype=float, na_value=nan), "-.", color=colour, linewidth=1.2, alpha=0.8
        )
        if column in BOUNDED_COLUMNS:
            ends = ("low", "high")
            low, high = (levels[name_bound(column, end)].to_numpy(dtype=float, na_value=nan) for end in ends)
            axes.fill_between(loads, low, high, color=colour, alpha=0.12, linewidth=0)
        drawn = True
    if drawn:
        # In every panel: one that is cut out of its figure must still say what it shows.
        axes.text(0.99, 0.02, PREDICTED_NOTE, transform=axes.transAxes, ha="right", fontsize=8, color=MARK_COLOUR)


def _sort_by_load(levels: pd.DataFrame) -> pd.DataFrame:
    return levels.assign(load=read_loads(levels)).sort_values("load")


def _draw_line(axes: Any, run: pd.DataFrame, column: str, line_style: str, style: Style, *, is_log: bool) -> None:
    # A log axis has no place for zero: a line towards it would point at a value that was not measured.
    drawn = run[column].where(run[column] > 0) if is_log else run[column]
    loads, values = (numbers.to_numpy(dtype=float, na_value=float("nan")) for numbers in (run["load"], drawn))
    valid = run["valid"].to_numpy(dtype=bool)
    width = 1.8 if line_style == "-" else 1.3
    axes.plot(loads, values, line_style, color=style["color"], linewidth=width, zorder=2)
    for chosen, fill in ((valid, style["color"]), (~valid, "white")):
        axes.plot(
            loads[chosen],
            values[chosen],
            linestyle="none",
            marker=style["marker"],
            markersize=5.5 if line_style == "-" else 4.5,
            markeredgecolor=style["color"],
            markerfacecolor=fill,
            zorder=3,
        )


def _say_nothing_to_draw(axes: Any, levels: pd.DataFrame, columns: Sequence[str]) -> None:
    answered = "0 at every level" if levels[columns].notna().any(axis=None) else "no values"
    text = answered if levels["requests_ok"].any() else "no answers"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=13, color=MUTED_COLOUR)
    axes.set_yticks([])


def _draw_load_axis(axes: Any, levels: pd.DataFrame) -> None:
    ticks = choose_ticks(load for load in read_loads(levels) if load > 0)
    axes.set_xlabel(name_load_axis(levels))
    if not ticks:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.set_xticks(ticks, [format_load(load) for load in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ticks[0] / 1.3, max(ticks[-1], ticks[0] * 2) * 1.3)


def _label_value_axis(axes: Any, format_value: Callable[[float], str]) -> None:
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=choose_digits(high / low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_shares(axes: Any, run: Series, experts: Sequence[str]) -> None:
    levels = _sort_by_load(run.levels).to_dict("records")
    for position, level in enumerate(levels):
        bottom = 0.0
        for expert, share in sorted(level["expert_share"].items()):
            axes.bar(position, share, bottom=bottom, width=0.72, **_style_expert(experts.index(expert)))
            bottom += share
        if not level["expert_share"]:
            text = "experts not known" if level["requests_ok"] else "no answer"
            axes.text(position, 0.5, text, rotation=90, ha="center", va="center", color=MUTED_COLOUR)
    axes.set_title(run.full_name.replace(", ", "\n"), loc="left", fontsize=9)
    names = [f"{_name_load(level['load'])}{'' if level['valid'] else '*'}" for level in levels]
    axes.set_xticks(range(len(levels)), names, fontsize=9 if len(levels) < 8 else 7)
    axes.set_xlabel(name_load_axis(run.levels) + ("" if run.levels["valid"].all() else "   (* not to be trusted)"))
    axes.set_ylim(0, 1)
    # A few bars keep to the middle, or they would be as wide as the panel.
    margin = 0.6 + 0.3 * max(0, 3 - len(levels))
    axes.set_xlim(-margin, len(levels) - 1 + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.spines[["top", "right"]].set_visible(False)
    _add_watermark(axes, run.levels, ABOVE_BARS)


def _name_load(load: float) -> str:
    return format_load(load) if isfinite(load) else "?"


def _style_expert(index: int) -> Style:
    hatch = HATCHES[index // len(COLOURS) % len(HATCHES)]
    return {"facecolor": COLOURS[index % len(COLOURS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}


def _add_title(figure: Figure, levels: pd.DataFrame, title: str) -> None:
    """Title of the figure, and above it the boxed mark where `levels` were not measured; the plots end below both."""
    height_inches = figure.get_figheight()
    mark = describe_mark(levels, "Series")
    mark_inches = 0.0 if mark is None else MARK_INCHES * len(mark.splitlines())
    plots_end = 1 - (mark_inches + TITLE_INCHES) / height_inches
    figure.set_layout_engine("constrained", rect=(0, 0, 1, plots_end), w_pad=0.12, h_pad=0.1)
    figure.text(0.5, plots_end + TITLE_INCHES / 2 / height_inches, title, fontsize=13, ha="center", va="center")
    if mark is not None:
        figure.text(
            0.5,
            1 - 0.6 * mark_inches / height_inches,
            mark,
            bbox={"boxstyle": "square,pad=0.4", "facecolor": "white", "edgecolor": MARK_COLOUR, "linewidth": 2},
            color=MARK_COLOUR,
            fontsize=13,
            fontweight="bold",
            ha="center",
            va="center",
        )


def _add_watermark(axes: Any, levels: pd.DataFrame, style: Style) -> None:
    # In every panel: a panel cut out of its figure must still say what it shows.
    text = describe_watermark(levels)
    if text is not None:
        axes.text(0.5, 0.5, text, transform=axes.transAxes, **WATERMARK, **style)


def _make_series_handles(series: Sequence[Series]) -> Iterator[Line2D]:
    for index, run in enumerate(series):
        yield Line2D([], [], linewidth=1.8, label=run.name, **_style_series(index))


def _make_style_handles(levels: pd.DataFrame, limits: Sequence[float]) -> Iterator[Line2D]:
    solid = "p50, throughput" if levels["slo_attainment"].isna().all() else "p50, throughput, SLO"
    yield Line2D([], [], color=MUTED_COLOUR, label=solid)
    yield Line2D([], [], color=MUTED_COLOUR, linestyle="--", label="p99")
    if not levels["valid"].all():
        yield Line2D([], [], color=MUTED_COLOUR, marker="o", markerfacecolor="white", label="hollow: not to be trusted")
    if limits:
        # The limit is one of several levels close to each other, so its tick may bear no label.
        label = f"largest load that met the SLO: {', '.join(map(format_load, limits))}"
        yield Line2D([], [], color=MUTED_COLOUR, linestyle=":", label=label)


def _describe_subject(levels: pd.DataFrame) -> str:
    return "External server" if (levels["engine"] == EXTERNAL).all() else "Expert Router"


def _describe_runs(series: Sequence[Series]) -> str:
    experiments = {run.experiment for run in series}
    if len(series) == 1:
        return f"{series[0].experiment}, run {series[0].run_id}"
    return f"{series[0].experiment}, {len(series)} runs" if len(experiments) == 1 else f"{len(series)} runs"
