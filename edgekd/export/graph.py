"""Read, inspect and write ONNX models: the ground the passes and the quantiser stand on."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgekd.errors import InputFileError
from edgekd.text import first_line

WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file as written: its path, hash, size in bytes and opset."""

    path: Path
    sha256: str
    size_bytes: int
    opset: int


def read_model(source: Path | ModelProto) -> ModelProto:
    """Return a private copy of a model, from a file or from memory.

    Raises InputFileError if the file is missing or is no ONNX model.
    """
    if isinstance(source, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(source)
        return copy
    try:
        model = onnx.load(str(source))
        onnx.checker.check_model(model)
    except OSError as error:
        raise InputFileError(f"{source}: cannot be read ({error.strerror}); check the path.") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InputFileError(f"{source}: not a valid ONNX model ({first_line(error, 1000)}).") from error
    assert isinstance(model, ModelProto)
    return model


def write_model(model: ModelProto, path: Path) -> OnnxFile:
    """Check `model` in full and write it as one file with deterministic bytes.

    Raises onnx.checker.ValidationError or onnx.shape_inference.InferenceError on an invalid graph.
    """
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return OnnxFile(path, hashlib.sha256(data).hexdigest(), len(data), opset(model))


def opset(model: ModelProto) -> int:
    """Return the version of the standard operator set that the model imports."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def set_metadata(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace the model's metadata properties, in the order of their keys."""
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def metadata(source: Path | ModelProto) -> dict[str, str]:
    """Return the metadata properties of a model."""
    return {entry.key: entry.value for entry in read_model(source).metadata_props}


def properties_of_file(path: Path) -> dict[str, str]:
    """Return the metadata properties of an ONNX file that may be valid or not; none where it cannot be read."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError):
        return {}
    return {entry.key: entry.value for entry in model.metadata_props}


def initializers(model: ModelProto) -> dict[str, TensorProto]:
    """Return the constants of the graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def constants(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    """Return the value of every initializer and Constant node by tensor name."""
    values = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model).items()}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    values[node.output[0]] = numpy_helper.to_array(attribute.t)
                elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                    values[node.output[0]] = np.asarray(onnx.helper.get_attribute_value(attribute))
    return values


def clip_bounds(model: ModelProto) -> dict[str, tuple[float, float]]:
    """Return the constant (low, high) of each Clip's output; a bound that is not given is infinite."""
    values = constants(model)
    bounds = {}
    for node in model.graph.node:
        if node.op_type == "Clip":
            given = [*node.input[1:], "", ""][:2]
            low, high = (
                float(values[name]) if name in values else sign * math.inf
                for name, sign in zip(given, (-1, 1), strict=True)
            )
            bounds[node.output[0]] = (low, high)
    return bounds


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor, in graph order; absent where nobody does."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                readers[name].append(node)
    return dict(readers)


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def weight_axis(node: NodeProto, rank: int) -> int:
    """Return the axis of the output channels in the weight of a Conv, ConvTranspose, Gemm or MatMul."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}[node.op_type]


def weighted_depth(model: ModelProto) -> dict[str, int]:
    """Return the largest number of Conv, Gemm and the like on the way from an input to each tensor but constants."""
    depth = {info.name: 0 for info in model.graph.input}
    copy = read_model(model)
    sort_topologically(copy)
    for node in copy.graph.node:
        deepest = max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, deepest + (node.op_type in WEIGHTED_OPS)))
    return depth


def shapes(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every tensor whose rank is known; None stands for a dynamic dimension."""
    sizes: dict[str, tuple[int | None, ...]] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for info in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if info.type.tensor_type.HasField("shape"):
            sizes[info.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in info.type.tensor_type.shape.dim
            )
    return sizes


def element_types(model: ModelProto) -> dict[str, int]:
    """Return the TensorProto element type of every tensor that has one on record."""
    types = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    for info in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        types[info.name] = int(info.type.tensor_type.elem_type)
    return types


def with_shapes(model: ModelProto, *, strict: bool = True) -> ModelProto:
    """Return the model with shapes inferred afresh; an operator that does not allow it is an error if strict."""
    bare = read_model(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=strict, data_prop=True)
    assert isinstance(inferred, ModelProto)
    return inferred


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Give the graph these nodes instead of its own, and drop constants that none of them reads."""
    remaining = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(remaining)
    read = {name for node in remaining for name in node.input} | {info.name for info in model.graph.output}
    used = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)


def with_moved_biases(source: Path | ModelProto, shifts: Mapping[str, NDArray[np.float64]]) -> ModelProto:
    """Return the model with `shifts`, per output channel, added to the biases of the named nodes."""
    model = read_model(source)
    weights = initializers(model)
    for node in model.graph.node:
        if node.name not in shifts:
            continue
        bias = numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 else np.float32(0)
        moved = numpy_helper.from_array((bias + shifts[node.name]).astype(np.float32), f"{node.name}_moved_bias")
        model.graph.initializer.append(moved)
        inputs = [*node.input[:2], moved.name]
        del node.input[:]
        node.input.extend(inputs)
    replace_nodes(model, model.graph.node)
    return model


def sort_topologically(model: ModelProto) -> None:
    """Order the nodes so that each follows its inputs, otherwise keeping their order."""
    ready = {info.name for info in model.graph.input} | set(initializers(model)) | {""}
    waiting = list(model.graph.node)
    ordered: list[NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if ready.issuperset(node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"the graph has a cycle or an undefined tensor at node {later[0].name!r}")
        waiting = later
    replace_nodes(model, ordered)


def strip_traces(model: ModelProto) -> None:
    """Remove documentation, stack traces and exporter notes: nothing in the file tells of this machine."""
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.quantization_annotation[:]
    graph = model.graph
    for entry in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.doc_string = ""
        del entry.metadata_props[:]
