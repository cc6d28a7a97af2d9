"""Ask of finished runs whether the synthetic choice was right: run.py OUT.json [LABEL=RUN=DATA]...

For each run: the synthetic agreement of every candidate, beside its accuracy on the real images in DATA, and what the
rule of today chooses by the agreement (a run may have been made under an earlier rule). The choice was right if no
candidate it could have taken has more right answers; what a wrong one cost is the difference. Nothing is written but
OUT.json, after every run; what it measured of other labels stays, and their choice is that of today's rule too.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from docs.studies.common import images
from docs.studies.common.provenance import provenance
from edgekd import recipe as recipes
from edgekd.models import artefacts
from edgekd.run.cards.evaluation import SelectionCandidate, SelectionCard
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json, write_json
from edgekd.stages import select
from edgekd.stopping import Stop
from edgekd.synthesis.sampler import Sampler


def judged(run: RunDir, data: Path) -> dict[str, Any]:
    """Return agreement and accuracy of each candidate of a run, and what the choice was worth."""
    recipe = recipes.load_resolved(run.recipe_file)
    description = artefacts.description_of(run)
    state = select.final_state(run)
    sampler = Sampler.from_state(Sampler.state_of(state, recipe.method), recipe, description)
    real = images.labeled(run, data)
    students = select.selection_candidates(recipe, description, state, sampler, Stop())
    accuracy = {name: real.network_accuracy(student) for name, student in students.items()}
    selection = run.read(SelectionCard)
    return {
        **provenance({recipe.method.preset: recipe.method}),
        "preset": recipe.method.preset,
        "seed": recipe.seed,
        "images": len(real),
        "samples": selection.samples,
        "ships_average": recipe.method.student.ship_average,
        "candidates": {
            row.name: {"agreement": row.agreement, "accuracy": accuracy[row.name]} for row in selection.candidates
        },
    }


def with_choice(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a run's candidates, with what the rule makes of it."""
    found = [SelectionCandidate.of(name, c["agreement"], row["samples"]) for name, c in row["candidates"].items()]
    chosen = select.choose(found, ships_average=row["ships_average"])[0].name
    accuracy = {name: c["accuracy"] for name, c in row["candidates"].items()}
    best = max(value for name, value in accuracy.items() if row["ships_average"] or not name.startswith("ema"))
    return row | {"chosen": chosen, "right": accuracy[chosen] == best, "cost": best - accuracy[chosen]}


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
    known: dict[str, Any] = read_json(out) if out.is_file() else {"runs": {}}
    runs = {label: with_choice(row) for label, row in known["runs"].items()}
    write_json(out, known | {"summary": summary(runs), "runs": runs})
    for item in named:
        label, run, data = item.split("=")
        runs[label] = with_choice(judged(RunDir(Path(run)), Path(data)))
        write_json(out, known | {"summary": summary(runs), "runs": runs})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
