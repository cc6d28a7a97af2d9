"""Quantise a float32 ONNX file to INT8 with ranges of our own, one flavour for each kind of runtime.

ONNX Runtime on a CPU wants outputs quantised too, so that whole chains run as integers; TensorRT wants
only the inputs of Conv and Gemm quantised, so that it can fuse what follows. No file serves both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData

from edgekd.errors import EdgekdError
from edgekd.export.fp16 import SMALLEST_NORMAL, to_fp16
from edgekd.export.graph import (
    WEIGHTED_OPS,
    OnnxFile,
    attribute,
    consumers,
    initializers,
    metadata,
    producers,
    read_model,
    set_metadata,
    sort_topologically,
    strip_traces,
    weight_axis,
    weighted_depth,
    with_shapes,
    write_model,
)
from edgekd.export.passes import at_opset
from edgekd.export.ranges import CLIPPING_OPS, Ranges


@dataclass(frozen=True)
class Flavor:
    """How one kind of runtime wants its INT8."""

    name: str
    unsigned_activations: bool
    symmetric: bool
    tensorrt_versions: tuple[str, ...] = ()  # whose rules the file keeps, see `qdq_check`
    fp16: bool = False
    float_stem: bool = False  # leaves what `float_stem` names as it is

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT runs the file; ONNX Runtime must then take it as written."""
        return bool(self.tensorrt_versions)

    @property
    def steps(self) -> int:
        """The number of steps between the ends of an activation's range."""
        return 254 if self.symmetric else 255

    @property
    def kind(self) -> str:
        """The kind of the file, as in its name."""
        return f"int8-{self.name}"

    @property
    def file_name(self) -> str:
        """The name of the published file."""
        return f"student.{self.kind}.onnx"


FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor("cpu-x86", unsigned_activations=True, symmetric=False, float_stem=True),
        Flavor("cpu-arm", unsigned_activations=False, symmetric=False),
        Flavor("trt", unsigned_activations=False, symmetric=True, tensorrt_versions=("8.6", "10.3")),
        Flavor("trt-fp16", unsigned_activations=False, symmetric=True, tensorrt_versions=("10.3", "11"), fp16=True),
    )
}
FP16_SCALE_OPSET = 19
_CPU_OPS = (
    "Conv",
    "Gemm",
    "MatMul",
    "Relu",
    "Clip",
    "Sigmoid",
    "Add",
    "Mul",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Slice",
    "Pad",
)
_TENSORRT_OPS = ("Conv", "Gemm", "MatMul")


