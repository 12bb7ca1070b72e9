"""Tables of a bench of gateways: costs, times to the first token, and how far erhpc is from its targets. Pure.

Each value is the median of the repeats, with the least and the most. What was measured under a smaller load than asked
says so (`@20`: 20 users) and is compared with nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.gateway.contestants import CLASSIFYING, ERHPC, FLOOR
from tests.bench.gateway.measurement import DIRECT, Row
from tests.bench.gateway.phases import AT_ONCE, HUNDRED, ONE, REQUESTS, STREAMS

RUST = ("sglang-router", "vllm-router")
NGINX = ("nginx",)
BUSY = 0.9
"""From this share of its core on a gateway is taken for saturated."""
COSTS = (
    ("us CPU/frame", STREAMS, "cpu_us_per_frame"),
    ("frames/s", STREAMS, "frames_per_s"),
    ("pieces/frame", STREAMS, "pieces_per_frame"),
    ("first byte p99 ms", STREAMS, "ttft_p99_ms"),
    ("RSS MiB", STREAMS, "rss_mib"),
    ("processes", STREAMS, "num_processes"),
    ("us CPU/request", REQUESTS, "cpu_us_per_request"),
    ("requests/s", REQUESTS, "requests_per_s"),
    ("core used", REQUESTS, "core_share"),
    ("core used by others", STREAMS, "others_share"),
)
NOTES = """\
us CPU/frame: CPU time of all processes of the gateway by tokens that the mock sent meanwhile, requests included;
pieces/frame: how often the client read per token: well below 1 frames came together, or the client was late, and no
time here holds; RSS: most of all its processes together, shared pages in each; requests/s: answers of one frame, >
where the gateway had not used up its core: it could do more; core used by others: by what is not the gateway: such
work comes after it, but makes caches cold; the floor passes bytes from socket to socket and does nothing else: the
least that a relay on uvloop can cost. @N: with N users only, not comparable."""
WIDTH = 24


@dataclass(frozen=True)
class Target:
    """A quantity of erhpc's by the least of some rivals'; the fields name a column of `Row`."""

    title: str
    phase: str
    column: str
    rivals: tuple[str, ...]
    """Beginnings of their names; empty: all that are not erhpc's."""
    most: float
    asked_of: str = ERHPC
    """Whom the target is meant for; others are shown too."""


TARGETS = (
    Target("CPU/frame by best Rust router", STREAMS, "cpu_us_per_frame", RUST, 0.85),
    Target("CPU/frame by nginx", STREAMS, "cpu_us_per_frame", NGINX, 1.15),
    Target("CPU/request by best Rust router", REQUESTS, "cpu_us_per_request", RUST, 1.0, CLASSIFYING),
    Target("first byte p99 by best of all", STREAMS, "ttft_p99_ms", (), 1.0),
    Target("at once p50 by best Rust router", AT_ONCE, "ttft_p50_ms", RUST, 1.0),
)


def all_tables(rows: Sequence[Row]) -> str:
    """Everything that can be said of these rows."""
    parts = [f"Costs\n{NOTES}\n{table(rows, COSTS)}"]
    users = {phase: max(row.users for row in rows if row.phase == phase) for phase in {row.phase for row in rows}}
    for phase in (ONE, HUNDRED, STREAMS, AT_ONCE):
        if phase in users:
            parts.append(
                f"Time to the first token, ms: {phase}, at most {users[phase]:,} users (added mean: less that of the "
                f"mock alone; percentiles are whole)\n{ttft_table(rows, phase)}"
            )
    return "\n\n".join([*parts, targets_table(rows), failures_table(rows)])


