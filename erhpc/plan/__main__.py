"""The verb `python -m erhpc.plan +experiment=X cluster=Y`: shows the plan of a run and what the twin predicts of it.

`python -m erhpc.plan search +experiment=X` compares other placements of the same experts. Neither submits anything.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from erhpc.cluster.observation import observe_site
from erhpc.cluster.preparation import check_inputs
from erhpc.cluster.submission import describe_request
from erhpc.composition import verb
from erhpc.config import ExperimentConfig
from erhpc.console import open_console
from erhpc.errors import ErhpcError
from erhpc.forecast.placements import Found, search_placements
from erhpc.forecast.prediction import predict
from erhpc.forecast.rendering import draw_failure, draw_forecast, draw_placements
from erhpc.forecast.saving import find_classifier
from erhpc.plan.building import build_plan
from erhpc.plan.plan import Plan
from erhpc.plan.rendering import draw_commands, draw_plan
from erhpc.plan.site import Setting, decide_setting

SEARCH = "search"


@verb(ExperimentConfig)
def main(experiment: ExperimentConfig, _yaml: str) -> None:
    """Plan, and print the plan; what only a launch needs and is missing is said, not refused."""
    console = open_console()
    plan, setting = _plan(experiment)
    console.print(draw_plan(plan))
    if experiment.predict.enabled:
        _print_forecast(plan, setting, console)
    console.print(draw_commands(plan))
    console.print(Text(f"\nasked of {plan.cluster}: {describe_request(plan)}"))
    try:
        check_inputs(plan)
    except ErhpcError as error:
        console.print(Text(f"! launch would refuse this now: {error}", style="bold red"))


@verb(ExperimentConfig)
def search(experiment: ExperimentConfig, _yaml: str) -> None:
    """Print the placements of an experiment's experts, the best first."""
    plan, setting = _plan(experiment)
    found = search_placements(plan, setting.gpus_per_node, find_classifier(plan))
    open_console().print(draw_placements(found, experiment.slo))


def _plan(experiment: ExperimentConfig) -> tuple[Plan, Setting]:
    setting = decide_setting(experiment, observe_site(experiment.cluster))
    return build_plan(experiment, setting, python=sys.executable), setting


def _print_forecast(plan: Plan, setting: Setting, console: Console) -> None:
    try:
        classifier = find_classifier(plan)
        forecast = predict(plan, classifier)
        cheapest: Found | None = None
        if plan.experiment.slo.is_given:
            cheapest = search_placements(plan, setting.gpus_per_node, classifier, until_met=True)
        console.print(draw_forecast(forecast, plan.experiment, cheapest))
    except ErhpcError as error:
        console.print(draw_failure(error))


if __name__ == "__main__":
    if SEARCH in sys.argv[1:2]:
        del sys.argv[1]
        search()
    else:
        main()
