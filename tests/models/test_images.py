"""Every verb that reads real images enters them into the ledger before the first is opened, and none too few."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Result

import toy
from edgekd import recipe
from edgekd.run import realdata
from edgekd.run.directory import RunDir

COUNT, BROKEN = 5 * toy.CLASSES, 13
READERS = {
    "eval": ("eval", "toy", "--data", "photos"),
    "the curve": ("distill", "teacher.pt", "--run", "toy", "--input", "1x8x8", "--data", "photos"),
    "a recipe": ("run", "photos.toml", "--run", "toy"),
    "clipping": ("export", "toy", "--calib-data", "photos"),
    "calibration": ("export", "toy", "--images", "photos"),
}


@pytest.fixture(scope="module")
def prepared(finished: Any, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, pictures, a recipe that evaluates on them, and a finished run with known pixels."""
    here = tmp_path_factory.mktemp("prepared")
    shutil.copy(finished.recipe.teacher.file, here / "teacher.pt")
    shutil.copytree(photos, here / "photos")
    wanted = recipe.with_changes(
        finished.recipe,
        {"teacher": {"file": "teacher.pt"}, "pixels": {"mean": [0.5], "std": [0.25]}, "eval": {"data": "photos"}},
    )
    (here / "photos.toml").write_text(recipe.to_toml(wanted))
    shutil.copytree(finished.run.path, here / "runs" / "toy")
    toy.advance(here / "runs" / "toy", recipe.with_changes(wanted, {"eval": {"data": ""}}), (*toy.CHAIN, "bench"))
    return here


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(prepared, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("reader", ["eval", *(pytest.param(r, marks=pytest.mark.slow) for r in READERS if r != "eval")])
def test_killed_at_the_first_image_it_has_entered_all(reader: str, here: Path) -> None:
    assert toy.killed_at_image(here, READERS[reader], 1)
    ledger = RunDir(here / "runs" / "toy").ledger()
    assert ledger.real_images_read == COUNT
    assert [(one.folder.endswith("photos"), one.images) for one in ledger.real_images] == [(True, COUNT)]


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_image_leaves_those_that_were_opened(reader: str, here: Path) -> None:
    run = RunDir(here / "runs" / "toy")
    before = run.recipe_file.read_bytes()
    (sorted((here / "photos").rglob("*.png"))[BROKEN - 1]).write_bytes(b"no picture")
    refused = Result(*READERS[reader])
    assert refused.exit_code == 4
    ledger = run.ledger()
    assert (ledger.real_images_read, ledger.real_images[0].images) == (BROKEN, BROKEN)
    assert ledger.data_free is True
    if reader != "a recipe":  # which changed the run's recipe and published with it before
        assert run.recipe_file.read_bytes() == before


@pytest.mark.parametrize("reader", READERS)
def test_an_interrupt_leaves_those_that_were_opened(reader: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, paths = realdata.read_image, set()

    def impatient(path: Path, shape: tuple[int, int, int]) -> Any:
        paths.add(path)
        if len(paths) == 7:
            raise KeyboardInterrupt
        return decode(path, shape)

    monkeypatch.setattr(realdata, "read_image", impatient)
    with contextlib.suppress(KeyboardInterrupt):
        Result(*READERS[reader])
    assert len(paths) == 7
    assert RunDir(here / "runs" / "toy").ledger().real_images_read == 7


def test_what_is_read_whole_is_counted_once_a_reading(here: Path) -> None:
    for count, reader in enumerate(("eval", "clipping", "calibration", "clipping"), start=1):
        assert Result(*READERS[reader]).exit_code == 0
        ledger = RunDir(here / "runs" / "toy").ledger()
        assert ledger.real_images_read == count * COUNT
    assert [one.purpose for one in ledger.real_images] == ["eval", "clipping", "calibration", "clipping"]
    assert any(name.endswith("photos") for name in ledger.files_read)


def test_a_fresh_beginning_that_was_killed_keeps_the_images_it_read(here: Path) -> None:
    """What --fresh set aside comes back with the next verb, and the ledger of the new beginning goes."""
    run = RunDir(here / "runs" / "toy")
    before = run.ledger()
    small = ("generator.width=8", "student.batch_size=16", "replay.batch_size=8", "vae.width=8", "vae.novel=8")
    flags: tuple[str, ...] = (
        "--normalize",
        "none",
        "--student",
        toy.STUDENT,
        "--steps",
        "4",
        "--threads",
        "1",
        "--fresh",
    )
    flags += tuple(f"--set=method.{setting}" for setting in (*small, "vae.rehearsed=4"))
    assert toy.killed_at_image(here, (*READERS["the curve"], *flags), 1)
    assert run.ledger().real_images_read == COUNT
    assert Result("eval", "toy", "--data", "photos").exit_code == 0
    assert run.stage("export").is_dir(), "brought back"
    ledger = run.ledger()
    assert [one.purpose for one in ledger.real_images] == ["accuracy curve", "eval"]
    assert ledger.real_images_read == 2 * COUNT
    assert ledger.commands[: len(before.commands)] == before.commands
