"""What a report says of the clients: how much of their room the busiest level took, and who stamped the arrivals.

Pure: it reads the levels and judges nothing; a level whose client was the bottleneck is marked invalid already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from erhpc.report.cells import format_margin, format_percent, is_known
from erhpc.report.series import Series


def describe_clients(series: Sequence[Series]) -> list[str]:
    """A line for each run of `series`: CPU, margin and stamps; none for a run that knows nothing of its clients."""
    found = ((run, ", ".join(_describe_client(run))) for run in series)
    return [f"client{'' if len(series) == 1 else f' of {run.name}'}: {line}" for run, line in found if line]


def _describe_client(run: Series) -> Iterator[str]:
    levels = run.levels
    num_workers, share = levels["client_workers"].max(), levels["client_cpu_share"].max()
    margin, stamped_share = levels["client_margin"].min(), _mean_stamped_share(levels)
    if is_known(num_workers) and num_workers > 1:
        yield f"{num_workers:.0f} processes"
    if is_known(share):
        yield f"at most {100 * share:.0f} % of a core"
    if is_known(margin):
        yield f"{format_margin(margin)} margin"
    elif is_known(share):
        yield "margin not calibrated"
    if stamped_share is not None:
        yield f"arrivals stamped by {_name_stamper(stamped_share)}"


def _mean_stamped_share(levels: pd.DataFrame) -> float | None:
    """Share of the requests of all levels whose arrivals the kernel stamped; None if that is not known."""
    known = levels[levels["kernel_stamped_share"].notna()]
    num_sent = known[["requests_ok", "requests_failed", "requests_cancelled"]].sum(axis=1).astype("float64")
    num_stamped = (known["kernel_stamped_share"] * num_sent).sum()
    return float(num_stamped / num_sent.sum()) if num_sent.sum() else None


def _name_stamper(stamped_share: float) -> str:
    if stamped_share in (0.0, 1.0):
        return "the kernel" if stamped_share else "the event loop"
    return f"the kernel for {format_percent(stamped_share)} % of the requests, else by the event loop"
