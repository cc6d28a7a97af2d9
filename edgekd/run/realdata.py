"""Real images from folders, read only to print numbers; nothing that is built depends on them.

The one exception is asked for by name: `--images`, of `distill` and of `export`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from edgekd.errors import InputFileError, MachineError, UsageError
from edgekd.run.files import require_image_folder
from edgekd.text import sizes

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""What a file may hold, whatever it is called: other decoders of Pillow start programs (PostScript: gs)."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
CROP_FROM_PX = 128
"""From this side on images are resized by their shorter side and cropped, as ImageNet models expect."""
CROP_RANGE = 8
"""Pictures that are cropped at random keep up to so many times the teacher's side; more shows nothing at its size."""
CACHE_BYTES = 2 << 30
BITS_PER_SAMPLE = 258
"""A tag of TIFF."""


@dataclass(frozen=True)
class ImageFolder:
    """Files and labels of a folder with one subfolder per class."""

    path: Path
    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def sha256(self) -> str:
        """Return one hash over names and bytes of all images."""
        total = hashlib.sha256()
        for file in self.files:
            total.update(os.fsencode(file.relative_to(self.path)))  # Linux takes any bytes for a name
            try:
                total.update(hashlib.sha256(file.read_bytes()).digest())
            except OSError as error:
                raise InputFileError(f"{file} cannot be read ({error.strerror}).") from error
        return total.hexdigest()


def open_folder(path: Path, *, classes: int, names: tuple[str, ...] | None) -> ImageFolder:
    """List a folder's images; the order of classes is that of `names`, else by number, else by name."""
    require_image_folder(path, by_class=True)
    folders = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) != classes:
        raise InputFileError(f"{path} has {len(folders)} class folders, but the teacher has {classes} classes.")
    if names is not None:
        missing = [name for name in names if name not in folders]
        if missing:
            raise InputFileError(f"{path} has no folder for class {missing[0]!r} of the class names.")
        order = list(names)
    elif all(name.isdecimal() for name in folders):
        order = sorted(folders, key=int)
    else:
        order = folders
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(order):
        images = _images_below(path / name)
        files += images
        labels += [label] * len(images)
    if not files:
        raise InputFileError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))}).")
    return ImageFolder(path, tuple(files), torch.tensor(labels), tuple(order))


