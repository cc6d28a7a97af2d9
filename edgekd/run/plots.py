"""Pictures of what a run logged and measured, as inline SVG that is the same for the same numbers."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgekd.agent.device import scratch
from edgekd.run.cards.events import AccuracyEvent, TrainEvent
from edgekd.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES = ("student", "agreement_novel", "agreement_replay")
"""What `losses` draws of a point."""


def accuracy(points: Sequence[AccuracyEvent]) -> str:
    """Draw the accuracy curves of raw and averaged weights."""
    return _svg(lambda axes: _accuracy(axes, points))


def losses(points: Sequence[TrainEvent]) -> str:
    """Draw the distance of logits and the synthetic agreement."""
    return _svg(lambda axes: _losses(axes, points))


def latencies(samples: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw the distribution of each artefact's latencies, ms by round."""
    return _svg(lambda axes: _latencies(axes, samples))


@functools.cache
def _import_matplotlib() -> None:
    """Import matplotlib so that it leaves no list of fonts in the user's home and reads no settings from there.

    A notebook's choice of a backend goes unheard, too: it may be missing here, and an SVG needs none.
    """
    with scratch.folder() as folder, contextlib.chdir(folder):  # it obeys a matplotlibrc in the working directory
        before = dict(os.environ)
        for name in ("MATPLOTLIBRC", "MPLBACKEND"):
            os.environ.pop(name, None)
        os.environ.update(
            MPLCONFIGDIR=str(folder), XDG_CACHE_HOME=str(folder)
        )  # the second for fontconfig, which it asks
        try:
            import matplotlib.figure  # noqa: F401
        finally:
            os.environ.clear()
            os.environ.update(before)


def _svg(draw: Callable[[Axes], None]) -> str:
    _import_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "edgekd", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(7, 3), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _accuracy(axes: Axes, points: Sequence[AccuracyEvent]) -> None:
    steps = [point.step for point in points]
    axes.plot(steps, [100 * point.raw for point in points], label="raw weights", linewidth=1)
    axes.plot(steps, [100 * point.ema for point in points], label="averaged weights", linewidth=1)
    axes.set(xlabel="step", ylabel="accuracy, %")
    axes.legend()


def _losses(axes: Axes, points: Sequence[TrainEvent]) -> None:
    axes.plot(*_known([(p.step, p.student) for p in points]), color="tab:gray", linewidth=1)
    axes.set(xlabel="step", ylabel="distance of logits")
    right = axes.twinx()
    novel = [(p.step, p.agreement_novel) for p in points]
    replay = [(p.step, p.agreement_replay) for p in points]
    for label, pairs in (("agreement on novel", novel), ("agreement on replay", replay)):
        steps, shares = _known(pairs)
        right.plot(steps, [100 * share for share in shares], label=label, linewidth=1)
    right.set_ylabel("synthetic agreement, %")
    right.legend(loc="lower right")


def _known(pairs: Sequence[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    """Steps and values where there is a value."""
    points = [(step, value) for step, value in pairs if value is not None]
    return [step for step, _ in points], [value for _, value in points]


def _label(name: str) -> str:
    """A name as matplotlib shows it: one that begins with an underscore would have no place in the legend."""
    return visible(name if name[:1] != "_" else f" {name}")


def _latencies(axes: Axes, samples: Mapping[str, Sequence[Sequence[float]]]) -> None:
    end = 0.0  # a single outlier would press every curve against the left edge
    for name, rounds in samples.items():
        flat = sorted(t for round_ in rounds for t in round_)
        axes.plot(flat, [100 * (i + 1) / len(flat) for i in range(len(flat))], label=_label(name), linewidth=1)
        end = max(end, flat[math.ceil(0.995 * len(flat)) - 1])
    axes.set(xlabel="latency, ms (cut at the largest p99.5)", ylabel="runs at most so long, %", xlim=(0, end))
    axes.legend()
