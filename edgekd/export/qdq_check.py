"""State TensorRT's rules for explicit INT8 and check an ONNX file against them, without TensorRT.

What its parser refuses or misreads is taken from the sources of onnx-tensorrt (8.6, 10.1) and NVIDIA's
tables of opsets; where Q/DQ pairs belong, from NVIDIA's advice on their placement. Weights may be int8 behind a
DequantizeLinear alone: NVIDIA documents that for TensorRT 11, for 8.6 and 10.3 it is assumed. Nothing here has been
confirmed by a TensorRT run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from edgekd.export.fp16 import SMALLEST_NORMAL
from edgekd.export.graph import (
    WEIGHTED_OPS,
    attribute,
    constants,
    consumers,
    element_types,
    opset,
    producers,
    read_model,
    shapes,
    weight_axis,
    weighted_depth,
    with_shapes,
)

_FUSED = {
    "BatchNormalization",
    "Relu",
    "Clip",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Softplus",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Tanh",
    "Gelu",
    "Erf",
}
"""What fuses with the Conv before it: its BatchNorm and activation functions."""
_ARITHMETIC = {"Add", "Sub", "Mul", "Div"}
_VALUE_BY_VALUE = {*_FUSED, *_ARITHMETIC, "Pow", "QuantizeLinear", "DequantizeLinear", "Cast"}


@dataclass(frozen=True)
class TensorRTRules:
    """What differs between the versions of TensorRT's ONNX parser."""

    opsets: tuple[int, int]
    fp16_scales: bool
    zero_point_required: bool
    ignores_axes_input: bool  # ReduceMean averages over all axes when they come as an input
    strongly_typed: bool  # a float32 tensor is computed in float32, whatever the hardware prefers


VERSIONS: Mapping[str, TensorRTRules] = {
    "8.6": TensorRTRules((7, 17), False, True, True, False),
    "10.3": TensorRTRules((9, 20), True, False, False, False),
    "11": TensorRTRules((9, 20), True, False, False, True),  # opsets assumed: those of 10.3, its own table is unread
}


@dataclass(frozen=True)
class Violation:
    """A rule that a node breaks, and how."""

    rule: str
    node: str
    message: str


def check(source: Path | ModelProto, version: str) -> list[Violation]:
    """Return every violation of the rules of TensorRT `version`, a key of VERSIONS, in graph order by rule."""
    view = _View(with_shapes(read_model(source), strict=False), VERSIONS[version])
    return [Violation(rule, node, message) for rule, find in RULES.items() for node, message in find(view)]


class _View:
    """The graph with the look-ups that the rules share."""

    def __init__(self, model: ModelProto, rules: TensorRTRules) -> None:
        self.rules, self.model = rules, model
        self.opset = opset(model)
        self.nodes = list(model.graph.node)
        self.constants, self.shapes, self.types = constants(model), shapes(model), element_types(model)
        self.makers, self.readers = producers(model), consumers(model)
        self.depth = weighted_depth(model)
        self.pairs = [node for node in self.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]

    def maker(self, tensor: str) -> str:
        """Return the type of the node that makes a tensor, or an empty string."""
        return self.makers[tensor].op_type if tensor in self.makers else ""

    def is_constant(self, tensor: str) -> bool:
        """Return whether a tensor is a constant, possibly behind Q and DQ."""
        while self.maker(tensor) in ("QuantizeLinear", "DequantizeLinear"):
            tensor = self.makers[tensor].input[0]
        return tensor in self.constants

    def dequantized(self, tensor: str) -> bool:
        """Return whether a tensor comes out of a DequantizeLinear."""
        return self.maker(tensor) == "DequantizeLinear"

    def quantized_source(self, tensor: str) -> str:
        """Return the float tensor in front of the Q/DQ pair that makes `tensor`, or an empty string."""
        if not self.dequantized(tensor):
            return ""
        quantized = self.makers[tensor].input[0]
        return self.makers[quantized].input[0] if self.maker(quantized) == "QuantizeLinear" else ""

    def activates(self, node: NodeProto, name: str, source: str) -> bool:
        """Return whether a node that reads `source` as its input `name` is part of the activation function of it.

        SiLU, HardSwish and GELU are written as products of a tensor and what is computed of it, value by value.
        """
        if node.op_type in _FUSED:
            return bool(name == node.input[0])
        others = [other for other in node.input if other != name]
        return node.op_type in _ARITHMETIC and all(self._computed_from(source, other) for other in others)

    def _computed_from(self, source: str, tensor: str) -> bool:
        """Whether a tensor depends on nothing but `source`, value by value, and constants."""
        if tensor == source or self.is_constant(tensor):
            return True
        inputs = list(self.makers[tensor].input) if self.maker(tensor) in _VALUE_BY_VALUE else []
        return bool(inputs) and all(self._computed_from(source, name) for name in inputs if name)


Violations = Iterator[tuple[str, str]]


def _opset(view: _View) -> Violations:
    low, high = view.rules.opsets
    if not low <= view.opset <= high:
        yield "", f"opset {view.opset} is outside {low}…{high}"


def _domain(view: _View) -> Violations:
    for entry in view.model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            yield "", f"imports the foreign operator set {entry.domain!r}"
    for node in view.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield node.name, f"{node.op_type} belongs to the foreign operator set {node.domain!r}"


def _operator(view: _View) -> Violations:
    refused = {"QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
    for node in view.nodes:
        if node.op_type in refused:
            yield node.name, f"{node.op_type} is not supported; TensorRT reads Q/DQ pairs around float operators"


def _reduce_mean(view: _View) -> Violations:
    for node in view.nodes:
        if view.rules.ignores_axes_input and node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1]:
            yield node.name, "takes its axes as an input, which this version ignores: it averages over all axes"