def _images_below(folder: Path) -> list[Path]:
    """The files below a folder that are called images; a pipe would be waited for, so it is refused."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in files:
        if not path.is_file():
            raise InputFileError(f"{path} cannot be decoded as an image (it is not a regular file).")
    return files


def open_unlabeled(path: Path, count: int | None = None) -> ImageFolder:
    """List a folder's images at any depth, without labels; with `count` at most so many, evenly spread."""
    require_image_folder(path, by_class=False)
    files = _images_below(path)
    if not files:
        raise InputFileError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))}).")
    if count is not None and count < len(files):
        files = [files[index * len(files) // count] for index in range(count)]
    return ImageFolder(path, tuple(files), torch.zeros(0, dtype=torch.long), ())


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Decode one image to float32 (C, H, W) in [0, 1] with the teacher's channels and size."""
    channels, height, width = shape
    x = _decoded(path, channels).float() / 255
    if x.shape[1:] == (height, width):
        return x
    if min(height, width) < CROP_FROM_PX:
        resized: Tensor = functional.resize(x, [height, width], antialias=True)
        return resized
    shorter = round(max(height, width) / 0.875)
    cropped: Tensor = functional.center_crop(functional.resize(x, [shorter], antialias=True), [height, width])
    return cropped


def read_pixels(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Decode one picture to uint8 (C, height, width), large enough for crops of the teacher's size.

    Of a picture more than `CROP_RANGE` times as large only a smaller one is kept, and a smaller one is enlarged.
    """
    channels, height, width = shape
    pixels = _decoded(path, channels)
    scale = min(pixels.shape[1] / height, pixels.shape[2] / width)
    if 1 <= scale <= CROP_RANGE:
        return pixels
    factor = (1 if scale < 1 else CROP_RANGE) / scale
    size = [max(round(factor * pixels.shape[1]), height), max(round(factor * pixels.shape[2]), width)]
    resized: Tensor = functional.resize(pixels, size, antialias=True)
    return resized


def _decoded(path: Path, channels: int) -> Tensor:
    """Decode an image to uint8 (C, height, width)."""
    if channels not in (1, 3):
        raise UsageError(f"images can be read for 1 or 3 channels, not for {channels}.")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            pixels = np.array(_eight_bit(opened).convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # Pillow's decoders raise whatever they stumble upon
        raise InputFileError(f"{path} cannot be decoded as an image ({error}).") from error
    x = torch.from_numpy(pixels)
    return x[None] if channels == 1 else x.permute(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits with 8, scaled; Pillow's own conversion would clip it to white.

    Pillow opens such files as integers of 16 or 32 bits, whatever the file's depth; a TIFF tells it.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if not image.mode.startswith("I"):
        return image
    if max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))) > 16:
        raise ValueError("its pixels are whole numbers of more than 16 bits, of unknown range")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values reach from {values.min()} to {values.max()}, not within 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def describe_transform(shape: tuple[int, int, int]) -> str:
    """Return how images of another size are brought to the input size."""
    size = sizes(shape[1:])
    if min(shape[1:]) < CROP_FROM_PX:
        return f"bilinear with antialias to {size}"
    return f"shorter side to {round(max(shape[1:]) / 0.875)}, bilinear with antialias, centre crop {size}"


class ReadAccount(Protocol):
    """Who keeps account of real images that are read."""

    def begin(self) -> None:
        """Hear that the first image is about to be opened."""

    def end(self, opened: int) -> None:
        """Hear how many images were opened; whoever never hears it assumes all."""


class RealImages:
    """Normalised batches of an image folder, decoded once when they fit into memory.

    No image is opened before the first one is asked for. As a context it tells `reading` at its end what was opened.
    """

    def __init__(
        self,
        folder: ImageFolder,
        shape: tuple[int, int, int],
        *,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        cache: bool = True,
        reading: ReadAccount | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        if mean is None or std is None:
            raise UsageError(
                "real images need the teacher's normalisation, which is unknown: set it with "
                "`edgekd ingest --run RUN --normalize imagenet|cifar10|cifar100|mnist|none` or --mean and --std."
            )
        self.folder, self.shape = folder, shape
        self.moments = torch.tensor(mean), torch.tensor(std)
        """Mean and standard deviation of the teacher's pixels, (C,)."""
        self._reading, self.poll = reading, poll
        self._opened: set[Path] = set()
        self._fits = cache and len(folder.files) * 4 * shape[0] * shape[1] * shape[2] <= CACHE_BYTES
        self._cache: Tensor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.end(len(self._opened))

    def __len__(self) -> int:
        return len(self.folder.files)

    def normalized(self, file: Path) -> Tensor:
        """Return one image in the teacher's input space; a stop that was asked for is raised before it is opened."""
        self._open(file)
        mean, std = (moment[:, None, None] for moment in self.moments)
        return (read_image(file, self.shape) - mean) / std

    def pixels(self) -> list[Tensor]:
        """Return all pictures in uint8, (C, height, width) and at least of the teacher's size.

        Raises MachineError where they are too large to be held in memory.
        """
        pictures: list[Tensor] = []
        size_bytes = 0
        for file in self.folder.files:
            self._open(file)
            pictures.append(read_pixels(file, self.shape))
            size_bytes += pictures[-1].numel()
            if size_bytes > CACHE_BYTES:
                raise MachineError(
                    f"the pictures of {self.folder.path} take more than {CACHE_BYTES >> 30} GiB of memory at the "
                    f"teacher's size; {len(pictures)} of {len(self)} fit."
                )
        return pictures

    def _open(self, file: Path) -> None:
        """Hear a stop before a file is opened, and keep account of it."""
        self.poll()
        if self._reading is not None and not self._opened:
            self._reading.begin()
        self._opened.add(file)

    def load(self) -> None:
        """Decode all images now if they fit into memory, so that a damaged one is known at once."""
        if self._fits and self._cache is None:
            self._cache = torch.stack([self.normalized(file) for file in self.folder.files])

    def batches(self, size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels); images are float32 in the teacher's input space."""
        self.load()
        for start in range(0, len(self), size):
            labels = self.folder.labels[start : start + size]
            if self._cache is not None:
                yield self._cache[start : start + size], labels
            else:
                files = self.folder.files[start : start + size]
                yield torch.stack([self.normalized(file) for file in files]), labels

    def accuracy(self, logits: Callable[[Tensor], Tensor]) -> float:
        """Return the share of images whose largest logit is their label."""
        hits = sum(int((logits(x).argmax(1) == labels).sum()) for x, labels in self.batches())
        return hits / len(self)

    @torch.no_grad()
    def network_accuracy(self, network: nn.Module) -> float:
        """Return a network's accuracy in eval mode and float32, its mode restored afterwards."""
        was_training = network.training
        device = next(network.parameters()).device
        network.eval()
        try:
            return self.accuracy(lambda x: network(x.to(device)).cpu())
        finally:
            network.train(was_training)
