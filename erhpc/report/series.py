"""What a report compares: the levels of one run each, with a name that no other run of the report bears.

It knows neither tables nor figures, only what both call a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from erhpc.report.runs import EXTERNAL, MARKS


@dataclass(frozen=True, eq=False)
class Series:
    """The levels of one run: a section of the table, a colour of the overview, a panel of the shares."""

    experiment: str
    engine: str
    run_id: str
    name: str
    """The experiment, with the run's id where several runs of the experiment are reported."""
    levels: pd.DataFrame

    @property
    def full_name(self) -> str:
        """The experiment and the run's id, whichever other runs are reported."""
        return name_run(self.experiment, self.engine, self.run_id)


def split_series(levels: pd.DataFrame) -> list[Series]:
    """The runs of `levels` (LEVEL_COLUMNS), in the order in which they first occur."""
    groups = levels.groupby(["experiment", "engine", "run_id"], sort=False)
    experiments = [experiment for (experiment, _, _), _ in groups]
    return [
        Series(
            experiment=experiment,
            engine=engine,
            run_id=run_id,
            name=name_run(experiment, engine, run_id if experiments.count(experiment) > 1 else None),
            levels=run,
        )
        for (experiment, engine, run_id), run in groups
    ]


def name_run(experiment: str, engine: str, run_id: str | None = None) -> str:
    """How a report calls a run; one not measured, or on a server of others, never looks like one of erhpc's."""
    name = f"{experiment} ({engine})" if engine in (*MARKS, EXTERNAL) else experiment
    return name if run_id is None else f"{name}, {run_id}"
