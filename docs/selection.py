"""Ask of finished runs whether the synthetic choice was right: selection.py OUT.json LABEL=RUN=DATA...

For each run: the synthetic agreement of every candidate, beside its accuracy on the real images in DATA, and what the
rule of today chooses by the agreement (a run may have been made under an earlier rule). The choice was right if no
candidate it could have taken has more right answers; what a wrong one cost is the difference. Nothing is written but
OUT.json.
"""

from __future__ import annotations

import json
import statistics
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
    found = [select.Candidate(**row) for row in read_json(run.stage("select") / "selection.json")["candidates"]]
    ships_average = recipe.method.student.ship_average
    chosen = select.choose(found, ships_average=ships_average)[0].name
    allowed = [name for name in accuracy if ships_average or not name.startswith("ema")]
    best = max(accuracy[name] for name in allowed)
    return {
        "preset": recipe.method.preset,
        "seed": recipe.seed,
        "images": len(images),
        "chosen": chosen,
        "candidates": {c.name: {"agreement": c.agreement, "accuracy": accuracy[c.name]} for c in found},
        "right": accuracy[chosen] == best,
        "cost": best - accuracy[chosen],
    }


def main(arguments: list[str]) -> None:
    """Write what the choices were worth."""
    out, *named = arguments
    runs = {}
    for item in named:
        label, run, data = item.split("=")
        runs[label] = judged(RunDir(Path(run)), Path(data))
    summary = {}
    for preset in sorted({row["preset"] for row in runs.values()}):
        rows = [row for row in runs.values() if row["preset"] == preset]
        costs = [row["cost"] for row in rows]
        summary[preset] = {
            "runs": len(rows),
            "right": sum(row["right"] for row in rows),
            "mean_cost": statistics.mean(costs),
            "largest_cost": max(costs),
        }
    Path(out).write_text(json.dumps({"summary": summary, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
