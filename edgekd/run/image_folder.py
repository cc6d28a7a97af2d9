"""Folders of images: which files count, to which class each belongs, and what is passed over, in words."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from edgekd.errors import InputFileError
from edgekd.run.files import require_image_folder
from edgekd.text import listed, visible

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
"""Those of torchvision's ImageFolder."""
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__pycache__"),
    }
)
"""What file managers, network storage and Python leave in folders, in small letters."""
BY_NAMES, BY_NUMBER, BY_TEXT = "class names", "number", "text"


@dataclass
class PassedOver:
    """What lies in a folder of images and is none."""

    hidden: int = 0
    """Files and folders whose names begin with a dot or are a system's."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Files that are not called images, by their suffix."""
    nowhere: list[str] = field(default_factory=list)
    """Names of links that lead nowhere; each may have been a folder of images."""

    def __str__(self) -> str:
        common = self.suffixes.most_common(5)
        parts = [f"{count} {suffix or 'without a suffix'}" for suffix, count in common]
        more = self.suffixes.total() - sum(count for _, count in common)
        parts += [f"{more} of other suffixes"] if more else []
        parts += [f"{self.hidden} of hidden or system names"] if self.hidden else []
        parts += [f"{_so_many(self.nowhere, 'link')} leading nowhere"] if self.nowhere else []
        return ", ".join(parts)


@dataclass(frozen=True)
class ImageFolder:
    """Files of a folder; with one subfolder per class also their labels."""

    path: Path
    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    """The teacher's classes in the order of its logits, as the class names or the folders call them."""
    order: str
    """What that order was taken from: `class names`, `number`, `text`; empty without labels."""
    passed_over: PassedOver
    remarks: tuple[str, ...] = ()
    """What is unusual about the folder, a sentence each."""

    def sha256(self) -> str:
        """Return one hash over names and bytes of all images."""
        total = hashlib.sha256()
        for file, content in zip(self.files, self._hashes, strict=True):
            total.update(os.fsencode(file.relative_to(self.path)))
            total.update(content)
        return total.hexdigest()

    def in_several_classes(self) -> list[list[Path]]:
        """Return the images whose bytes lie in more than one class, those of the same bytes together."""
        found: dict[bytes, list[int]] = {}
        for index, content in enumerate(self._hashes):
            found.setdefault(content, []).append(index)
        several = [same for same in found.values() if len({int(self.labels[index]) for index in same}) > 1]
        return [[self.files[index] for index in same] for same in several]

    @cached_property
    def _hashes(self) -> list[bytes]:
        """The hash of each image's bytes."""
        hashes = []
        for file in self.files:
            try:
                hashes.append(hashlib.sha256(file.read_bytes()).digest())
            except OSError as error:
                raise InputFileError(f"{file} cannot be read ({error.strerror}).") from error
        return hashes

    def images_by_class(self) -> list[int]:
        """Return the number of images of each class, in the order of the logits."""
        counts: list[int] = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return counts

    def __str__(self) -> str:
        """Say how many images there are, of how many classes, and what else lies there."""
        text = f"{len(self.files)}"
        if self.classes:
            counts = {name: count for name, count in zip(self.classes, self.images_by_class(), strict=True) if count}
            of_all = "" if len(counts) == len(self.classes) else f" (the teacher has {len(self.classes)})"
            text += f" of {len(counts)} classes{of_all}, {_in_short(counts)}"
        return f"{text}; passed over: {self.passed_over}" if str(self.passed_over) else text


def _in_short(counts: Mapping[str, int]) -> str:
    """The number of images by class: all of a few, else the least and the most."""
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[least] == counts[most]:
        return f"{counts[most]} each"
    if len(counts) <= 12:
        return listed((f"{name} {count}" for name, count in counts.items()), 12)
    return f"from {counts[least]} ({listed([least])}) to {counts[most]} ({listed([most])})"


