"""Quantise a float32 ONNX model to INT8 with given activation ranges, one flavour for each kind of runtime.

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
    """How one kind of runtime wants its INT8 file."""

    name: str
    unsigned_activations: bool
    symmetric: bool
    tensorrt_versions: tuple[str, ...] = ()  # the file keeps the rules of these, see `qdq_check`
    fp16: bool = False  # what is not quantised is float16
    float_stem: bool = False  # the nodes of `depthwise_stem` stay in float

    @property
    def for_tensorrt(self) -> bool:
        """Whether the file is meant for TensorRT."""
        return bool(self.tensorrt_versions)

    @property
    def quantization_steps(self) -> int:
        """The number of quantisation steps (scales) from the low to the high end of an activation's range."""
        return 254 if self.symmetric else 255

    @property
    def target(self) -> str:
        """What its file is made for, such as int8-trt; the file is named after it."""
        return f"int8-{self.name}"

    @property
    def file_name(self) -> str:
        """The file's name in export/."""
        return f"student.{self.target}.onnx"


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
    """Make the INT8 form of a float32 model.

    Args:
        source: the float32 model, opset 17.
        flavor: one of FLAVORS.
        ranges: candidate ranges of the activations of this model.
        method: which candidate to use, one of RANGE_METHODS.
        float_nodes: names of nodes left in float.
        only_nodes: if given, only the nodes of these names are quantised.

    Raises:
        EdgekdError: a tensor that this flavour quantises has no range.
    """
    model = read_model(source)
    properties = metadata(model)
    if flavor.fp16:
        model = at_opset(model, FP16_SCALE_OPSET)
    in_float = {*float_nodes, *_nodes_outside_weighted(model)}
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
    # Tells ONNX Runtime's quantiser that shapes are inferred; else it would write the model to a temporary file.
    model = with_shapes(model)
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    limits32 = {name: (np.float32(low), np.float32(high)) for name, (low, high) in limits.items()}
    for node in model.graph.node:
        if node.op_type in CLIPPING_OPS and node.input[0] not in limits32 and node.output[0] in limits32:
            limits32[node.input[0]] = limits32[node.output[0]]  # the quantiser merges both into one tensor
    quantizer = QDQQuantizer(
        model,
        True,
        False,
        QuantType.QInt8,
        QuantType.QUInt8 if flavor.unsigned_activations else QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, limits32),
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
        _quantize_one_residual_input(quantized, limits)
    return _cleaned(quantized, flavor, properties)


def quantize_to(
    source: Path | ModelProto,
    path: Path,
    flavor: Flavor,
    ranges: Ranges,
    method: str,
    *,
    float_nodes: Collection[str] = (),
) -> OnnxFile:
    """Write the INT8 form of a float32 model to `path`; arguments and errors are those of `quantize`."""
    return write_model(quantize(source, flavor, ranges, method, float_nodes=float_nodes), path)


def activation_limits(flavor: Flavor, ranges: Ranges, method: str) -> dict[str, tuple[float, float]]:
    """Compute the (low, high) to which this flavour clips each activation, by tensor name."""
    if not flavor.symmetric:
        return {name: (by_method[method].low, by_method[method].high) for name, by_method in ranges.tensors.items()}
    limits = {name: by_method[method].magnitude for name, by_method in ranges.tensors.items()}
    if flavor.fp16:
        limits = {name: 127 * float(_fp16_scale(np.array(limit / 127))) for name, limit in limits.items()}
    return {name: (-limit, limit) for name, limit in limits.items()}


def compute_nodes(source: Path | ModelProto) -> list[str]:
    """List the compute nodes (Conv, ConvTranspose, Gemm, MatMul with constant weights) by name, in graph order."""
    model = read_model(source)
    weights = initializers(model)
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED_OPS and n.input[1] in weights]


def depthwise_stem(model: ModelProto) -> tuple[str, ...]:
    """Name the first Conv and the depthwise Conv right behind it; empty if the network starts otherwise.

    Both read and write large maps but multiply little, so ONNX Runtime on x86 is slower for them in INT8 than in
    float. A network that starts otherwise gains nothing from float there (docs/export.md).
    """
    weights, consumers_of = initializers(model), consumers(model)
    first = next((n for n in model.graph.node if n.op_type in WEIGHTED_OPS), None)
    if first is None or first.op_type != "Conv" or first.input[1] not in weights:
        return ()
    tensor = first.output[0]
    while len(consumers_of[tensor]) == 1 and consumers_of[tensor][0].op_type in CLIPPING_OPS:
        tensor = consumers_of[tensor][0].output[0]
    second = consumers_of[tensor][0] if len(consumers_of[tensor]) == 1 else None
    if second is None or second.op_type != "Conv" or second.input[1] not in weights:
        return ()
    channels = weights[first.input[1]].dims[0]
    depthwise = attribute(second, "group", 1) == channels == weights[second.input[1]].dims[0]
    return (first.name, second.name) if depthwise and attribute(first, "group", 1) == 1 else ()