def _scale(view: _View) -> Violations:
    for node in view.pairs:
        scale: NDArray[Any] | None = view.constants.get(node.input[1])
        if scale is None:
            yield node.name, "its scale is not a constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node.name, "its scales are not all positive and finite"


def _fp16_scale(view: _View) -> Violations:
    for node in view.pairs:
        scale = view.constants.get(node.input[1])
        if scale is None or scale.dtype != np.float16:
            continue
        if not view.rules.fp16_scales:
            yield node.name, "its scale is float16, which this version reads as float32"
        if view.opset < 19:
            yield node.name, f"its scale is float16, which opset {view.opset} does not allow (19 does)"
        if (np.abs(scale) < SMALLEST_NORMAL).any():
            yield node.name, f"its scale has float16 values below {SMALLEST_NORMAL:.3g}, which are subnormal"


def _zero_point(view: _View) -> Violations:
    for node in view.pairs:
        given = node.input[2] if len(node.input) > 2 else ""
        if not given:
            if view.rules.zero_point_required:
                yield node.name, "has no zero point, which this version requires"
            continue
        zero_point = view.constants.get(given)
        if zero_point is None:
            yield node.name, "its zero point is not a constant"
        elif zero_point.astype(np.int64).any():
            yield node.name, "its zero point is not 0; TensorRT quantises symmetrically"
        elif zero_point.size != np.size(view.constants.get(node.input[1], zero_point)):
            yield node.name, "its zero point and its scale differ in size"


def _int8(view: _View) -> Violations:
    for node in view.pairs:
        kind = view.types.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])
        if kind == TensorProto.INT8 or (kind == TensorProto.INT32 and node.op_type == "DequantizeLinear"):
            continue
        yield node.name, f"quantises to {TensorProto.DataType.Name(kind or 0).lower()} instead of int8"


def _bias(view: _View) -> Violations:
    for node in view.nodes:
        if node.op_type in WEIGHTED_OPS and len(node.input) > 2 and view.dequantized(node.input[2]):
            yield node.name, "its bias is quantised; TensorRT wants float biases"
    for node in view.pairs:
        if view.types.get(node.input[0]) == TensorProto.INT32:
            yield node.name, "dequantises int32, which TensorRT does not read"


def _per_channel(view: _View) -> Violations:
    for node in view.pairs:
        scale: NDArray[Any] | None = view.constants.get(node.input[1])
        if scale is None or scale.size == 1:
            continue
        if not view.is_constant(node.input[0]):
            yield node.name, "quantises an activation per channel; only weights may be"
            continue
        shape = view.shapes.get(node.input[0], ())
        axis = attribute(node, "axis", 1) % max(len(shape), 1)
        if not shape or shape[axis] != scale.size:
            yield node.name, f"has {scale.size} scales, but the weight's axis {axis} has another size"
        for reader in view.readers.get(node.output[0], []):
            if reader.op_type in WEIGHTED_OPS and axis != weight_axis(reader, len(shape)):
                yield node.name, f"its scales lie along axis {axis} instead of {weight_axis(reader, len(shape))}"


def _half_quantized(view: _View) -> Violations:
    for node in view.nodes:
        if node.op_type in WEIGHTED_OPS and view.dequantized(node.input[0]) != view.dequantized(node.input[1]):
            missing = "weight" if view.dequantized(node.input[0]) else "input"
            yield node.name, f"its {missing} is not quantised, so that it runs in float behind a conversion"


def _activation_fusion(view: _View) -> Violations:
    for node in view.nodes:
        for name in node.input:
            source = view.quantized_source(name)
            if view.maker(source) in WEIGHTED_OPS and view.activates(node, name, source):
                maker = view.makers[source]
                yield node.name, f"a Q/DQ pair separates it from {maker.op_type} {maker.name}, so that they cannot fuse"


def _residual_add(view: _View) -> Violations:
    for node in view.nodes:
        if node.op_type != "Add" or any(view.is_constant(name) for name in node.input):
            continue
        sides = [view.dequantized(name) for name in node.input]
        sources = [view.quantized_source(name) or name for name in node.input]
        fusible = [
            view.maker(source) in WEIGHTED_OPS and view.dequantized(view.makers[source].input[0]) for source in sources
        ]
        depths = [view.depth.get(name, 0) for name in sources]
        if all(sides):
            yield node.name, "both of its inputs are quantised, so that it cannot fuse with the Conv before it"
        elif not any(sides):
            if any(fusible):
                yield node.name, "its skip input is not quantised, so that the quantised Conv before it ends in float"
        elif fusible[sides.index(True)] and depths[sides.index(True)] > depths[sides.index(False)]:
            yield node.name, "quantised is the Conv before it instead of its skip input, so that they cannot fuse"


def _float32_rest(view: _View) -> Violations:
    if not (view.rules.strongly_typed and view.pairs):
        return
    for node in view.nodes:
        if node.op_type in (*WEIGHTED_OPS, "Add", "Mul") and view.types.get(node.output[0]) == TensorProto.FLOAT:
            yield node.name, "computes in float32; networks are strongly typed here and want float16 around INT8"


RULES: Mapping[str, Callable[[_View], Violations]] = {
    "opset": _opset,
    "domain": _domain,
    "operator": _operator,
    "reduce-mean": _reduce_mean,
    "scale": _scale,
    "fp16-scale": _fp16_scale,
    "zero-point": _zero_point,
    "int8": _int8,
    "bias": _bias,
    "per-channel": _per_channel,
    "half-quantised": _half_quantized,
    "activation-fusion": _activation_fusion,
    "residual-add": _residual_add,
    "float32-rest": _float32_rest,
}
