"""The accuracy curve of a distillation and its summary: mean, sd, variance, maximum, final, regret."""

from __future__ import annotations

import numpy as np

from edgekd.recipe import load_resolved
from edgekd.run.cards.events import AccuracyEvent, GeneratorEvent, TrainEvent
from edgekd.run.cards.record import DistillNotes, Record
from edgekd.run.cards.report import Curve, DistillationCard, Health
from edgekd.run.directory import RunDir


def statistics(values: list[float]) -> Curve:
    """Return the summary of a curve over all its points."""
    curve = np.array(values)
    return Curve(
        points=len(values),
        mean=float(curve.mean()),
        sd=float(curve.std()),
        variance=float(curve.var()),
        max=float(curve.max()),
        final=float(curve[-1]),
        regret=float(curve.max() - curve[-1]),
    )


def summary(run: RunDir) -> DistillationCard:
    """Return what `distill --json` prints: steps, seconds, curve of the shipped weights, the other curve, health."""
    points, train = run.logged(AccuracyEvent), run.logged(TrainEvent)
    raw = statistics([point.raw for point in points]) if points else None
    ema = statistics([point.ema for point in points]) if points else None
    ships_average = load_resolved(run.recipe_file).method.student.ship_average
    record = Record.read(run.stage("distill"))
    notes = None if record is None else record.notes_as(DistillNotes)
    last = train[-1] if train else None
    return DistillationCard(
        run=run.name,
        steps=notes.steps if notes is not None else last.step if last is not None else 0,
        seconds=0.0 if last is None else last.seconds,
        curve=ema if ships_average else raw,
        curve_other=raw if ships_average else ema,
        health=_health(run.logged(GeneratorEvent)[-1:], train[-1:], notes),
    )


def _health(generator: list[GeneratorEvent], train: list[TrainEvent], notes: DistillNotes | None) -> Health:
    """What is known of it: Health has the names that these have."""
    cards = [*generator, *train, *([] if notes is None else [notes])]
    facts = {name: value for card in cards for name, value in card.to_json().items() if name in Health.model_fields}
    return Health.model_validate(facts)
