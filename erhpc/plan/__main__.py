"""The verb `python -m erhpc.plan +experiment=X cluster=Y`: shows the plan of a run and submits nothing."""

from __future__ import annotations

import sys

from erhpc.cluster.observation import observe_site
from erhpc.composition import verb
from erhpc.config import ExperimentConfig
from erhpc.console import open_console
from erhpc.plan.building import build_plan
from erhpc.plan.rendering import draw_plan
from erhpc.plan.site import decide_setting


@verb(ExperimentConfig)
def main(experiment: ExperimentConfig, _yaml: str) -> None:
    """Plan, and print the plan."""
    setting = decide_setting(experiment, observe_site(experiment.cluster))
    open_console().print(draw_plan(build_plan(experiment, setting, python=sys.executable)))


if __name__ == "__main__":
    main()
