"""Real images that a study measures a run on. Nothing is written into the run, its ledger included."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from edgekd.models import artefacts
from edgekd.run.cards.teacher import PixelsCard
from edgekd.run.directory import RunDir
from edgekd.run.image_folder import ImageFolder, open_folder
from edgekd.run.realdata import RealImages


def labeled(run: RunDir, folder: Path, limit: int = 0, *, cache: bool = True) -> RealImages:
    """Return the images of a folder, or the first `limit` of them, as the run's student takes them."""
    description, pixels = artefacts.description_of(run), run.read(PixelsCard)
    found = limited(open_folder(folder.resolve(), classes=description.classes, names=pixels.class_names), limit)
    return RealImages(found, description.input_shape, mean=pixels.mean, std=pixels.std, cache=cache)


def limited(folder: ImageFolder, count: int) -> ImageFolder:
    """Return the first `count` images of a folder, one of each class in turn; all of them for 0."""
    if not count:
        return folder
    before: Counter[int] = Counter()
    turns = []
    for index, label in enumerate(folder.labels.tolist()):
        turns.append((before[label], label, index))
        before[label] += 1
    chosen = sorted(index for _, _, index in sorted(turns)[:count])
    return replace(folder, files=tuple(folder.files[index] for index in chosen), labels=folder.labels[chosen])