def _nodes_outside_weighted(model: ModelProto) -> list[str]:
    """Name the nodes before the first weighted node (normalisation) and behind the last (pooling of logits).

    A Relu or Clip that fuses with the last weighted node is not among them.
    """
    producer_of, consumers_of = producers(model), consumers(model)
    after_weighted: set[str] = set()  # tensors that depend on a weighted node
    before_weighted: set[str] = set()  # tensors that a weighted node depends on
    for node in model.graph.node:
        if node.op_type in WEIGHTED_OPS or after_weighted.intersection(node.input):
            after_weighted.update(node.output)
    for node in reversed(model.graph.node):
        if node.op_type in WEIGHTED_OPS or before_weighted.intersection(node.output):
            before_weighted.update(node.input)
    outside = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED_OPS:
            continue
        behind_last = not before_weighted.intersection(node.output)
        producer = producer_of.get(node.input[0]) if node.input else None
        fuses = (
            node.op_type in CLIPPING_OPS
            and producer is not None
            and producer.op_type in WEIGHTED_OPS
            and len(consumers_of[node.input[0]]) == 1
        )
        if not after_weighted.intersection(node.input) or (behind_last and not fuses):
            outside.append(node.name)
    return outside


def _feed_float_nodes(model: ModelProto) -> None:
    """Let weighted nodes left in float read the tensor before a Q/DQ pair instead of the rounded one behind it."""
    producer_of = producers(model)
    for node in model.graph.node:
        if node.op_type not in WEIGHTED_OPS or not _is_dequantized(node.input[0], producer_of):
            continue
        if not _is_dequantized(node.input[1], producer_of):
            node.input[0] = _before_qdq(node.input[0], producer_of)


def _quantize_one_residual_input(model: ModelProto, limits: Mapping[str, tuple[float, float]]) -> None:
    """Leave exactly one input of each residual Add quantised, the skip connection, so that Conv and Add fuse.

    The skip is the input with fewer weighted nodes before it.
    """
    producer_of = producers(model)
    depth = weighted_depth(model)
    dequantized_skips: dict[str, str] = {}
    for node in [node for node in model.graph.node if node.op_type == "Add"]:
        if not all(name in depth for name in node.input):
            continue
        quantized = [_is_dequantized(name, producer_of) for name in node.input]
        sources = [
            _before_qdq(name, producer_of) if _is_dequantized(name, producer_of) else name for name in node.input
        ]
        fusible = [_is_quantized_conv(name, producer_of) for name in sources]
        deeper = 0 if depth[node.input[0]] > depth[node.input[1]] else 1
        skip = sources[1 - deeper]
        misplaced = quantized[deeper] and fusible[deeper] and depth[sources[deeper]] > depth[skip]
        if all(quantized) or misplaced:
            node.input[deeper] = sources[deeper]
        if not quantized[1 - deeper] and (misplaced or (any(fusible) and not any(quantized))):
            if skip not in dequantized_skips:  # a skip may feed several Adds
                dequantized_skips[skip] = _add_qdq_pair(model, skip, limits[skip][1] / 127)
            node.input[1 - deeper] = dequantized_skips[skip]


def _is_quantized_conv(tensor: str, producer_of: Mapping[str, NodeProto]) -> bool:
    producer = producer_of.get(tensor)
    return producer is not None and producer.op_type in WEIGHTED_OPS and _is_dequantized(producer.input[0], producer_of)


def _is_dequantized(tensor: str, producer_of: Mapping[str, NodeProto]) -> bool:
    return tensor in producer_of and producer_of[tensor].op_type == "DequantizeLinear"


def _before_qdq(tensor: str, producer_of: Mapping[str, NodeProto]) -> str:
    """Name the float tensor that enters the Q/DQ pair whose output is `tensor`."""
    return str(producer_of[producer_of[tensor].input[0]].input[0])


def _add_qdq_pair(model: ModelProto, tensor: str, scale: float) -> str:
    """Add a symmetric int8 Q/DQ pair on `tensor` and return the name of its output."""
    suffixes = ("scale", "zero_point", "QuantizeLinear_Output", "DequantizeLinear_Output")
    scale_name, zero_point_name, quantized, dequantized = (f"{tensor}_{suffix}" for suffix in suffixes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale or 1.0, dtype=np.float32), scale_name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.int8), zero_point_name))
    qdq_pair = (("QuantizeLinear", tensor, quantized), ("DequantizeLinear", quantized, dequantized))
    for op, source, target in qdq_pair:
        model.graph.node.append(make_node(op, [source, scale_name, zero_point_name], [target], f"{tensor}_{op}"))
    return dequantized


def _fp16_weight_scales(model: ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Compute weight scales that are exact in float16, per output channel, as ONNX Runtime's TensorQuantOverrides."""
    weights = initializers(model)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED_OPS or node.input[1] not in weights:
            continue
        values = numpy_helper.to_array(weights[node.input[1]])
        axis = weight_axis(node, values.ndim)
        other_axes = tuple(index for index in range(values.ndim) if index != axis)
        scales = _fp16_scale(np.abs(values).max(axis=other_axes) / 127)
        overrides[node.input[1]] = [
            {"quant_type": QuantType.QInt8, "scale": float(scale), "zero_point": 0, "axis": axis} for scale in scales
        ]
    return overrides


def _fp16_scale(scale: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Round scales to normal float16 numbers, since TensorRT is imprecise with subnormal ones."""
    rounded: NDArray[np.float16] = np.maximum(scale, SMALLEST_NORMAL).astype(np.float16)
    return rounded.astype(np.float32)


def _cleaned(model: ModelProto, flavor: Flavor, properties: Mapping[str, str]) -> ModelProto:
    """Finish the quantised model: one operator set, nodes in order, float16 if the flavour asks, the old metadata."""
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