def table(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> str:
    """A line per gateway."""
    return layout(rows, [(title, make_cell(rows, phase, column)) for title, phase, column in columns])


def ttft_table(rows: Sequence[Row], phase: str) -> str:
    """A line per gateway, about one phase."""
    base = {row.repeat: row for row in rows if (row.gateway, row.phase) == (DIRECT, phase)}

    def added(gateway: str) -> str:
        values = []
        for row in select(rows, gateway, phase):
            alone = base.get(row.repeat)
            if alone is None or row.ttft_mean_ms is None or alone.ttft_mean_ms is None or row.users != alone.users:
                return "-"
            values.append(row.ttft_mean_ms - alone.ttft_mean_ms)
        return summarise(values) if gateway != DIRECT else "-"

    names = ("ttft_mean_ms", "ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms")
    columns = [(name.split("_")[1], make_cell(rows, phase, name)) for name in names]
    return layout(rows, [("added mean", added), *columns])


def layout(rows: Sequence[Row], columns: Sequence[tuple[str, Callable[[str], str]]]) -> str:
    """A line per gateway, in the order they came; `columns` make a cell of its name."""
    gateways = sorted(
        {row.gateway for row in rows}, key=lambda name: (name != DIRECT, not name.startswith(ERHPC), name)
    )
    lines = [f"{'':22}" + "".join(f"{title:>{WIDTH}}" for title, _ in columns)]
    lines += [f"{name:22}" + "".join(f"{cell(name):>{WIDTH}}" for _, cell in columns) for name in gateways]
    return "\n".join(lines)


def select(rows: Sequence[Row], gateway: str, phase: str) -> list[Row]:
    """Those of one gateway in one phase."""
    return [row for row in rows if (row.gateway, row.phase) == (gateway, phase)]


def make_cell(rows: Sequence[Row], phase: str, column: str) -> Callable[[str], str]:
    """The cell of a gateway in a column."""
    most_users = max((row.users for row in rows if row.phase == phase), default=0)

    def cell(gateway: str) -> str:
        found = select(rows, gateway, phase)
        text = summarise([value for row in found if (value := getattr(row, column)) is not None])
        if text == "-":
            return text
        shares = [row.core_share for row in found if row.core_share is not None]
        if column == "requests_per_s" and shares and statistics.median(shares) < BUSY:
            text = f">{text}"
        return text if found[0].users == most_users else f"{text} @{found[0].users}"

    return cell


def summarise(values: Sequence[float]) -> str:
    """Median (least..most)."""
    if not values:
        return "-"
    middle = statistics.median(values)
    if all(isinstance(value, int) for value in values):
        return f"{middle:g}"
    digits = 0 if middle >= 100 else 1 if middle >= 5 else 2
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def targets_table(rows: Sequence[Row]) -> str:
    """Ratios of medians; in brackets the least and most of the repeats, each against its own best rival."""
    lines = [
        "Targets: ratios of medians, (least..most of the repeats); rivals under the same load only\n"
        f"{'':34}{'by':24}{'at most':>8}{ERHPC:>28}{CLASSIFYING:>28}{FLOOR:>28}"
    ]
    for target in TARGETS:
        most_users = max((row.users for row in rows if row.phase == target.phase), default=0)
        known = [row for row in rows if row.phase == target.phase and getattr(row, target.column) is not None]
        rivals = {row.gateway: [] for row in known if is_rival(row.gateway, target) and row.users == most_users}
        medians = {name: median_of(select(known, name, target.phase), target.column) for name in rivals}
        best = min(medians, key=lambda name: medians[name], default=None)
        line = f"{target.title:34}{best or '-':24}{target.most:>8}"
        for gateway in (ERHPC, CLASSIFYING, FLOOR):
            own = select(known, gateway, target.phase)
            line += f"{judge(target, gateway, own, known, medians) if best and own else '-':>28}"
        lines.append(line)
    return "\n".join(lines)


def is_rival(gateway: str, target: Target) -> bool:
    """Whether the target compares with it."""
    if gateway in (DIRECT, FLOOR) or gateway.startswith(ERHPC):
        return False
    return not target.rivals or gateway.startswith(target.rivals)


def median_of(rows: Sequence[Row], column: str) -> float:
    """Of a column that is there in all rows."""
    return statistics.median(getattr(row, column) for row in rows)


def judge(target: Target, gateway: str, own: Sequence[Row], known: Sequence[Row], medians: dict[str, float]) -> str:
    """The ratio, whether it is what was asked of this gateway, and its spread over the repeats."""
    ratio = median_of(own, target.column) / min(medians.values())
    ratios = []
    for row in own:
        others = [other for other in known if other.gateway in medians and other.repeat == row.repeat]
        if others:
            ratios.append(getattr(row, target.column) / min(getattr(other, target.column) for other in others))
    spread = f" ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else ""
    verdict = "" if gateway != target.asked_of else " met" if ratio <= target.most else " missed"
    return f"{ratio:.2f}{spread}{verdict}"


def failures_table(rows: Sequence[Row]) -> str:
    """Requests that failed, if any."""
    lines = [
        f"failed: {row.gateway}, {row.phase}, repeat {row.repeat}: "
        + ", ".join(f"{count} x {kind}" for kind, count in row.failures.items())
        for row in rows
        if row.failures
    ]
    return "\n".join(lines) or "No request failed."
