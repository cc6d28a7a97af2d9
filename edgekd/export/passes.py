"""Graph rewrites that make an exported classifier readable by every runtime from TensorRT 8.5 on.

PyTorch's exporter speaks opset 18 and later. There ReduceMean takes its axes as an input, which TensorRT 8
ignores without a word, and Split takes `num_outputs`, which no converter brings down. Both go away here, so
that the standard converter reaches opset 17. Operators that it does not know how to lower although their
meaning stays the same are carried across.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node

from edgekd.export.graph import attribute, constants, consumers, opset, read_model, replace_nodes, shapes, with_shapes

_GROWN_OPS = ("Cast", "Pad", "Reshape")


def pool_spatial_means(model: ModelProto) -> ModelProto:
    """Replace every mean over height and width by GlobalAveragePool, with Flatten where they are dropped."""
    model = with_shapes(model)
    values, sizes = constants(model), shapes(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(sizes.get(node.input[0], ())) != 4:
            nodes.append(node)
            continue
        axes = [axis for entry in node.attribute if entry.name == "axes" for axis in entry.ints]
        if len(node.input) > 1:
            axes = values[node.input[1]].reshape(-1).tolist() if node.input[1] in values else []
        if {int(axis) % 4 for axis in axes} != {2, 3}:
            nodes.append(node)
        elif attribute(node, "keepdims", 1):
            nodes.append(make_node("GlobalAveragePool", node.input[:1], node.output, node.name))
        else:
            pooled = node.output[0] + "_pooled"
            nodes.append(make_node("GlobalAveragePool", node.input[:1], [pooled], node.name))
            nodes.append(make_node("Flatten", [pooled], node.output, node.name + "_flatten", axis=1))
    replace_nodes(model, nodes)
    return model


def fix_reshapes(model: ModelProto) -> ModelProto:
    """Replace every Reshape to (batch, the rest) by Flatten, and give others a constant shape.

    Some exporters compute target shapes from the batch size; what computed them goes away.
    """
    model = with_shapes(model)
    sizes = shapes(model)
    nodes: list[NodeProto] = []
    for index, node in enumerate(model.graph.node):
        source, target = (sizes.get(name, ()) for name in (node.input[0], node.output[0]))
        if node.op_type != "Reshape" or not _keeps_batch(source, target):
            nodes.append(node)
        elif len(target) == 2:
            nodes.append(make_node("Flatten", node.input[:1], node.output, node.name, axis=1))
        else:
            name = f"reshape_{index}_shape"
            rest = [size for size in target if size is not None]
            model.graph.initializer.append(numpy_helper.from_array(np.array([-1, *rest], dtype=np.int64), name))
            nodes.append(make_node("Reshape", [node.input[0], name], node.output, node.name))
    replace_nodes(model, _living(model, nodes))
    return model


def _keeps_batch(source: tuple[int | None, ...], target: tuple[int | None, ...]) -> bool:
    """Whether only the first dimension is dynamic, before and after, and stays what it is."""
    if source[:1] != (None,) or target[:1] != (None,):
        return False
    sizes = [[size for size in shape[1:] if size is not None] for shape in (source, target)]
    complete = len(sizes[0]) == len(source) - 1 and len(sizes[1]) == len(target) - 1
    return complete and math.prod(sizes[0]) == math.prod(sizes[1])


def _living(model: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes that the model's outputs depend on, in their order."""
    needed = {info.name for info in model.graph.output}
    living = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            living.append(node)
    return living[::-1]


def slice_splits(model: ModelProto) -> ModelProto:
    """Replace every Split into equal parts (`num_outputs`) by one Slice per part that is read."""
    model = with_shapes(model)
    sizes, readers = shapes(model), consumers(model)
    outputs = {info.name for info in model.graph.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        parts = attribute(node, "num_outputs", 0) if node.op_type == "Split" else 0
        source = sizes.get(node.input[0], ()) if parts else ()
        axis = attribute(node, "axis", 0) % len(source) if source else 0
        size = source[axis] if source else None
        if size is None:
            nodes.append(node)
            continue
        step = -(-size // parts)
        for index, name in enumerate(node.output):
            if name not in readers and name not in outputs:
                continue
            names = [f"{name}_{part}" for part in ("start", "end", "axis")]
            bounds = (index * step, min((index + 1) * step, size), axis)
            for constant, value in zip(names, bounds, strict=True):
                model.graph.initializer.append(numpy_helper.from_array(np.array([value]), constant))
            nodes.append(make_node("Slice", [node.input[0], *names], [name], f"{node.name}_{index}"))
    replace_nodes(model, nodes)
    return model


def at_opset(model: ModelProto, version: int) -> ModelProto:
    """Convert to an operator set and prove that it was reached; only the standard domain stays imported.

    Raises ValueError where the converter fails or silently stays at another version.
    """
    model = read_model(model)
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if foreign or model.functions:
        raise ValueError(f"operators outside the ONNX standard: {', '.join(foreign) or 'local functions'}")
    standard = opset(model)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=standard)
    if standard != version:
        carried = _hide(model, version)
        try:
            model = onnx.version_converter.convert_version(model, version)
        except RuntimeError as error:
            raise ValueError(f"cannot be expressed in opset {version}: {str(error).strip()}") from error
        for node in model.graph.node:
            if node.name in carried:
                node.domain = ""
        del model.opset_import[1:]
        model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
    if opset(model) != version:
        raise ValueError(f"the converter left opset {opset(model)} where {version} was asked for")
    try:
        return with_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"the converter to opset {version} broke the graph: {str(error).strip()}") from error


def _hide(model: ModelProto, version: int) -> set[str]:
    """Move nodes that mean the same at both opsets out of the converter's sight; return their names.

    These operators only gained types, attributes or inputs; a node is hidden if it uses none of the latter.
    """
    hidden = set()
    for index, node in enumerate(model.graph.node):
        if node.op_type not in _GROWN_OPS or any(entry.s == b"wrap" for entry in node.attribute):
            continue
        schema = onnx.defs.get_schema(node.op_type, version)
        if len(node.input) <= schema.max_input and {entry.name for entry in node.attribute} <= set(schema.attributes):
            node.name = node.name or f"carried_{index}"
            node.domain = "carried"
            hidden.add(node.name)
    if hidden:
        model.opset_import.add(domain="carried", version=1)
    return hidden
