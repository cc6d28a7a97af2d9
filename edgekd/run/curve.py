"""The accuracy curve of a distillation and its summary: mean, sd, variance, maximum, final, regret."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from edgekd.recipe import load_resolved
from edgekd.run.cards.base import CardPart
from edgekd.run.cards.events import AccuracyEvent, Event, GeneratorEvent, TrainEvent
from edgekd.run.cards.record import DistillNotes, Record
from edgekd.run.cards.report import Curve, DistillationCard, Health
from edgekd.run.directory import RunDir

E = TypeVar("E", bound=Event)
SPANS = 1000
"""A curve of no more points is drawn as it is; of a longer one each of so many spans shows its extremes."""
_MOST_AT_ONCE = 64
"""Points of a span that are held before only its extremes are kept."""


def statistics(values: Sequence[float]) -> Curve:
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
    raws, averages = array("d"), array("d")
    for point in run.logged(AccuracyEvent):
        raws.append(point.raw)
        averages.append(point.ema)
    raw, ema = (statistics(values) if values else None for values in (raws, averages))
    ships_average = load_resolved(run.recipe_file).method.student.ship_average
    record = Record.read(run.stage("distill"))
    notes = None if record is None else record.notes_as(DistillNotes)
    last = run.last_logged(TrainEvent)
    return DistillationCard(
        run=run.name,
        steps=notes.steps if notes is not None else last.step if last is not None else 0,
        seconds=0.0 if last is None else last.seconds,
        curve=ema if ships_average else raw,
        curve_other=raw if ships_average else ema,
        health=_health(run.last_logged(GeneratorEvent), last, notes),
    )


def _health(*cards: CardPart | None) -> Health:
    """What is known of it: Health has the names that these have."""
    known = [card.to_json() for card in cards if card is not None]
    return Health.model_validate({name: card[name] for card in known for name in card if name in Health.model_fields})


def thinned(points: Iterable[E], values: Sequence[str]) -> list[E]:
    """Return the points that a picture of `values` needs: the first, the last, and the extremes of each span.

    What is held at a time does not grow with the number of points.
    """
    spans: list[list[E]] = []
    width, first, last = 1, None, None
    for number, point in enumerate(points):
        if number == width * len(spans):
            if len(spans) == SPANS:
                width *= 2
                spans = [_extremes([*spans[i], *spans[i + 1]], values) for i in range(0, SPANS, 2)]
            spans.append([])
        spans[-1].append(point)
        if width > 1 and (number + 1 == width * len(spans) or len(spans[-1]) == _MOST_AT_ONCE):
            spans[-1] = _extremes(spans[-1], values)
        first, last = first or point, point
    ends = [] if first is None or last is None else [first, *(point for span in spans for point in span), last]
    return list({id(point): point for point in ends}.values())


def _extremes(points: Sequence[E], values: Sequence[str]) -> list[E]:
    """Return the points with the smallest and the largest of each value, in their order."""
    chosen: set[int] = set()
    for name in values:
        known = [(value, place) for place, point in enumerate(points) if (value := getattr(point, name)) is not None]
        chosen.update({min(known)[1], max(known)[1]} if known else ())
    return [points[place] for place in sorted(chosen)]
