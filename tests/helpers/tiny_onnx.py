"""Tiny ONNX models, built node by node, for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dimension = str | int


def conv_net(
    path: Path,
    width: int = 4,
    depth: int = 1,
    shape: tuple[Dimension, ...] = ("N", 3, 8, 8),
    element: int = TensorProto.FLOAT,
    scale: float = 1.0,
    output: int = TensorProto.FLOAT,
    flat: bool = True,
) -> Path:
    """Save `depth` convolutions of `width` channels and global pooling: [N, 3, H, W] to [N, width]."""
    rng = np.random.default_rng(width)
    nodes, weights, tensor, channels = [], [], "input", 3
    if element != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT))
        tensor = "float"
    for layer in range(depth):
        kernel = rng.standard_normal((width, channels, 3, 3)).astype(np.float32) / channels * np.float32(scale)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [tensor, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        tensor, channels = f"c{layer}", width
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pooled"]),
        helper.make_node("Flatten" if flat else "Identity", ["pooled"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["logits"], to=output),
    ]
    inputs = [helper.make_tensor_value_info("input", element, list(shape))]
    size = [shape[0], width] if flat else [shape[0], width, 1, 1]
    outputs = [helper.make_tensor_value_info("logits", output, size)]
    return save(path, nodes, inputs, outputs, weights)


def qlinear_net(path: Path) -> Path:
    """Save one integer and one float convolution: half of the compute nodes are integers."""
    rng = np.random.default_rng(0)
    tensors = {
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "w_scale": np.float32(0.02),
        "w_zero": np.int8(0),
        "w_int": rng.integers(-100, 100, (4, 3, 3, 3)).astype(np.int8),
        "w_float": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("QLinearConv", ["q", "scale", "zero", "w_int", "w_scale", "w_zero", "scale", "zero"], ["qc"]),
        helper.make_node("DequantizeLinear", ["qc", "scale", "zero"], ["c"]),
        helper.make_node("Conv", ["c", "w_float"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    return save(path, nodes, inputs, outputs, weights)


def gemm_net(path: Path, features: int) -> Path:
    """Save one matrix product whose weights take 4·features² bytes: [N, features] to [N, features]."""
    weight = numpy_helper.from_array(np.ones((features, features), np.float32), "w")
    nodes = [helper.make_node("Gemm", ["input", "w"], ["logits"])]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", features])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", features])]
    return save(path, nodes, inputs, outputs, [weight])


def two_input_net(path: Path) -> Path:
    """Save the sum of two inputs."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("a", "b", "logits")]
    return save(path, [helper.make_node("Add", ["a", "b"], ["logits"])], values[:2], values[2:], [])


def sequence_net(path: Path) -> Path:
    """Save a network that answers with a sequence: of [N, 3, 8, 8] twice the same."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])
    answer = helper.make_tensor_sequence_value_info("answer", TensorProto.FLOAT, None)
    return save(path, [helper.make_node("SequenceConstruct", ["input", "input"], ["answer"])], [image], [answer], [])


def map_net(path: Path) -> Path:
    """Save a network that answers with a map of classes to scores, as classifiers of scikit-learn do."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])
    answer = onnx.ValueInfoProto(name="answer")
    kind = answer.type.sequence_type.elem_type.map_type
    kind.key_type, kind.value_type.tensor_type.elem_type = TensorProto.INT64, TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
        helper.make_node("ZipMap", ["scores"], ["answer"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    return save(path, nodes, [image], [answer], [])


def one_number_net(path: Path) -> Path:
    """Save a network that answers with the mean of all images: no row for each."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [])
    return save(path, [helper.make_node("ReduceMean", ["input"], ["answer"], keepdims=0)], [image], [answer], [])


def transposed_net(path: Path) -> Path:
    """Save a network that answers with a column for each image: [N, 3, 8, 8] to [3, N]."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [3, "N"])
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["answer"], perm=[1, 0]),
    ]
    return save(path, nodes, [image], [answer], [])


def nan_net(path: Path) -> Path:
    """Save a network that answers with the logarithm of what may be negative."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N", 192])
    nodes = [helper.make_node("Log", ["input"], ["logs"]), helper.make_node("Flatten", ["logs"], ["answer"])]
    return save(path, nodes, [image], [answer], [])


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[TensorProto],
) -> Path:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def endless_net(path: Path) -> Path:
    """Save a classifier whose Loop never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["cond"], ["again"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["", "true", "input"], ["same"], body=body),
            helper.make_node("GlobalAveragePool", ["same"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["logits"]),
        ],
        "endless",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array(True), "true")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
