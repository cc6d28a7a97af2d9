"""Convert an ONNX model to float16, its input and output staying as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgekd.errors import GateError
from edgekd.export.graph import (
    OnnxFile,
    metadata,
    read_model,
    set_metadata,
    sort_topologically,
    strip_traces,
    with_shapes,
    write_model,
)

SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
LARGEST = float(np.finfo(np.float16).max)


def to_fp16(source: Path | ModelProto) -> ModelProto:
    """Return the model with every float tensor but its input and output in float16, in valid order.

    Raises GateError where a weight does not fit into float16.
    """
    model = read_model(source)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size and not np.abs(values).max() <= LARGEST:
            raise GateError(
                f"weight {tensor.name} exceeds {LARGEST:g}, the largest float16; this network can only be used in FP32."
            )
    properties = metadata(model)
    half = convert_float_to_float16(model, keep_io_types=True)
    sort_topologically(half)
    strip_traces(half)
    set_metadata(half, properties)
    return with_shapes(half)


def convert_to_fp16(source: Path | ModelProto, path: Path) -> OnnxFile:
    """Write the float16 form of a model to `path`."""
    return write_model(to_fp16(source), path)
