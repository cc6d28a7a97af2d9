"""What export takes from a run: its teacher, and synthetic samples in the form that the exported model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.export.onnx_export import Normalization
from edgekd.export.ranges import Batches
from edgekd.models import artefacts
from edgekd.models.images import unlabeled
from edgekd.recipe import ExportTable, load_resolved
from edgekd.rng import KeyedDraws
from edgekd.run import checkpoint
from edgekd.run.cards.teacher import PixelsCard
from edgekd.run.directory import RunDir
from edgekd.run.ownership import REPLAY_WEIGHTS
from edgekd.run.realdata import RealImages
from edgekd.state_dict import unflatten
from edgekd.stopping import Stop
from edgekd.synthesis.images.pictures import Pictures
from edgekd.synthesis.sampler import Sampler

Array = NDArray[Any]
KEPT_BYTES = 64 * 2**20
"""Samples that are read again and again stay in memory up to this size; more are drawn anew each time."""


@dataclass(frozen=True)
class ExportSamples:
    """Synthetic samples as the exported model takes them: float32, or uint8 pixels when it normalises itself."""

    sampler: Sampler
    draws: KeyedDraws
    pixels: Normalization | None

    @classmethod
    def of_run(cls, run: RunDir, pixels: Normalization | None, stop: Stop | None = None) -> ExportSamples:
        """Return the samples of a run's replay, or of its pictures, under the seed of its recipe."""
        seed = load_resolved(run.recipe_file).seed
        return cls(read_sampler(run, stop), KeyedDraws(seed, "synthetic", torch.device("cpu")), pixels)

    def stream(self, purpose: str, count: int) -> Batches:
        """Return the batches of a purpose, drawn anew whenever they are read; the same purpose gives the same."""

        def draw() -> Iterator[Array]:
            return (as_input(batch, self.pixels) for batch in self.sampler.batches(self.draws, purpose, count))

        return draw

    def draw(self, purpose: str, count: int) -> Tensor:
        """Return samples of a purpose at once, normalised, (count, C, H, W)."""
        return torch.cat(list(self.sampler.batches(self.draws, purpose, count)))

    def as_floats(self, batches: Iterable[Array]) -> Iterator[NDArray[np.float32]]:
        """Yield what the student itself sees of such batches."""
        for batch in batches:
            if self.pixels is None:
                yield batch
            else:
                mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.pixels.mean, self.pixels.std))
                yield np.asarray((batch / np.float32(255) - mean) / std, np.float32)


def as_input(batch: Tensor, pixels: Normalization | None) -> Array:
    """Return normalised samples as the exported model takes them."""
    floats: NDArray[np.float32] = batch.numpy()
    return pixels.to_uint8(floats) if pixels else floats


def of_images(images: RealImages, pixels: Normalization | None) -> Batches:
    """Return real images as the exported model takes them."""
    return lambda: (as_input(batch, pixels) for batch, _ in images.batches(64))


def uint8_input(run_dir: RunDir, table: ExportTable) -> Normalization | None:
    """Return the normalisation that goes into the graph, None for a float input; UsageError where it is unknown."""
    if not table.uint8_input:
        return None
    pixels = run_dir.read(PixelsCard)
    if pixels.mean is None or pixels.std is None:
        raise UsageError(
            "--uint8-input puts the normalisation into the graph, but it is unknown: set it with "
            f"`edgekd ingest --run {run_dir.name} --normalize NAME` or --mean and --std."
        )
    return Normalization(pixels.mean, pixels.std)


def cached_batches(batches: Batches) -> Batches:
    """Return batches that are read from memory after the first time, unless they exceed `KEPT_BYTES`."""
    held: list[Array] = []
    size = 0
    for batch in batches():
        held.append(batch)
        size += batch.nbytes
        if size > KEPT_BYTES:
            return batches
    return lambda: iter(held)


def batch_logits(network: nn.Module, batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the logits, N×K, of a network for normalised samples."""
    with torch.no_grad():
        return np.concatenate([network(torch.from_numpy(x)).numpy() for x in batches])


def read_sampler(run: RunDir, stop: Stop | None = None) -> Sampler:
    """Rebuild what draws samples from select/replay.safetensors, and from the run's pictures if it has any."""
    recipe, description = load_resolved(run.recipe_file), artefacts.description_of(run)
    state = unflatten(checkpoint.load_tensors(run.stage("select") / REPLAY_WEIGHTS), {})
    pictures = read_pictures(run, recipe.images.folder, purpose="samples for export", stop=stop)
    return Sampler.from_state(state, recipe, description, pictures)


def read_pictures(run: RunDir, folder: str, *, purpose: str, stop: Stop | None) -> Pictures | None:
    """Read the pictures that a run is distilled on into memory, and enter them in its ledger; None without a folder.

    Raises UsageError where the run does not know its normalisation, InputFileError where the folder is gone, holds no
    image or one that cannot be read, MachineError where they do not fit into memory.
    """
    if not folder:
        return None
    with unlabeled(run, Path(folder), purpose=purpose, stop=stop) as images:
        return Pictures(images.pixels(), images.shape, *images.moments)
