"""The verb `python -m erhpc.launch +experiment=X`: plan, predict, submit, follow, report. Thin assembly, no logic.

Exit code 0: the run finished; 1: it failed; 2: the configuration or an input is wrong; 130: cancelled.
"""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime

from erhpc.cluster.following import follow_or_cancel
from erhpc.cluster.observation import observe_site
from erhpc.cluster.preparation import prepare_run
from erhpc.cluster.submission import submit
from erhpc.composition import is_multirun, verb
from erhpc.config import ExperimentConfig
from erhpc.console import open_console
from erhpc.forecast.rendering import draw_failure
from erhpc.forecast.saving import save_prediction
from erhpc.outcome import conclude
from erhpc.plan.building import build_plan
from erhpc.plan.rendering import draw_notices
from erhpc.plan.site import decide_setting
from jobs.node_agent import run_node


@verb(ExperimentConfig)
def main(experiment: ExperimentConfig, yaml: str) -> int:
    """Launch one run; with detach=true or --multirun, leave it to itself once it is submitted."""
    console = open_console()
    setting = decide_setting(experiment, observe_site(experiment.cluster))
    plan = build_plan(experiment, setting, python=sys.executable)
    console.print(draw_notices(plan))
    now = datetime.now(UTC)
    run = prepare_run(plan, yaml, now)
    if (reason := save_prediction(plan, run, now)) is not None:
        console.print(draw_failure(reason))
    job = submit(plan, run, run_node)
    console.print(f"run: {run.root}\njob: {job.scheduler} {job.job_id}")
    if experiment.detach or is_multirun():
        console.print(f"follow it: python -m erhpc.status {shlex.quote(str(run.root))}")
        return 0
    return conclude(follow_or_cancel(job, run, console), run, console)


if __name__ == "__main__":
    main()
