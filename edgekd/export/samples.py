"""Samples for export, synthetic from a run's replay or real, in the form that the exported model takes."""

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
from edgekd.text import path_argument

Array = NDArray[Any]
CACHE_BYTES = 64 * 2**20
"""What `cached_batches` keeps in memory at most."""


@dataclass(frozen=True)
class ExportSamples:
    """Synthetic samples as the exported model takes them: float32, or uint8 pixels if the graph normalises them."""

    sampler: Sampler
    draws: KeyedDraws
    graph_normalization: Normalization | None
    """None for a model with a float32 input, which takes normalised samples."""

    @classmethod
    def of_run(cls, run: RunDir, graph_normalization: Normalization | None, stop: Stop | None = None) -> ExportSamples:
        """Draw from the replay of a run, or from its pictures, under the seed of its recipe."""
        seed = load_resolved(run.recipe_file).seed
        return cls(read_sampler(run, stop), KeyedDraws(seed, "synthetic", torch.device("cpu")), graph_normalization)

    def stream(self, purpose: str, count: int) -> Batches:
        """Give the batches of a purpose, `count` samples in all; each reading draws the same samples again."""

        def read() -> Iterator[Array]:
            return (
                as_model_input(batch, self.graph_normalization)
                for batch in self.sampler.batches(self.draws, purpose, count)
            )

        return read

    def draw(self, purpose: str, count: int) -> Tensor:
        """Draw the samples of a purpose as one normalised tensor, (count, C, H, W)."""
        return torch.cat(list(self.sampler.batches(self.draws, purpose, count)))

    def as_network_input(self, batches: Iterable[Array]) -> Iterator[NDArray[np.float32]]:
        """Convert batches of the exported model to the normalised float32 ones that the PyTorch network takes."""
        for batch in batches:
            if self.graph_normalization is None:
                yield batch
            else:
                moments = (self.graph_normalization.mean, self.graph_normalization.std)
                mean, std = (np.array(moment, np.float32)[:, None, None] for moment in moments)
                yield np.asarray((batch / np.float32(255) - mean) / std, np.float32)


def as_model_input(batch: Tensor, graph_normalization: Normalization | None) -> Array:
    """Convert normalised samples, N×C×H×W, to uint8 pixels if the graph normalises, else to an array as they are."""
    floats: NDArray[np.float32] = batch.numpy()
    return floats if graph_normalization is None else graph_normalization.to_uint8(floats)


def image_batches(images: RealImages, graph_normalization: Normalization | None) -> Batches:
    """Give real images as the exported model takes them."""
    return lambda: (as_model_input(batch, graph_normalization) for batch, _ in images.batches(64))


def read_graph_normalization(run_dir: RunDir, table: ExportTable) -> Normalization | None:
    """Read the normalisation that goes into the graph; None for a model with a float32 input.

    Raises UsageError if the run does not know it.
    """
    if not table.uint8_input:
        return None
    pixels = run_dir.read(PixelsCard)
    if pixels.mean is None or pixels.std is None:
        raise UsageError(
            "--uint8-input puts the normalisation into the graph, but it is unknown: set it with "
            f"`edgekd ingest --run {path_argument(run_dir.path)} --normalize NAME` or --mean and --std."
        )
    return Normalization(pixels.mean, pixels.std)


def cached_batches(batches: Batches) -> Batches:
    """Keep batches in memory for the next reading, unless they exceed CACHE_BYTES."""
    cache: list[Array] = []
    size = 0
    for batch in batches():
        cache.append(batch)
        size += batch.nbytes
        if size > CACHE_BYTES:
            return batches
    return lambda: iter(cache)


def logits_of_batches(network: nn.Module, batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Run a PyTorch network on batches of normalised samples; logits of all, N×K."""
    with torch.no_grad():
        return np.concatenate([network(torch.from_numpy(batch)).numpy() for batch in batches])


def read_sampler(run: RunDir, stop: Stop | None = None) -> Sampler:
    """Load the run's sampler of images from select/replay.safetensors, with the run's pictures if it has any."""
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
