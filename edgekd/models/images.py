"""The one way to real images from a run: they come as its networks take them, and its ledger knows of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgekd.models import artefacts
from edgekd.run.cards.teacher import PixelsCard
from edgekd.run.directory import RunDir
from edgekd.run.ledger import ImageAccount
from edgekd.run.realdata import ImageFolder, RealImages, open_folder, open_unlabeled
from edgekd.stopping import Stop


def labeled(run: RunDir, data: Path, *, purpose: str, stop: Stop | None = None) -> RealImages:
    """Open a folder with a subfolder of images for each class of the run's teacher.

    Raises UsageError where the run does not know its normalisation, InputFileError where the folder does not fit.
    """
    names, classes = run.read(PixelsCard).class_names, artefacts.description_of(run).classes
    return _opened(run, open_folder(data, classes=classes, names=names), purpose, stop, cache=True)


def unlabeled(
    run: RunDir, folder: Path, *, purpose: str | None, count: int | None = None, stop: Stop | None = None
) -> RealImages:
    """Open images without labels, at most `count` evenly spread over the folder; without `purpose` for no ledger.

    Raises UsageError where the run does not know its normalisation, InputFileError where there are no images.
    """
    return _opened(run, open_unlabeled(folder, count), purpose, stop, cache=False)


def _opened(run: RunDir, folder: ImageFolder, purpose: str | None, stop: Stop | None, *, cache: bool) -> RealImages:
    pixels, shape = run.read(PixelsCard), artefacts.description_of(run).input_shape
    reading = None if purpose is None else ImageAccount(run, folder, purpose)
    poll = partial((stop or Stop()).raise_if_requested, f"reading {folder.path}")
    return RealImages(folder, shape, mean=pixels.mean, std=pixels.std, cache=cache, reading=reading, poll=poll)
