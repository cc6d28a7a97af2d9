"""Real images from folders, read only to print numbers; nothing that is built depends on them.

The one exception is asked for by name: `--images`, of `distill` and of `export`.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image, _imaging
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from edgekd.errors import InputFileError, MachineError, UsageError
from edgekd.run.image_folder import ImageFolder
from edgekd.text import sizes

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""What a file may hold, whatever it is called: other decoders of Pillow start programs (PostScript: gs)."""
CROP_FROM_PX = 128
"""From this side on images are resized by their shorter side and cropped, as ImageNet models expect."""
CROP_RANGE = 8
"""Pictures that are cropped at random keep up to so many times the teacher's side; more shows nothing at its size."""
CACHE_BYTES = 2 << 30
BITS_PER_SAMPLE = 258
"""A tag of TIFF."""
NO_ANSWER = -1


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
    with _opened(path) as image:
        pixels = np.array(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
    x = torch.from_numpy(pixels)
    return x[None] if channels == 1 else x.permute(2, 0, 1)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; what Pillow says of one that it reads is about its transparency and metadata, or only its size.

    Raises InputFileError for what it cannot read, then or while the context is open.
    """
    _silence_libtiff()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise whatever they stumble upon
        raise InputFileError(f"{path} cannot be decoded as an image ({error}).") from error


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to the descriptor of stderr: what is wrong comes as an exception all the same."""
    with suppress(AttributeError, OSError):  # a Pillow without it, or that keeps it to itself
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 9 to 16 bits with 8, scaled; Pillow's own conversion would clip it to white.

    Pillow opens such files as integers of 16 or 32 bits, whatever the file's depth; a TIFF tells it.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if not image.mode.startswith("I"):
        return image
    bits = max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,)))
    if bits > 16:
        raise ValueError("its pixels are whole numbers of more than 16 bits, of unknown range")
    values, white = np.asarray(image).astype(np.int64), 2**bits - 1
    if values.min() < 0 or values.max() > white:
        raise ValueError(f"its values reach from {values.min()} to {values.max()}, not within {bits} bits")
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


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

    def answers(self, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the class with the largest logit by image; `NO_ANSWER` where a logit is NaN or infinite."""
        found = []
        for x, _ in self.batches():
            batch = logits(x)
            found.append(batch.argmax(1).where(batch.isfinite().all(1), NO_ANSWER))
        return torch.cat(found)

    def share_right(self, answers: Tensor) -> float:
        """Return the share of images whose answer is their label."""
        return int((answers == self.folder.labels).sum()) / len(self)

    @torch.no_grad()
    def network_answers(self, network: nn.Module) -> Tensor:
        """Return a network's answers in eval mode and float32, its mode restored afterwards."""
        was_training = network.training
        device = next(network.parameters()).device
        network.eval()
        try:
            return self.answers(lambda x: network(x.to(device)).cpu())
        finally:
            network.train(was_training)

    def network_accuracy(self, network: nn.Module) -> float:
        """Return the share of images that a network gives the right answer to."""
        return self.share_right(self.network_answers(network))

    def own_size(self, at_most: int = 32) -> tuple[int, int] | None:
        """Return the size (height, width) that the files have, by some of them; None where it differs."""
        found: set[tuple[int, int]] = set()
        step = max(len(self) // at_most, 1)
        for file in self.folder.files[::step]:
            self._open(file)
            with _opened(file) as image:
                found.add((image.height, image.width))
        return found.pop() if len(found) == 1 else None