def open_unlabeled(path: Path, count: int | None = None) -> ImageFolder:
    """List a folder's images at any depth, without labels; with `count` at most so many, evenly spread."""
    require_image_folder(path, by_class=False)
    passed_over = PassedOver()
    files = _images_below(path, path, passed_over)
    if not files:
        raise _no_images(path, passed_over)
    if count is not None and count < len(files):
        files = [files[index * len(files) // count] for index in range(count)]
    return ImageFolder(path, tuple(files), torch.zeros(0, dtype=torch.long), (), "", passed_over)


def open_folder(path: Path, *, classes: int, names: tuple[str, ...] | None) -> ImageFolder:
    """List a folder's images by class; the order of classes is that of `names`, else by number, else by text.

    Where a folder bears one of the names, all are matched by name. Then classes may be missing, or other folders may
    lie beside them, but not both, which is a name that is spelled otherwise.
    """
    require_image_folder(path, by_class=True)
    passed_over = PassedOver()
    folders, beside = _entries(path, passed_over)
    if not folders:
        raise InputFileError(f"{path} has no class folders, but the teacher has {classes} classes.")
    images = {folder.name: _images_below(folder, path, passed_over) for folder in folders}
    if not any(images.values()):
        raise _no_images(path, passed_over)
    counts = {name: len(files) for name, files in images.items()}
    if names is not None:
        # macOS writes an umlaut as two characters where others write one.
        spelled = {unicodedata.normalize("NFC", name): name for name in images}
        names = tuple(
            name if name in images else spelled.get(unicodedata.normalize("NFC", name), name) for name in names
        )
    if names is not None and any(name in images for name in names):
        order, ordered, remarks = BY_NAMES, names, _matched_by_name(path, counts, names)
    else:
        parts = _parts(path, images, classes)
        order, ordered, remarks = _in_usual_order(path, counts, classes, names, parts, passed_over)
    labels = {name: label for label, name in enumerate(ordered) if name in images}
    if not any(images[name] for name in labels):
        raise InputFileError(f"{path} holds no image of the teacher's classes: {' '.join(remarks)}")
    empty = [name for name in labels if not images[name]]
    if empty:
        remarks.append(f"no image lies in the folder of {_so_many(empty, 'class')}.")
    if beside:
        loose = [file.name for file in beside]
        remarks.append(f"passed over, beside the class folders: {_so_many(loose, 'image')}.")
    return ImageFolder(
        path,
        tuple(file for name in labels for file in images[name]),
        torch.tensor([label for name, label in labels.items() for _ in images[name]]),
        ordered,
        order,
        passed_over,
        tuple(remarks),
    )


def usual_orders(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the orders in which programs put classes of these names, as far as they differ."""
    by_text = sorted(names)
    orders = {
        BY_TEXT: by_text,
        BY_NUMBER: sorted(by_text, key=int) if all(name.isdecimal() for name in names) else by_text,
        "text with its numbers by value": sorted(by_text, key=_natural_key),
        "text without regard to capitals": sorted(by_text, key=str.casefold),
    }
    different = {tuple(order): name for name, order in reversed(orders.items())}
    return {name: order for order, name in reversed(different.items())}


def _natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key by which `class10` comes after `class9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _matched_by_name(path: Path, counts: Mapping[str, int], names: tuple[str, ...]) -> list[str]:
    """Say which classes or folders have no match; refuse a folder that may be either of two, and both at once."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name in counts]
    if twice:
        raise InputFileError(
            f"the class names hold {listed(twice)} more than once, so {path / twice[0]} may be any of these classes; "
            "tell them apart in the file of --classes and in the folders."
        )
    missing = [name for name in names if name not in counts]
    surplus = [name for name, count in counts.items() if count and name not in names]
    if missing and surplus:
        raise InputFileError(
            f"{path} has no folder for {_so_many(missing, 'class')}, but {_so_many(surplus, 'folder')} that no class "
            "name fits. Make them agree, or remove from the folder what is not to be measured."
        )
    remarks = []
    if missing:
        remarks.append(f"{path} has no folder for {_so_many(missing, 'class')}: a part of the classes is measured.")
    if surplus:
        remarks.append(f"passed over, since no class name fits: {_so_many(surplus, 'folder')}.")
    return remarks


def _parts(path: Path, images: Mapping[str, Sequence[Path]], classes: int) -> list[str]:
    """The folders that hold as many folders of images as there are classes, as the parts of a data set do."""
    below = {
        name: {file.relative_to(path).parts[1] for file in files if len(file.relative_to(path).parts) > 2}
        for name, files in images.items()
    }
    return [name for name, folders in below.items() if len(folders) == classes > 1]


def _in_usual_order(
    path: Path,
    counts: Mapping[str, int],
    classes: int,
    names: tuple[str, ...] | None,
    parts: Sequence[str],
    passed_over: PassedOver,
) -> tuple[str, tuple[str, ...], list[str]]:
    """Order the folders by number or by text: there are no class names, or no folder bears one.

    `parts` are folders that may be parts of a data set instead of classes, which is named.
    """
    remarks = []
    folders = list(counts)
    filled = [name for name, count in counts.items() if count]
    if len(folders) != classes == len(filled):
        empty = [name for name, count in counts.items() if not count]
        remarks.append(f"taken for no class, since no image lies there: {_so_many(empty, 'folder')}.")
        folders = filled
    if len(folders) != classes:
        way_on = "Give the names of all its classes, as the folders are called, with --classes FILE"
        if names is not None:
            way_on = f"Make the folders bear the class names; none is called like one of them ({listed(names)})"
        way_on += "; then a part of them can be measured."
        if parts:
            way_on = f"There are {classes} folders of images below {listed(parts)}; if these are the classes, give "
            way_on += f"{_joined(path, parts)}."
        instead = f" (passed over: {passed_over})" if str(passed_over) else ""
        raise InputFileError(
            f"{path} has {len(folders)} class folders, but the teacher has {classes} classes: "
            f"{listed(folders, 12)}{instead}. {way_on}"
        )
    if len(parts) == len(folders):
        remarks.append(
            f"each class folder holds {classes} folders of images itself. If these are the classes, give "
            f"{_joined(path, parts)}."
        )
    if names is not None:
        remarks.append(f"no folder of {path} is called like one of the class names ({listed(names)}).")
    orders = usual_orders(folders)
    order = BY_NUMBER if BY_NUMBER in orders else BY_TEXT
    return order, orders[order], remarks


def _joined(path: Path, parts: Sequence[str]) -> str:
    return " or ".join(visible(str(path / part)) for part in parts[:3])


def _so_many(names: Sequence[str], what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{len(names)} {what if len(names) == 1 else plural} ({listed(names, 5)})"


def _no_images(path: Path, passed_over: PassedOver) -> InputFileError:
    instead = f" and found {passed_over}" if str(passed_over) else ""
    return InputFileError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))}{instead}).")


