"""Ask of finished runs whether the synthetic choice was right: selection.py OUT.json LABEL=RUN=DATA...

For each run: the synthetic agreement of every candidate, beside its accuracy on the real images in DATA, and what the
rule of today chooses by the agreement (a run may have been made under an earlier rule). The choice was right if no
candidate it could have taken has more right answers; what a wrong one cost is the difference. Nothing is written but
OUT.json, after every run; what it says of other labels stays.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from edgekd import recipe as recipes
from edgekd.realdata import RealImages, open_folder
from edgekd.rundir import RunDir, read_json, write_json
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


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return how often the choice was right by preset, and what a wrong one cost."""
    by_preset: dict[str, list[dict[str, Any]]] = {}
    for row in runs.values():
        by_preset.setdefault(row["preset"], []).append(row)
    return {
        preset: {
            "runs": len(rows),
            "right": sum(row["right"] for row in rows),
            "mean_cost": statistics.mean(row["cost"] for row in rows),
            "largest_cost": max(row["cost"] for row in rows),
        }
        for preset, rows in sorted(by_preset.items())
    }


def main(out: Path, named: list[str]) -> None:
    """Write what the choices were worth."""
    runs: dict[str, Any] = read_json(out)["runs"] if out.is_file() else {}
    for item in named:
        label, run, data = item.split("=")
        runs[label] = judged(RunDir(Path(run)), Path(data))
        write_json(out, {"summary": summary(runs), "runs": runs})


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
