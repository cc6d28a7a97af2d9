"""The pictures of a report, as inline SVG: the accuracy curve, the losses, the latency distributions."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.device import scratch
from edgekd.bench import comparing, results
from edgekd.run.directory import RunDir
from edgekd.run.left_out import LeftOut
from edgekd.text import visible

Picture = tuple[str, str, str]

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pictures(run: RunDir, left_out: LeftOut | None = None) -> Iterator[Picture]:
    """Yield (title, SVG, source file) of every picture whose data is there and can be read."""
    left_out = left_out or LeftOut()
    yield from left_out.unless(_accuracy_picture, run) or []
    yield from left_out.unless(_loss_picture, run) or []
    for folder in comparing.targets(run):
        yield from left_out.unless(_latency_pictures, folder) or []


def _accuracy_picture(run: RunDir) -> list[Picture]:
    points = run.events("accuracy")
    title = "Accuracy while distilling"
    return [(title, _svg(lambda axes: _accuracy(axes, points)), "events.jsonl")] if points else []


def _loss_picture(run: RunDir) -> list[Picture]:
    points = run.events("train")
    title = "Distillation loss and agreement"
    return [(title, _svg(lambda axes: _losses(axes, points)), "events.jsonl")] if points else []


def _latency_pictures(folder: Path) -> list[Picture]:
    where = "" if folder.name == "local" else f" on {folder.name}"
    found = []
    for comparison in results.read_samples(folder / "samples.json"):
        settings, measured = comparison.settings, comparison.samples_ms
        if measured:
            title = f"Latency{where}, batch {settings.batch}, threads {settings.threads}"
            svg = _svg(functools.partial(_latency, samples=measured))
            found.append((title, svg, f"bench/{folder.name}/samples.json"))
    return found


@functools.cache
def _import_matplotlib() -> None:
    """Import matplotlib so that it leaves no list of fonts in the user's home and reads no settings from there."""
    with scratch.folder() as folder:
        before = dict(os.environ)
        os.environ.update(
            MPLCONFIGDIR=str(folder), XDG_CACHE_HOME=str(folder)
        )  # the second for fontconfig, which it asks
        try:
            import matplotlib.figure  # noqa: F401
        finally:
            os.environ.clear()
            os.environ.update(before)


def _svg(draw) -> str:  # type: ignore[no-untyped-def]
    _import_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    draw(figure.add_subplot())
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "edgekd", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(7, 3), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _accuracy(axes: Axes, points: list[dict[str, float]]) -> None:
    for name, label in (("raw", "raw weights"), ("ema", "averaged weights")):
        axes.plot([p["step"] for p in points], [100 * p[name] for p in points], label=label, linewidth=1)
    axes.set(xlabel="step", ylabel="accuracy, %")
    axes.legend()


def _losses(axes: Axes, points: list[dict[str, float]]) -> None:
    steps = [p["step"] for p in points]
    axes.plot(steps, [p["student"] for p in points], color="tab:gray", linewidth=1)
    axes.set(xlabel="step", ylabel="distance of logits")
    right = axes.twinx()
    for name in ("agreement_novel", "agreement_replay"):
        seen = [p for p in points if name in p]
        label = name.replace("_", " on ")
        right.plot([p["step"] for p in seen], [100 * p[name] for p in seen], label=label, linewidth=1)
    right.set_ylabel("synthetic agreement, %")
    right.legend(loc="lower right")


def _label(name: str) -> str:
    """Return a name as matplotlib shows it: one that begins with an underscore would have no place in the legend."""
    return visible(name if name[:1] != "_" else f" {name}")


def _latency(axes: Axes, samples: Mapping[str, Sequence[Sequence[float]]]) -> None:
    end = 0.0  # a single outlier would press every curve against the left edge
    for name, rounds in samples.items():
        flat = sorted(t for round_ in rounds for t in round_)
        axes.plot(flat, [100 * (i + 1) / len(flat) for i in range(len(flat))], label=_label(name), linewidth=1)
        end = max(end, flat[math.ceil(0.995 * len(flat)) - 1])
    axes.set(xlabel="latency, ms (cut at the largest p99.5)", ylabel="runs at most so long, %", xlim=(0, end))
    axes.legend()
