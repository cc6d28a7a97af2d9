"""Export a classifier to a float32 ONNX file that TensorRT 8.5 to 11 and ONNX Runtime read alike."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.export.graph import OnnxFile, set_metadata, sort_topologically, strip_traces, write_model
from edgekd.export.passes import at_opset, fix_reshapes, pool_spatial_means, slice_splits
from edgekd.text import first_line

OPSET = 17
IR_VERSION = 8
MAX_BATCH = 65536
FLOAT_INPUT, UINT8_INPUT, OUTPUT = "input", "image", "logits"


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_uint8(self, batch: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the pixels, NCHW in 0…255, whose normalised values come nearest to `batch`."""
        mean, std = (np.array(part, dtype=np.float32).reshape(1, -1, 1, 1) for part in (self.mean, self.std))
        pixels: NDArray[np.float32] = np.rint((batch * std + mean).clip(0, 1) * 255)
        return pixels.astype(np.uint8)


class Uint8Input(nn.Module):
    """A classifier that takes raw pixels, uint8 NCHW, and normalises them itself."""

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        mean, std = (torch.tensor(part).reshape(1, -1, 1, 1) for part in (normalization.mean, normalization.std))
        self.module = module
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, N×K, of pixels N×C×H×W."""
        return cast(Tensor, self.module(image.float() * self.scale + self.shift))


def export_fp32(
    module: nn.Module,
    input_shape: Sequence[int],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    uint8_input: Normalization | None = None,
) -> OnnxFile:
    """Write `module` in inference mode as one float32 ONNX file with a dynamic batch.

    Args:
        module: takes float N×C×H×W, gives logits N×K; it is copied, not changed.
        input_shape: C, H, W.
        path: the file to write.
        metadata: model properties, text to text.
        uint8_input: puts this normalisation into the graph; the input is then `image`, uint8 N×C×H×W.

    Raises:
        InputFileError: the network uses something that opset 17 cannot express.
    """
    network = copy.deepcopy(module).cpu().float().eval()
    sample = torch.zeros(2, *input_shape)
    if uint8_input is not None:
        network = Uint8Input(network, uint8_input).eval()
        sample = sample.to(torch.uint8)
    try:
        model = _traced(network, sample, FLOAT_INPUT if uint8_input is None else UINT8_INPUT)
        for rewrite in (pool_spatial_means, fix_reshapes, slice_splits):
            model = rewrite(model)
        model = at_opset(model, OPSET)
    except (ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise InputFileError(
            f"the network cannot be exported to ONNX opset {OPSET}: {first_line(error, 1000)}. Replace the "
            f"operation by one that this opset has, or choose another student (`edgekd students`)."
        ) from error
    model.ir_version = IR_VERSION
    sort_topologically(model)
    strip_traces(model)
    set_metadata(model, metadata or {})
    return write_model(model, path)


def _traced(network: nn.Module, sample: Tensor, input_name: str) -> ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (sample,),
            dynamo=True,
            external_data=False,
            input_names=[input_name],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    assert isinstance(model, ModelProto)
    return model
