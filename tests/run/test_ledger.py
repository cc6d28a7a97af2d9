"""Readings of real images in the ledger: all before the first is opened, those that were opened in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toy
from edgekd.errors import InputFileError, Interrupted, UsageError
from edgekd.run.directory import RunDir
from edgekd.run.image_folder import open_folder, open_unlabeled
from edgekd.run.ledger import ImageAccount
from edgekd.run.ownership import is_run, refuse_foreign
from edgekd.run.realdata import RealImages

COUNT = 5 * toy.CLASSES


def images(run: RunDir, photos: Path, *, cache: bool = False) -> RealImages:
    folder = open_folder(photos, classes=toy.CLASSES, names=None)
    reading = ImageAccount(run, folder, "eval")
    return RealImages(folder, toy.SHAPE, mean=(0.5,), std=(0.5,), cache=cache, reading=reading)


def counts(run: RunDir) -> list[int]:
    ledger = run.ledger()
    found = [one.images for one in ledger.real_images]
    assert ledger.real_images_read == sum(found)
    return found


def test_nothing_is_entered_before_an_image_is_asked_for(photos: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with images(run, photos, cache=True):
        pass
    assert not run.ledger_file.exists()


@pytest.mark.parametrize("cache", [True, False])
def test_images_that_are_read_again_count_once_in_a_reading(cache: bool, photos: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "record.json").write_text("{}")
    for _ in range(2):
        with images(run, photos, cache=cache) as found:
            for _ in range(2):
                assert sum(len(batch) for batch, _ in found.batches(7)) == COUNT
    assert counts(run) == [COUNT, COUNT]
    entry = run.ledger().real_images[0]
    assert (entry.folder, entry.purpose, entry.stages_done) == (str(photos), "eval", ["teacher"])
    assert run.ledger().files_read == {str(photos): open_unlabeled(photos).sha256()}


def test_all_stand_there_while_the_first_is_read_and_those_read_afterwards(photos: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with images(run, photos) as found:
        next(found.batches(3))
        assert counts(run) == [COUNT]
    assert counts(run) == [3]


def test_a_reading_that_nobody_ends_stays_with_all_images(photos: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    next(images(run, photos).batches(3))
    assert counts(run) == [COUNT]


def test_a_file_that_cannot_be_read_is_named_and_none_is_counted(photos: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    found = images(run, photos)
    gone = tmp_path / "gone.png"
    object.__setattr__(found.folder, "files", (*found.folder.files, gone))
    object.__setattr__(found.folder, "path", Path("/"))
    with pytest.raises(InputFileError, match=r"gone\.png cannot be read"), found:
        next(found.batches(3))
    assert counts(run) == [0]


@pytest.mark.parametrize("cache", [True, False])
def test_a_stop_is_heard_before_each_image(cache: bool, photos: Path, tmp_path: Path) -> None:
    """A folder of photographs takes minutes; a batch queue that gets no answer sends SIGKILL."""
    run, asked = RunDir(tmp_path), iter([False, False, True])

    def poll() -> None:
        if next(asked):
            raise Interrupted("reading was stopped", 15)

    found = images(run, photos, cache=cache)
    found.poll = poll
    with pytest.raises(Interrupted), found:
        list(found.batches())
    assert counts(run) == [2]


@pytest.mark.parametrize("damage", [{"real_images_read": None}, {"real_images": None}, {"commands": None}, {"host": 3}])
def test_a_ledger_of_other_types_is_damaged(damage: dict[str, object], tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.note_command(["edgekd"])
    (tmp_path / "run.json").write_text(json.dumps({**json.loads((tmp_path / "run.json").read_text()), **damage}))
    assert not is_run(tmp_path)
    with pytest.raises(UsageError, match=r"its run.json is damaged, or of another program"):
        refuse_foreign(tmp_path)
