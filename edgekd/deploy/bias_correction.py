"""Undo the mean error that quantisation adds to each layer's output, by moving its bias.

Empirical bias correction of "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv 1906.04721, section 4.2), with each layer's own error: every layer sees the float32 activations,
so that no layer is corrected for what an earlier one is corrected for already. One pass over the samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_empty_tensor_value_info, make_node

from edgekd.deploy.graph import constants, producers, read_model, weight_axis
from edgekd.deploy.int8 import HeldOut, Plan, Remedy
from edgekd.deploy.ort_session import open_session
from edgekd.deploy.ranges import Batches

_CORRECTED_OPS = ("Conv", "Gemm")
_ROWS = 32


def correct_bias(plan: Plan, held_out: HeldOut, batches: Batches) -> Remedy:
    """Return the plan with corrected biases, measured on `batches` of calibration samples."""
    quantised = plan.build()
    errors = mean_output_errors(plan.source, quantised, batches)
    corrected = replace(plan, bias_shifts=errors)
    before = held_out.measure(quantised, plan.flavour)
    after = held_out.measure(corrected.build(), plan.flavour)
    largest = {name: float(np.abs(error).max()) for name, error in errors.items()}
    improved = after.loss < before.loss and after.agreement.share >= before.agreement.share
    kept = corrected if improved else plan
    return Remedy("bias correction", kept, before, after, improved, {"largest_shift": largest})


def mean_output_errors(
    source: Path | ModelProto, quantised: Path | ModelProto, batches: Batches
) -> dict[str, NDArray[np.float64]]:
    """Return, for each quantised Conv and Gemm, float minus INT8 output: its mean per output channel.

    Both see the activations of the float32 model `source`; `quantised` has the same node names.
    """
    model = read_model(source)
    names = _add_quantised_twins(model, read_model(quantised))
    session = open_session(model, as_written=True)
    outputs = [f"{name}_mean_error" for name in names]
    sums: dict[str, NDArray[np.float64]] = {}
    samples = 0
    for batch in batches():
        for start in range(0, len(batch), _ROWS):
            part = batch[start : start + _ROWS]
            samples += len(part)
            means = session.run(outputs, {session.get_inputs()[0].name: part})
            for name, mean in zip(names, means, strict=True):
                sums[name] = sums.get(name, 0.0) + np.asarray(mean, dtype=np.float64) * len(part)
    return {name: total / samples for name, total in sums.items()}


def _add_quantised_twins(model: ModelProto, quantised: ModelProto) -> list[str]:
    """Put a quantised twin beside each quantised node and give out the mean difference; return the names."""
    originals = {node.name: node for node in model.graph.node}
    makers, values = producers(quantised), constants(quantised)
    names = []
    for node in quantised.graph.node:
        if node.op_type not in _CORRECTED_OPS or node.name not in originals:
            continue
        sources = [makers.get(name) for name in node.input[:2]]
        pair = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
        if len(pair) == 2 and pair[1].input[0] in values:
            _add_twin(model, originals[node.name], pair[0], _dequantised_weight(node, pair[1], values), values)
            names.append(node.name)
    return names


def _dequantised_weight(
    node: NodeProto, dequantiser: NodeProto, values: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    integers, scale = (values[name] for name in dequantiser.input[:2])
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[weight_axis(node, integers.ndim)] = scale.size
    return integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)


def _add_twin(
    model: ModelProto,
    node: NodeProto,
    dequantiser: NodeProto,
    weight: NDArray[np.float32],
    values: dict[str, NDArray[Any]],
) -> None:
    name = node.name
    scale, zero_point = (values[part] for part in dequantiser.input[1:3])
    parts = {"scale": scale.astype(np.float32), "zero_point": zero_point, "weight": weight}
    for part, value in parts.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}_twin_{part}"))
    affine = [f"{name}_twin_scale", f"{name}_twin_zero_point"]
    twin = make_node(node.op_type, [f"{name}_twin_x", f"{name}_twin_weight", *node.input[2:]], [f"{name}_twin"])
    twin.attribute.extend(node.attribute)
    axes = [0, 2, 3] if node.op_type == "Conv" else [0]
    model.graph.node.extend(
        (
            make_node("QuantizeLinear", [node.input[0], *affine], [f"{name}_twin_q"]),
            make_node("DequantizeLinear", [f"{name}_twin_q", *affine], [f"{name}_twin_x"]),
            twin,
            make_node("Sub", [node.output[0], f"{name}_twin"], [f"{name}_error"]),
            make_node("ReduceMean", [f"{name}_error"], [f"{name}_mean_error"], axes=axes, keepdims=0),
        )
    )
    model.graph.output.append(make_empty_tensor_value_info(f"{name}_mean_error"))
