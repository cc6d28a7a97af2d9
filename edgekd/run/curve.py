"""The accuracy curve of a distillation and its summary: mean, sd, variance, maximum, final, regret."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.recipe import load_resolved
from edgekd.run.directory import Record, RunDir


def statistics(values: list[float]) -> dict[str, Any]:
    """Return the summary of a curve over all its points; sd is the population's, regret is maximum minus final."""
    curve = np.array(values)
    return {
        "points": len(values),
        "mean": float(curve.mean()),
        "sd": float(curve.std()),
        "variance": float(curve.var()),
        "max": float(curve.max()),
        "final": float(curve[-1]),
        "regret": float(curve.max() - curve[-1]),
    }


def summary(run: RunDir) -> dict[str, Any]:
    """Return what `distill --json` prints: steps, seconds, curve of the shipped weights, the other curve, health."""
    recipe = load_resolved(run.recipe_file)
    points = run.events("accuracy")
    train = run.events("train")
    curves = {name: statistics([p[name] for p in points]) if points else None for name in ("raw", "ema")}
    shipped = "ema" if recipe.method.student.ship_average else "raw"
    record = Record.read(run.stage("distill"))
    notes = record.notes if record is not None else {}
    last = train[-1] if train else {}
    seen = {**(run.events("generator")[-1:] or [{}])[0], **last}
    facts = ("agreement_novel", "agreement_replay", "coverage", "confidence", "diversity")
    health = {name: seen[name] for name in facts if name in seen}
    kept = ("reinits", "rescues", "replay", "replay_bytes", "replay_bytes_as_uint8_images")
    health |= {name: notes[name] for name in kept if name in notes}
    return {
        "run": run.name,
        "steps": notes.get("steps", last.get("step", 0)),
        "seconds": last.get("seconds", 0.0),
        "curve": curves[shipped],
        "curve_other": curves["raw" if shipped == "ema" else "ema"],
        "health": health,
    }


def headline(result: dict[str, Any]) -> str:
    """Return the one line that says how a distillation went."""
    curve = result["curve"]
    if curve is not None:
        return f"accuracy {curve['final']:.2%} at the end, mean {curve['mean']:.2%}, regret {curve['regret']:.2%}"
    novel = result["health"].get("agreement_novel")
    return "no step was made" if novel is None else f"{novel:.1%} synthetic agreement (not accuracy) on novel samples"
