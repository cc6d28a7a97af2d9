"""Folders of images: which files count, which class they belong to, and a word for everything that does not count."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekd.errors import InputFileError
from edgekd.run.image_folder import ImageFolder, open_folder, open_unlabeled, usual_orders


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def folders(root: Path, *names: str) -> Path:
    write(*(root / name / f"{index}.png" for index, name in enumerate(names)))
    return root


def opened(root: Path, classes: int = 2, names: Sequence[str] | None = None) -> ImageFolder:
    return open_folder(root, classes=classes, names=None if names is None else tuple(names))


def relative(folder: ImageFolder) -> list[str]:
    return [str(file.relative_to(folder.path)) for file in folder.files]


# Which files count


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints/0-checkpoint.png", "._0.png", ".0.png", ".hidden/deep/1.png", "__MACOSX/._0.png"),
        *("__MACOSX/0.png", "@eaDir/0.jpg", "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/1.png"),
        *("#recycle/1.png", "System Volume Information/1.png", "lost+found/1.png", "Thumbs.db/1.png"),
    ],
)
def test_hidden_and_system_names_are_no_images_at_any_depth(name: str, tmp_path: Path) -> None:
    folders(tmp_path, "a", "b")
    write(tmp_path / "a" / name, tmp_path / name)
    found = opened(tmp_path)
    assert relative(found) == ["a/0.png", "b/1.png"]
    assert str(found) == "2 of 2 classes, 1 each; passed over: 2 of hidden or system names"
    assert relative(open_unlabeled(tmp_path)) == ["a/0.png", "b/1.png"]


def test_a_folder_that_is_hidden_itself_is_read(tmp_path: Path) -> None:
    assert len(opened(folders(tmp_path / ".cache" / "@eaDir", "a", "b")).files) == 2


def test_images_are_found_at_any_depth_and_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    folders(tmp_path, "a", "b")
    write(*(tmp_path / "a" / name for name in ("deep/x.JPG", "x.png/y.png", "notes.txt", "c.GIF", "d.gif", "README")))
    write(tmp_path / "labels.csv")
    found = opened(tmp_path)
    assert relative(found) == ["a/0.png", "a/deep/x.JPG", "a/x.png/y.png", "b/1.png"]
    assert found.labels.tolist() == [0, 0, 0, 1]
    assert found.images_by_class() == [3, 1]
    assert str(found) == "4 of 2 classes, a 3, b 1; passed over: 2 .gif, 1 .csv, 1 without a suffix, 1 .txt"


def test_links_to_files_and_folders_are_followed_and_rings_are_not(tmp_path: Path) -> None:
    folders(tmp_path / "data", "a", "b")
    write(tmp_path / "more" / "1.png", tmp_path / "other" / "2.png")
    (tmp_path / "data" / "a" / "linked.png").symlink_to(tmp_path / "other" / "2.png")
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "data" / "a" / "more again").symlink_to(tmp_path / "more")
    (tmp_path / "data" / "a" / "ring").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "more" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "other")
    found = opened(tmp_path / "data", 3)
    assert relative(found) == ["a/0.png", "a/linked.png", "a/more/1.png", "b/1.png", "c/2.png"]
    assert found.images_by_class() == [3, 1, 1]


@pytest.mark.parametrize("place", ["a/x.png", "x.png"])
def test_what_is_called_an_image_and_is_no_file_is_refused(place: str, tmp_path: Path) -> None:
    folders(tmp_path, "a", "b")
    os.mkfifo(tmp_path / place)
    for listing in (opened, open_unlabeled):
        with pytest.raises(InputFileError, match=r"x\.png cannot be decoded as an image \(it is not a regular file"):
            listing(tmp_path)
    (tmp_path / place).unlink()
    (tmp_path / place).symlink_to("nowhere")
    with pytest.raises(InputFileError, match=r"x\.png cannot be decoded"):
        open_unlabeled(tmp_path)


@pytest.mark.parametrize("target", ["nowhere", "z", "n" * 300])
def test_links_that_lead_nowhere_are_named(target: str, tmp_path: Path) -> None:
    """Such as class folders on a disk that is not mounted."""
    folders(tmp_path, "a", "b")
    (tmp_path / "a" / "z").symlink_to(target)
    assert str(opened(tmp_path)).endswith("; passed over: 1 link (z) leading nowhere")
    assert relative(open_unlabeled(tmp_path)) == ["a/0.png", "b/1.png"]
    (tmp_path / "z").symlink_to(target)
    with pytest.raises(
        InputFileError, match=r"3 classes: a, b \(passed over: 2 links \(z, z\) leading nowhere\)\. Give"
    ):
        opened(tmp_path, 3)
    (tmp_path / "a" / "x.png").symlink_to(target)
    with pytest.raises(InputFileError, match="is a link that leads nowhere"):
        opened(tmp_path)


def test_a_name_that_is_no_text_has_a_hash_and_a_class(tmp_path: Path) -> None:
    for name in (b"a", b"\xff"):
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name + b"/\xfe.png")).write_bytes(name)
    assert len(opened(tmp_path).sha256()) == 64


def test_a_folder_without_images_or_no_folder_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.gif")
    with pytest.raises(InputFileError, match=r"holds no images \(looked for .* and found 1 \.gif\)"):
        opened(tmp_path, 1)
    with pytest.raises(InputFileError, match="is not a folder"):
        opened(tmp_path / "nowhere", 1)
    with pytest.raises(InputFileError, match="cannot be read"):
        opened(tmp_path / ("n" * 300), 1)


def test_images_of_no_class_are_named(tmp_path: Path) -> None:
    folders(tmp_path, "a", "b")
    write(tmp_path / "loose.png")
    found = opened(tmp_path)
    assert relative(found) == ["a/0.png", "b/1.png"]
    assert found.remarks == ("passed over, beside the class folders: 1 image (loose.png).",)


def test_the_hash_knows_names_and_bytes(tmp_path: Path) -> None:
    before = opened(folders(tmp_path, "a", "b")).sha256()
    assert before == opened(tmp_path).sha256()
    (tmp_path / "a" / "0.png").write_bytes(b"other")
    assert opened(tmp_path).sha256() != before
    write(tmp_path / "a" / "0.png")
    assert opened(tmp_path).sha256() == before
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "1.png")
    assert opened(tmp_path).sha256() != before


# Classes


@pytest.mark.parametrize(
    ("names", "order", "expected"),
    [
        (("10", "9", "0"), "number", ("0", "9", "10")),
        (("dog", "10", "cat"), "text", ("10", "cat", "dog")),
        (("b", "C", "a"), "text", ("C", "a", "b")),
    ],
)
def test_the_order_of_folders_is_told(
    names: tuple[str, ...], order: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    found = opened(folders(tmp_path, *names), 3)
    assert (found.order, found.classes) == (order, expected)
    assert [file.parent.name for file in found.files] == list(expected)
    assert found.labels.tolist() == [0, 1, 2]


def test_usual_orders_are_those_that_differ() -> None:
    assert usual_orders(["cat", "dog"]) == {"text": ("cat", "dog")}
    assert usual_orders(["10", "9"]) == {"text": ("10", "9"), "number": ("9", "10")}
    assert usual_orders(["c10", "c9", "C1"]) == {
        "text": ("C1", "c10", "c9"),
        "text with its numbers by value": ("C1", "c9", "c10"),
    }
    assert usual_orders(["b", "C", "a"])["text without regard to capitals"] == ("a", "b", "C")


def test_class_names_decide_the_order(tmp_path: Path) -> None:
    found = opened(folders(tmp_path, "1", "0", "2"), 3, ("2", "0", "1"))
    assert (found.order, found.classes, found.remarks) == ("class names", ("2", "0", "1"), ())
    assert [file.parent.name for file in found.files] == ["2", "0", "1"]


def test_an_umlaut_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    """macOS takes it apart: of two characters, where files of names have one."""
    found = opened(folders(tmp_path, "a", "a\u0308"), 2, ("\xe4", "a"))
    assert (found.order, found.labels.tolist()) == ("class names", [0, 1])
    assert relative(found)[0] == "a\u0308/1.png"


def test_another_number_of_folders_than_classes_is_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"has 2 class folders, but the teacher has 3 classes: a, b\. .*--classes"):
        opened(folders(tmp_path, "a", "b"), 3)


def test_the_parts_of_a_data_set_are_told_from_its_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        folders(tmp_path / "pets" / part, "cat", "dog")
        folders(tmp_path / "more" / part, "cat", "dog", "owl")
    with pytest.raises(
        InputFileError, match=r"3 classes: train, val\. There are 3 folders of images below train, val; "
    ):
        opened(tmp_path / "more", 3)
    found = opened(tmp_path / "pets", 2)
    assert (found.classes, len(found.remarks)) == (("train", "val"), 1)
    assert found.remarks[0].endswith(f"give {tmp_path}/pets/train or {tmp_path}/pets/val.")


def test_a_part_of_the_classes_is_measured_by_name(tmp_path: Path) -> None:
    found = opened(folders(tmp_path, "dog", "bird"), 4, ("cat", "dog", "crane", "bird"))
    assert relative(found) == ["dog/0.png", "bird/1.png"]
    assert found.labels.tolist() == [1, 3]
    assert found.images_by_class() == [0, 1, 0, 1]
    assert str(found) == "2 of 2 classes (the teacher has 4), 1 each"
    assert "no folder for 2 classes (cat, crane): a part of the classes is measured" in found.remarks[0]


def test_folders_beside_the_named_classes_are_passed_over_with_a_word(tmp_path: Path) -> None:
    found = opened(folders(tmp_path, "cat", "dog", "unsorted"), 2, ("dog", "cat"))
    assert relative(found) == ["dog/1.png", "cat/0.png"]
    assert found.remarks == ("passed over, since no class name fits: 1 folder (unsorted).",)


def test_a_missing_class_beside_a_surplus_folder_is_a_name_spelled_otherwise(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"no folder for 1 class \(cat\), but 1 folder \(Cat\) that no class name"):
        opened(folders(tmp_path, "Cat", "dog"), 2, ("cat", "dog"))


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    folders(tmp_path, "a", "c")
    (tmp_path / "b").mkdir()
    found = opened(tmp_path, 3)
    assert found.labels.tolist() == [0, 2]
    assert found.remarks == ("no image lies in the folder of 1 class (b).",)
    surplus = opened(tmp_path, 2)
    assert (surplus.classes, surplus.labels.tolist()) == (("a", "c"), [0, 1])
    assert surplus.remarks == ("taken for no class, since no image lies there: 1 folder (b).",)


IMAGENET = ("crane", "kite", "crane", "maillot", "maillot")
"""Names that ImageNet has twice."""


def test_names_that_are_there_twice_do_no_harm_where_no_folder_bears_them(tmp_path: Path) -> None:
    found = opened(folders(tmp_path / "part", "kite"), 5, IMAGENET)
    assert found.labels.tolist() == [1]
    codes = ("n02012849", "n01608432", "n03126707", "n03710637", "n03710721")
    found = opened(folders(tmp_path / "all", *codes), 5, IMAGENET)
    assert (found.order, found.classes) == ("text", tuple(sorted(codes)))
    assert "is called like one of the class names (crane, kite, crane and 2 more)" in found.remarks[0]
    with pytest.raises(InputFileError, match="hold crane more than once"):
        opened(folders(tmp_path / "twice", "kite", "crane"), 5, IMAGENET)
    with pytest.raises(InputFileError, match=r"bear the class names; none is called like one of them .* measured"):
        opened(folders(tmp_path / "few", *codes[:2]), 5, IMAGENET)