def _entries(folder: Path, passed_over: PassedOver) -> tuple[list[Path], list[Path]]:
    """The folders and the images in a folder, links followed; the rest is counted, but what blocks is refused."""
    folders: list[Path] = []
    images: list[Path] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputFileError(f"{folder} cannot be read ({error.strerror}).") from error
    for path in entries:
        if path.name.startswith(".") or path.name.casefold() in SYSTEM_NAMES:
            passed_over.hidden += 1
            continue
        is_image, mode = path.suffix.lower() in SUFFIXES, _mode(path)
        if mode is None and not is_image:
            passed_over.nowhere.append(path.name)
        elif mode is not None and stat.S_ISDIR(mode):
            folders.append(path)
        elif not is_image:
            passed_over.suffixes[visible(path.suffix.lower()[:12])] += 1
        elif mode is None or not stat.S_ISREG(mode):
            what = "a link that leads nowhere" if mode is None else "not a regular file"
            raise InputFileError(f"{path} cannot be decoded as an image (it is {what}).")
        else:
            images.append(path)
    return folders, images


def _mode(path: Path) -> int | None:
    """What an entry of a folder is; None for a link that leads nowhere."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise InputFileError(f"{path} cannot be read ({error.strerror}).") from error


def _images_below(folder: Path, root: Path, passed_over: PassedOver) -> list[Path]:
    """The images below a folder, in order. A folder to which several links lead counts once, so none goes in rings."""
    files: list[Path] = []
    seen: set[tuple[int, int]] = set() if folder == root else {_identity(root)}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        identity = _identity(current)
        if identity in seen:
            continue
        seen.add(identity)
        folders, images = _entries(current, passed_over)
        files += images
        waiting += reversed(folders)
    return sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
