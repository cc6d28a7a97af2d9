"""Bring runs into a study: python -m docs.studies.common.collect OUT.json [OUT.svg] LABEL=RUN... [--note TEXT].

The JSON holds, per run, the method's differences from its preset, seconds, the whole accuracy curve with its
statistics, the accuracy of the shipped student on each `eval`, replay_bytes and the machine. The SVG shows the curves;
without one the JSON keeps no more of their points than step and accuracy of the shipped weights. Printed is a table in
Markdown; "other" is the weights that are not shipped, raw or averaged.
"""

from __future__ import annotations

import json
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from docs.studies.common.provenance import method_of, provenance
from edgekd import recipe as recipes
from edgekd.run import curve
from edgekd.run.cards.evaluation import EvaluationCard
from edgekd.run.cards.events import AccuracyEvent, TrainEvent
from edgekd.run.cards.record import DistillNotes, Record
from edgekd.run.directory import RunDir


def facts(run: RunDir) -> dict[str, Any]:
    """Return what one run's files say."""
    recipe = recipes.load_resolved(run.recipe_file)
    preset = recipes.parse({"method": {"preset": recipe.method.preset}}, origin="the preset")
    summary = curve.summary(run)
    record = Record.read(run.stage("distill"))
    shipped = "ema" if recipe.method.student.ship_average else "raw"
    points = list(run.logged(AccuracyEvent))
    curves = {"raw": [p.raw for p in points], "ema": [p.ema for p in points]}
    steps = [p.step for p in points]
    seconds = _seconds_at(steps, list(run.logged(TrainEvent)))
    files = sorted((run.path / "eval").glob("*.json"))
    evals = {path.stem: _without_folder(EvaluationCard.load_file(path)) for path in files}
    return {
        "preset": recipe.method.preset,
        "changes": recipes.differences(preset.method.model_dump(mode="json"), recipe.method.model_dump(mode="json")),
        "student": recipe.student.name,
        "seed": recipe.seed,
        "steps": summary.steps,
        "seconds": summary.seconds,
        "curve": None if summary.curve is None else summary.curve.to_json(),
        "curve_other": None if summary.curve_other is None else summary.curve_other.to_json(),
        **summary.health.to_json(),
        "environment": record.notes_as(DistillNotes).environment if record else "not finished",
        "evals": evals,
        "shipped": shipped,
        "sd_second_half": curve.statistics(curves[shipped][len(points) // 2 :]).sd,
        "after_minutes": {str(m): _after(curves[shipped], seconds, 60 * m) for m in (3, 10, 30)},
        "forgotten": {name: forgotten(values, steps) for name, values in curves.items()},
        "agreement_by_tenths": _agreement(run, summary.steps),
        "points": {"step": steps, "seconds": [round(at, 1) for at in seconds], **curves},
    }


def forgotten(curve: list[float], steps: list[int]) -> dict[str, Any]:
    """Return the deepest fall below the best so far, the step it ended at, and the share of points 2 points below."""
    falls = [best - value for best, value in zip(accumulate(curve, max), curve, strict=True)]
    deepest = max(falls)
    below = sum(fall > 0.02 for fall in falls) / len(falls)
    return {"deepest_fall": deepest, "at_step": steps[falls.index(deepest)], "share_below_by_2_points": below}


def _agreement(run: RunDir, steps: int) -> dict[str, list[float | None]]:
    """Return the mean agreement of student and teacher on novel and on replayed images, over tenths of the steps."""
    events = list(run.logged(TrainEvent))
    found: dict[str, list[float | None]] = {}
    for kind, values in (
        ("novel", [(e.step, e.agreement_novel) for e in events]),
        ("replay", [(e.step, e.agreement_replay) for e in events]),
    ):
        known = [(10 * (step - 1) // steps, value) for step, value in values if value is not None]
        tenths = [[value for place, value in known if place == i] for i in range(10)]
        found[kind] = [sum(tenth) / len(tenth) if tenth else None for tenth in tenths]
    return found


def _without_folder(evaluation: EvaluationCard) -> dict[str, Any]:
    """Return an evaluation without the path of the images on this machine."""
    return {name: value for name, value in evaluation.to_json().items() if name != "folder"}


def _after(curve: list[float], seconds: list[float], limit: float) -> float | None:
    """Return the accuracy of the last point within so many seconds; None where the run had ended by then."""
    within = [value for value, at in zip(curve, seconds, strict=True) if at <= limit]
    return within[-1] if len(within) < len(curve) else None


def _seconds_at(steps: list[int], events: list[TrainEvent]) -> list[float]:
    """Return the seconds of training at each of these steps."""
    train = [(0, 0.0), *((e.step, e.seconds) for e in events)]
    return [_at(train, step) for step in steps]


def _at(train: list[tuple[int, float]], step: int) -> float:
    """Return the seconds at `step`, linear between the logged ones."""
    for (s0, t0), (s1, t1) in pairwise(train):
        if s0 <= step <= s1:
            return t0 + (t1 - t0) * (step - s0) / (s1 - s0)
    return train[-1][1]


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the curves of the shipped weights over the steps."""
    from matplotlib.figure import Figure  # not at the top: the GPU study runs where there is none

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, run in runs.items():
        points = run["points"]
        axes.plot(points["step"], [100 * a for a in points[run["shipped"]]], label=label, linewidth=1)
    best = max(run["curve"]["max"] for run in runs.values())
    worst = min(run["curve"]["final"] for run in runs.values())
    axes.set(xlabel="step", ylabel="accuracy, %", ylim=(max(0.0, 100 * worst - 12), min(100.0, 100 * best + 1)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Return the figures of the curves of the shipped weights as Markdown, accuracies in %."""
    names = ("mean", "sd", "variance", "max", "final", "regret")
    titles = ("mean %", "sd", "variance", "max %", "**final %**", "regret", "other final %")
    rows = [["run", "seed", "steps", "seconds", *titles, "replay_bytes", "as uint8 images"]]
    for label, run in runs.items():
        curve = run["curve"]
        scales = (100, 100, 100**2, 100, 100, 100)
        figures = [f"{scale * curve[name]:.2f}" for name, scale in zip(names, scales, strict=True)]
        figures.append(f"{100 * run['curve_other']['final']:.2f}")
        memory = [str(run.get(name, "–")) for name in ("replay_bytes", "replay_bytes_as_uint8_images")]
        rows.append([label, str(run["seed"]), str(run["steps"]), f"{run['seconds']:.0f}", *figures, *memory])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str]) -> None:
    """Write both files."""
    note = ""
    if "--note" in arguments:
        place = arguments.index("--note")
        note = arguments[place + 1]
        arguments = arguments[:place] + arguments[place + 2 :]
    out, *named = arguments
    picture = named.pop(0) if named[0].endswith(".svg") else None
    folders = dict(item.split("=", 1) for item in named)
    runs = {label: facts(RunDir(Path(folder))) for label, folder in folders.items()}
    methods = {label: method_of(RunDir(Path(folder))) for label, folder in folders.items()}
    if picture:
        draw(runs, Path(picture))
    else:
        for run in runs.values():
            run["points"] = {name: run["points"][name] for name in ("step", run["shipped"])}
    print(table(runs))  # noqa: T201
    content = {**provenance(methods), "note": note, "runs": runs}
    Path(out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
