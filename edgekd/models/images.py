"""The one way to real images from a run: they come as its networks take them, and its ledger knows of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgekd import console
from edgekd.models import artefacts
from edgekd.run.cards.teacher import PixelsCard
from edgekd.run.directory import RunDir
from edgekd.run.image_folder import BY_NAMES, ImageFolder, open_folder, open_unlabeled
from edgekd.run.ledger import ImageAccount
from edgekd.run.realdata import RealImages
from edgekd.stopping import Stop
from edgekd.text import listed, path_argument


def labeled(run: RunDir, data: Path, *, purpose: str, stop: Stop | None = None) -> RealImages:
    """Open a folder with a subfolder of images for each class of the run's teacher, and say what is in it.

    Raises UsageError where the run does not know its normalisation, InputFileError where the folder does not fit.
    """
    names, classes = run.read(PixelsCard).class_names, artefacts.description_of(run).classes
    images = _opened(run, open_folder(data, classes=classes, names=names), purpose, stop, cache=True)
    _say_what_is_there(images.folder, run)
    return images


def unlabeled(
    run: RunDir, folder: Path, *, purpose: str | None, count: int | None = None, stop: Stop | None = None
) -> RealImages:
    """Open images without labels, at most `count` evenly spread over the folder; without `purpose` for no ledger.

    Raises UsageError where the run does not know its normalisation, InputFileError where there are no images.
    """
    images = _opened(run, open_unlabeled(folder, count), purpose, stop, cache=False)
    if purpose is not None and str(images.folder.passed_over):
        console.say(f"images   {images.folder}")
    return images


def _opened(run: RunDir, folder: ImageFolder, purpose: str | None, stop: Stop | None, *, cache: bool) -> RealImages:
    pixels, shape = run.read(PixelsCard), artefacts.description_of(run).input_shape
    reading = None if purpose is None else ImageAccount(run, folder, purpose)
    poll = partial((stop or Stop()).raise_if_requested, f"reading {folder.path}")
    return RealImages(folder, shape, mean=pixels.mean, std=pixels.std, cache=cache, reading=reading, poll=poll)


def _say_what_is_there(folder: ImageFolder, run: RunDir) -> None:
    """Print the images by class, the order of the classes with the flag that changes it, and what is unusual."""
    console.say(f"images   {folder}")
    order = f"order of the classes = {folder.order}: {listed(folder.classes, 4)}"
    if folder.order == BY_NAMES:
        console.say(f"labels   {order}")
    else:
        console.say(f"assumed  {order} (change it with edgekd ingest --run {path_argument(run.path)} --classes FILE)")
    for remark in folder.remarks:
        console.warn(remark)
