"""Run the stages that need it, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd import console
from edgekd.pipeline.run_status import RunStatus
from edgekd.recipe import Recipe
from edgekd.run.directory import RunDir
from edgekd.stages.base import Execution, Stage
from edgekd.stopping import Stop

if TYPE_CHECKING:
    from edgekd.run.run_logger import Accuracy


def advance(run: RunDir, recipe: Recipe, *stages: Stage, stop: Stop, accuracy: Accuracy | None = None) -> list[Stage]:
    """Run those of the given stages that need it, in order; return the ones that ran.

    `accuracy` is what the curve of a distillation measures on real images, where the user gave some.
    """
    from edgekd import machine  # torch, which a verb that only looks at stages does without

    standing = RunStatus(run, recipe)
    ran: list[Stage] = []
    for stage in stages:
        if not stage.wanted(recipe):
            continue
        if standing.reason_to_run(stage) is None:
            console.say(f"{stage.name:<9}already done")
            continue
        if ran or stop.interrupted:  # else a --max-seconds shorter than the start would never come further
            stop.raise_if_requested(f"the run before {stage.name}")
        standing.refuse_pruned(stage)
        machine.use_threads(recipe.machine.threads)
        stage.run(Execution(stage, run, recipe, standing.inputs(stage), stop, accuracy))
        standing.forget(stage)
        ran.append(stage)
    return ran
