"""Ingest: what is published, what is known of real pixels, and a checkpoint that moved away."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from edgekd import recipe
from edgekd.agent.device import machine
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import InputFileError, UsageError
from edgekd.recipe import PixelsTable
from edgekd.run import checkpoint
from edgekd.run.cards.record import Record
from edgekd.run.cards.teacher import ClaimsPart, PixelsCard, TeacherCard
from edgekd.run.directory import RunDir
from edgekd.stages import ingest


def test_the_teacher_is_published_with_its_weights_and_facts(ingested: RunDir, teacher_file: Path) -> None:
    folder = ingested.stage("teacher")
    facts = json.loads((folder / "teacher.json").read_text())
    assert facts["arch"].startswith("resnet8@0.5")
    assert (facts["input_shape"], facts["classes"], facts["head"], facts["undo"]) == ([1, 8, 8], 4, "linear", "none")
    assert facts["probe"]["batchnorm_layers"] > 0
    assert "seconds_per_batch" not in facts["probe"], "a timing would make equal teachers differ"
    saved = checkpoint.load_tensors(folder / "teacher.safetensors")
    given = torch.load(teacher_file)
    assert {name.rsplit(".", 1)[1] for name in given.keys() - saved.keys()} <= {"num_batches_tracked"}
    assert all(torch.equal(given[name], value) for name, value in saved.items())
    record = Record.read(folder)
    assert record is not None
    assert record.inputs == {"file": sha256_of(teacher_file)}
    assert set(record.outputs) == {"teacher.safetensors", "teacher.json", "pixels.json"}
    assert ingested.ledger().files_read == {str(teacher_file): sha256_of(teacher_file)}


def test_equal_teachers_make_equal_files(ingested: RunDir, teacher_file: Path, tmp_path: Path) -> None:
    again = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ("ingest",))
    records = [Record.read(run.stage("teacher")) for run in (ingested, again)]
    assert records[0] is not None
    assert records[0] == records[1]


def test_a_checkpoint_that_moved_away_does_not_stop_new_pixels(teacher_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(teacher_file.read_bytes())
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(copy), ("ingest",))
    before = sha256_of(run.stage("teacher") / "teacher.safetensors")
    copy.unlink()
    toy.advance(run.path, toy.toy_recipe(copy, pixels={"normalize": "mnist"}), ("ingest",))
    assert sha256_of(run.stage("teacher") / "teacher.safetensors") == before
    assert json.loads((run.stage("teacher") / "pixels.json").read_text())["mean"] == [0.1307]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"nowhere\.pt does not exist"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(tmp_path / "nowhere.pt"), ("ingest",))
    assert not (tmp_path / "toy" / "teacher").exists()


def test_a_teacher_that_answers_everything_alike_is_refused(teacher_file: Path, tmp_path: Path) -> None:
    state = torch.load(teacher_file)
    state["linear.weight"].zero_()
    torch.save(state, tmp_path / "dead.pt")
    with pytest.raises(InputFileError, match="answers every input alike"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(tmp_path / "dead.pt"), ("ingest",))


@pytest.mark.parametrize(
    ("table", "channels", "mean", "std"),
    [
        ({}, 3, None, None),
        ({"normalize": "none"}, 2, [0.0, 0.0], [1.0, 1.0]),
        ({"normalize": "mnist"}, 1, [0.1307], [0.3081]),
        ({"normalize": "imagenet"}, 3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ({"mean": [0.5], "std": [0.25]}, 1, [0.5], [0.25]),
        ({"normalize": "mnist", "mean": [0.5], "std": [0.25]}, 1, [0.5], [0.25]),
    ],
)
def test_moments_of_pixels(
    table: dict[str, Any], channels: int, mean: list[float] | None, std: list[float] | None
) -> None:
    found = ingest.pixel_moments(PixelsTable(**table), channels=channels, classes=10)
    assert found.to_json() == {"mean": mean, "std": std, "class_names": None}


@pytest.mark.parametrize(
    "table",
    [
        {"normalize": "mnist"},
        {"mean": [0.5, 0.5, 0.5]},
        {"std": [0.5, 0.5, 0.5]},
        {"mean": [0.5], "std": [0.5]},
        {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]},
        {"mean": [0.5, 0.5, 0.5], "std": [0.5, -1.0, 0.5]},
    ],
)
def test_moments_that_do_not_fit_the_channels_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="do not fit a teacher of 3 channels"):
        ingest.pixel_moments(PixelsTable(**table), channels=3, classes=10)


def test_every_known_normalization_of_the_recipe_has_moments() -> None:
    for name in ("imagenet", "cifar10", "cifar100", "mnist"):
        mean, std = ingest.NORMALIZATIONS[name]
        assert PixelsTable(normalize=name).normalize == name
        assert len(mean) == len(std)
        assert all(0 < m < 1 and 0 < s < 1 for m, s in zip(mean, std, strict=True))


def test_moments_of_pixels_up_to_255_are_refused() -> None:
    table = PixelsTable(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    with pytest.raises(UsageError, match="divide them by 255"):
        ingest.pixel_moments(table, channels=3, classes=4)


def test_class_names_are_read_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\n\n  dog \nbird\n")
    assert ingest.class_names(file, 3) == ["cat", "dog", "bird"]
    found = ingest.pixel_moments(PixelsTable(classes=str(file)), channels=1, classes=3)
    assert found.class_names == ("cat", "dog", "bird")


@pytest.mark.parametrize("text", ["cat\ndog\n", "a\nb\nc\nd\n", ""])
def test_another_number_of_names_than_classes_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(InputFileError, match="the teacher has 3; one name a line"):
        ingest.class_names(tmp_path / "names.txt", 3)
    with pytest.raises(InputFileError, match="cannot be read"):
        ingest.class_names(tmp_path / "nowhere.txt", 3)


def test_a_name_may_be_there_twice_as_in_imagenet(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("crane\nkite\ncrane\n")
    assert ingest.class_names(tmp_path / "names.txt", 3) == ["crane", "kite", "crane"]


def test_what_the_file_says_of_itself_is_kept_and_its_class_names_are_used(teacher_file: Path, tmp_path: Path) -> None:
    names = {"owl": 1, "cat": 0, "dog": 2, "bee": 3}
    said = {"best_acc1": torch.tensor(75.0), "epoch": 9, "class_to_idx": names}
    torch.save({"state_dict": torch.load(teacher_file), **said}, tmp_path / "teacher.pt")
    wanted = toy.toy_recipe(tmp_path / "teacher.pt")
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    card = run.read(TeacherCard)
    assert card.claims == ClaimsPart(
        accuracy=0.75, accuracy_key="best_acc1", epoch=9, class_names=("cat", "owl", "dog", "bee")
    )
    assert run.read(PixelsCard).class_names == ("cat", "owl", "dog", "bee")
    (tmp_path / "teacher.pt").unlink()
    toy.advance(run.path, recipe.with_changes(wanted, {"pixels": {"normalize": "mnist"}}), ("ingest",))
    assert run.read(PixelsCard).class_names == ("cat", "owl", "dog", "bee"), "without the file, too"
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    toy.advance(
        run.path, recipe.with_changes(wanted, {"pixels": {"classes": str(tmp_path / "names.txt")}}), ("ingest",)
    )
    assert run.read(PixelsCard).class_names == ("a", "b", "c", "d"), "the user knows better"


def test_names_of_another_number_of_classes_are_left_out_with_a_word(
    teacher_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": torch.load(teacher_file), "classes": ["cat", "dog"]}, tmp_path / "teacher.pt")
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(tmp_path / "teacher.pt"), ("ingest",))
    assert "names 2 classes, but the network has 4; they are not used" in capfd.readouterr().err
    assert run.read(TeacherCard).claims is None
    assert run.read(PixelsCard).class_names is None


def test_names_with_a_byte_order_mark_are_read_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert ingest.class_names(tmp_path / "names.txt", 2) == ["cat", "dog"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputFileError, match="not a regular file"):
        ingest.class_names(tmp_path / "pipe", 2)


def test_assumptions_are_kept_with_the_flag_that_changes_them(teacher_file: Path, tmp_path: Path) -> None:
    wanted = recipe.with_changes(toy.toy_recipe(teacher_file), {"teacher": {"input": ""}})
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    assumed = json.loads((run.stage("teacher") / "teacher.json").read_text())["assumptions"]
    assert [a["value"] for a in assumed if "--input" in a["flag"]] == ["32x32"]


def test_the_probe_takes_the_threads_of_the_recipe(teacher_file: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, machine={"threads": 1}), ("ingest",))
    finally:
        torch.set_num_threads(before)
    timing = run.ledger().teacher_probe
    assert timing is not None
    assert timing.threads == 1


def test_a_teacher_of_many_gigabytes_is_hashed_once(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def noted(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(machine, "sha256_of", noted)
    toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file), ("ingest",))
    assert hashed == [teacher_file]