def quantize(
    source: Path | ModelProto,
    flavor: Flavor,
    ranges: Ranges,
    method: str,
    *,
    float_nodes: Collection[str] = (),
    only_nodes: Collection[str] = (),
) -> ModelProto:
    """Return the INT8 form of a float32 model.

    Args:
        source: the float32 model, opset 17.
        flavor: one of FLAVOURS.
        ranges: of the activations of this very model.
        method: which of the candidates of `ranges` to use.
        float_nodes: names of nodes left in float.
        only_nodes: if given, names of the only nodes quantised.

    Raises:
        EdgekdError: a tensor that this flavour quantises has no range.
    """
    model = read_model(source)
    properties = metadata(model)
    if flavor.fp16:
        model = at_opset(model, FP16_SCALE_OPSET)
    in_float = {*float_nodes, *_outside(model)}
    limits = activation_limits(flavor, ranges, method)
    options: dict[str, Any] = {"ActivationSymmetric": flavor.symmetric, "WeightSymmetric": True}
    if flavor.for_tensorrt:
        options |= {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": list(_TENSORRT_OPS)}
        options |= {"QDQDisableWeightAdjustForInt32Bias": True}
    else:
        # The last Gemm gives float logits; 256 levels would make ties of near answers.
        options |= {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
    if flavor.fp16:
        options |= {"TensorQuantOverrides": _fp16_weight_scales(model)}
    # Tells the quantiser that shapes are inferred; it would otherwise pass the model through a temporary file.
    model = with_shapes(model)
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    pairs = {name: (np.float32(low), np.float32(high)) for name, (low, high) in limits.items()}
    for node in model.graph.node:
        if node.op_type in CLIPPING_OPS and node.input[0] not in pairs and node.output[0] in pairs:
            pairs[node.input[0]] = pairs[node.output[0]]  # the quantiser merges both into one tensor
    quantizer = QDQQuantizer(
        model,
        True,
        False,
        QuantType.QInt8,
        QuantType.QUInt8 if flavor.unsigned_activations else QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, pairs),
        list(only_nodes),
        sorted(in_float),
        list(_TENSORRT_OPS if flavor.for_tensorrt else _CPU_OPS),
        options,
    )
    try:
        quantizer.quantize_model()
    except ValueError as error:
        raise EdgekdError(f"int8-{flavor.name}: ONNX Runtime's quantiser refused the model: {error}") from error
    quantized: ModelProto = quantizer.model.model
    if flavor.for_tensorrt:
        _feed_float_nodes(quantized)
        _quantize_one_residual_side(quantized, limits)
    return _finished(quantized, flavor, properties)


def quantize_to(
    source: Path | ModelProto,
    path: Path,
    flavor: Flavor,
    ranges: Ranges,
    method: str,
    *,
    float_nodes: Collection[str] = (),
) -> OnnxFile:
    """Write the INT8 form of a float32 model to `path`; see `quantize`."""
    return write_model(quantize(source, flavor, ranges, method, float_nodes=float_nodes), path)


def activation_limits(flavor: Flavor, ranges: Ranges, method: str) -> dict[str, tuple[float, float]]:
    """Return (low, high) of every activation as this flavour clips it."""
    if not flavor.symmetric:
        return {name: (by_method[method].low, by_method[method].high) for name, by_method in ranges.tensors.items()}
    limits = {name: by_method[method].magnitude for name, by_method in ranges.tensors.items()}
    if flavor.fp16:
        limits = {name: 127 * float(_fp16_scale(np.array(limit / 127))) for name, limit in limits.items()}
    return {name: (-limit, limit) for name, limit in limits.items()}


def compute_nodes(source: Path | ModelProto) -> list[str]:
    """Return the names of the nodes worth quantising (Conv, Gemm, MatMul with constant weights), in order."""
    model = read_model(source)
    weights = initializers(model)
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED_OPS and n.input[1] in weights]


def float_stem(model: ModelProto) -> tuple[str, ...]:
    """Name the Conv that reads the image and the depthwise Conv right behind it; nothing of another start.

    Both move much and multiply little, so ONNX Runtime on x86 takes longer for them in integers than in float. For
    another start float does not pay (docs/export.md).
    """
    weights, readers = initializers(model), consumers(model)
    first = next((n for n in model.graph.node if n.op_type in WEIGHTED_OPS), None)
    if first is None or first.op_type != "Conv" or first.input[1] not in weights:
        return ()
    tensor = first.output[0]
    while len(readers[tensor]) == 1 and readers[tensor][0].op_type in CLIPPING_OPS:
        tensor = readers[tensor][0].output[0]
    second = readers[tensor][0] if len(readers[tensor]) == 1 else None
    if second is None or second.op_type != "Conv" or second.input[1] not in weights:
        return ()
    channels = weights[first.input[1]].dims[0]
    depthwise = attribute(second, "group", 1) == channels == weights[second.input[1]].dims[0]
    return (first.name, second.name) if depthwise and attribute(first, "group", 1) == 1 else ()


def _outside(model: ModelProto) -> list[str]:
    """Name the nodes before the first and behind the last weighted ones: normalisation and pooled logits."""
    makers, readers = producers(model), consumers(model)
    fed: set[str] = set()
    feeding: set[str] = set()
    for node in model.graph.node:
        if node.op_type in WEIGHTED_OPS or fed.intersection(node.input):
            fed.update(node.output)
    for node in reversed(model.graph.node):
        if node.op_type in WEIGHTED_OPS or feeding.intersection(node.output):
            feeding.update(node.input)
    outside = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED_OPS:
            continue
        behind = not feeding.intersection(node.output)
        maker = makers.get(node.input[0]) if node.input else None
        fuses = (
            node.op_type in CLIPPING_OPS
            and maker is not None
            and maker.op_type in WEIGHTED_OPS
            and len(readers[node.input[0]]) == 1
        )
        if not fed.intersection(node.input) or (behind and not fuses):
            outside.append(node.name)
    return outside


