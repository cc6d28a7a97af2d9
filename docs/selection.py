"""Ask of finished runs whether the synthetic choice was right: selection.py OUT.json LABEL=RUN=DATA...

For each run: the synthetic agreement that chose its final student, beside the accuracy of every candidate on the real
images in DATA. The choice was right if no candidate it could have taken has more right answers; what a wrong one cost
is the difference. Nothing is written but OUT.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgekd import recipe as recipes
from edgekd.realdata import RealImages, open_folder
from edgekd.rundir import RunDir, read_json
from edgekd.stages import artefacts, select
from edgekd.stopping import Stop


def judged(run: RunDir, data: Path) -> dict[str, Any]:
    """Return agreement and accuracy of each candidate of a run, and what the choice was worth."""
    recipe = recipes.load_resolved(run.recipe_file)
    description, pixels = artefacts.describe(run), artefacts.read_pixels(run)
    state = select.final_state(run)
    networks = select.replay_networks(recipe, description, state)
    folder = open_folder(data, classes=description.classes, names=pixels.class_names)
    images = RealImages(folder, description.input_shape, mean=pixels.mean, std=pixels.std)
    students = select.candidates(recipe, description, state, networks, Stop())
    accuracy = {name: images.network_accuracy(student) for name, student in students.items()}
    selection = read_json(run.stage("select") / "selection.json")
    allowed = [name for name in accuracy if recipe.method.student.ship_average or not name.startswith("ema")]
    best = max(accuracy[name] for name in allowed)
    return {
        "preset": recipe.method.preset,
        "seed": recipe.seed,
        "images": len(images),
        "chosen": selection["chosen"],
        "candidates": {
            row["name"]: {"agreement": row["agreement"], "accuracy": accuracy[row["name"]]}
            for row in selection["candidates"]
        },
        "right": accuracy[selection["chosen"]] == best,
        "cost": best - accuracy[selection["chosen"]],
    }


def main(arguments: list[str]) -> None:
    """Write what the choices were worth."""
    out, *named = arguments
    runs = {}
    for item in named:
        label, run, data = item.split("=")
        runs[label] = judged(RunDir(Path(run)), Path(data))
    right = sum(row["right"] for row in runs.values())
    summary = {"runs": len(runs), "right": right, "largest_cost": max(row["cost"] for row in runs.values())}
    Path(out).write_text(json.dumps({"summary": summary, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
