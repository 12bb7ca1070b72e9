"""The verb `python -m erhpc.plan +experiment=X cluster=Y`: shows the plan of a run and submits nothing."""

from __future__ import annotations

import sys

from rich.text import Text

from erhpc.cluster.observation import observe_site
from erhpc.cluster.preparation import check_inputs
from erhpc.cluster.submission import describe_request
from erhpc.composition import verb
from erhpc.config import ExperimentConfig
from erhpc.console import open_console
from erhpc.errors import ErhpcError
from erhpc.plan.building import build_plan
from erhpc.plan.rendering import draw_plan
from erhpc.plan.site import decide_setting


@verb(ExperimentConfig)
def main(experiment: ExperimentConfig, _yaml: str) -> None:
    """Plan, and print the plan; what only a launch needs and is missing is said, not refused."""
    console = open_console()
    setting = decide_setting(experiment, observe_site(experiment.cluster))
    plan = build_plan(experiment, setting, python=sys.executable)
    console.print(draw_plan(plan))
    console.print(Text(f"\nasked of {plan.cluster}: {describe_request(plan)}"))
    try:
        check_inputs(plan)
    except ErhpcError as error:
        console.print(Text(f"! launch would refuse this now: {error}", style="bold red"))


if __name__ == "__main__":
    main()