def _feed_float_nodes(model: ModelProto) -> None:
    """Give nodes left in float the tensor before the Q/DQ pair that a quantised neighbour reads."""
    makers = producers(model)
    for node in model.graph.node:
        if node.op_type not in WEIGHTED_OPS or not _is_dequantized(node.input[0], makers):
            continue
        if not _is_dequantized(node.input[1], makers):
            node.input[0] = _before_pair(node.input[0], makers)


def _quantize_one_residual_side(model: ModelProto, limits: Mapping[str, tuple[float, float]]) -> None:
    """Leave exactly one side of each residual Add quantised: the skip, so that Conv and Add fuse."""
    makers = producers(model)
    depth = weighted_depth(model)
    pairs: dict[str, str] = {}
    for node in [node for node in model.graph.node if node.op_type == "Add"]:
        if not all(name in depth for name in node.input):
            continue
        quantized = [_is_dequantized(name, makers) for name in node.input]
        sources = [_before_pair(name, makers) if _is_dequantized(name, makers) else name for name in node.input]
        fusible = [_is_quantized_conv(name, makers) for name in sources]
        deeper = 0 if depth[node.input[0]] > depth[node.input[1]] else 1
        skip = sources[1 - deeper]
        misplaced = quantized[deeper] and fusible[deeper] and depth[sources[deeper]] > depth[skip]
        if all(quantized) or misplaced:
            node.input[deeper] = sources[deeper]
        if not quantized[1 - deeper] and (misplaced or (any(fusible) and not any(quantized))):
            if skip not in pairs:  # a skip may feed several Adds
                pairs[skip] = _add_pair(model, skip, limits[skip][1] / 127)
            node.input[1 - deeper] = pairs[skip]


def _is_quantized_conv(tensor: str, makers: Mapping[str, NodeProto]) -> bool:
    maker = makers.get(tensor)
    return maker is not None and maker.op_type in WEIGHTED_OPS and _is_dequantized(maker.input[0], makers)


def _is_dequantized(tensor: str, makers: Mapping[str, NodeProto]) -> bool:
    return tensor in makers and makers[tensor].op_type == "DequantizeLinear"


def _before_pair(tensor: str, makers: Mapping[str, NodeProto]) -> str:
    return str(makers[makers[tensor].input[0]].input[0])


def _add_pair(model: ModelProto, tensor: str, scale: float) -> str:
    """Add a symmetric int8 Q/DQ pair on `tensor` and return the name of what comes out."""
    names = [f"{tensor}_{part}" for part in ("scale", "zero_point", "QuantizeLinear_Output", "DequantizeLinear_Output")]
    scale_name, zero_name, quantized, restored = names
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale or 1.0, dtype=np.float32), scale_name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.int8), zero_name))
    pair = (("QuantizeLinear", tensor, quantized), ("DequantizeLinear", quantized, restored))
    for op, source, target in pair:
        model.graph.node.append(make_node(op, [source, scale_name, zero_name], [target], f"{tensor}_{op}"))
    return restored


def _fp16_weight_scales(model: ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Weight scales that float16 holds exactly, in the quantiser's form."""
    weights = initializers(model)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED_OPS or node.input[1] not in weights:
            continue
        values = numpy_helper.to_array(weights[node.input[1]])
        axis = weight_axis(node, values.ndim)
        others = tuple(index for index in range(values.ndim) if index != axis)
        scales = _fp16_scale(np.abs(values).max(axis=others) / 127)
        overrides[node.input[1]] = [
            {"quant_type": QuantType.QInt8, "scale": float(scale), "zero_point": 0, "axis": axis} for scale in scales
        ]
    return overrides


def _fp16_scale(scale: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Round scales to normal float16 numbers: TensorRT computes with subnormal ones imprecisely."""
    rounded: NDArray[np.float16] = np.maximum(scale, SMALLEST_NORMAL).astype(np.float16)
    return rounded.astype(np.float32)


def _finished(model: ModelProto, flavor: Flavor, properties: Mapping[str, str]) -> ModelProto:
    standard = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.add(domain="", version=standard[0])
    sort_topologically(model)
    if flavor.fp16:
        model = to_fp16(model)
    model = with_shapes(model)
    strip_traces(model)
    set_metadata(model, properties)
    return model
