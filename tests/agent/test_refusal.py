"""What a runtime raises of a file arrives as its reason alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekd.agent.refusal import refusal_by_runtime, runtime_reason
from edgekd.agent.runners import ort

_WEIGHT = np.zeros((7, 10, 3, 3), np.float32)
_CASES = {
    "domain": (helper.make_node("Foo", ["input"], ["out"], domain="a.b"), 9, None, "a.b:Foo(-1) is not a registered"),
    "operator": (helper.make_node("Foo", ["input"], ["out"]), 9, None, "Error No Op registered for Foo"),
    "version": (helper.make_node("Relu", ["input"], ["out"]), 99, None, "Unsupported model IR version: 99, max"),
    "source": (helper.make_node("Relu", ["other"], ["out"]), 9, None, "Invalid model. Node input 'other' is not"),
    "reshape": (
        helper.make_node("Reshape", ["input", "w"], ["out"]),
        9,
        np.array([1, 10]),
        "Reshape: The input tensor cannot be reshaped to the requested shape. Input shape:{1,3,8,8}, requested",
    ),
    "named": (
        helper.make_node("Gather", ["input", "w"], ["out"], name="/head/pick"),
        9,
        np.array([100]),
        "Gather (/head/pick): indices element out of data bounds, idx=100",
    ),
    "channels": (helper.make_node("Conv", ["input", "w"], ["out"]), 9, _WEIGHT, "Input channels C is not equal to"),
}


def _raised_of(path: Path, node: NodeProto, ir_version: int, weight: np.ndarray | None) -> BaseException:
    """What ONNX Runtime raises of a file with one node."""
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])
    answer = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    weights = [] if weight is None else [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "graph", [image], [answer], weights)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("a.b", 1))]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = ir_version
    onnx.save(model, str(path))
    with pytest.raises(ort.runtime_errors(onnxruntime)) as caught:
        _run(path)
    return caught.value


def _run(path: Path, batch: int = 1) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options)
    session.run(None, {"input": np.zeros((batch, 3, 8, 8), np.float32)})


@pytest.mark.parametrize("case", sorted(_CASES))
def test_no_codes_paths_or_sources_of_onnx_runtime_are_shown(tmp_path: Path, case: str) -> None:
    *network, expected = _CASES[case]
    error = _raised_of(tmp_path / "my model.onnx", *network)
    assert "[ONNXRuntimeError]" in str(error)
    reason = runtime_reason(error)
    assert expected in reason
    assert not {text for text in ("ONNXRuntimeError", "my model", "onnxruntime", ".cc:", ".h:", "::") if text in reason}


def test_every_line_of_a_reason_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    _raised_of(path, helper.make_node("Relu", ["other"], ["out"]), 9, None)
    model = onnx.load(str(path))
    model.graph.node[0].input[0] = "input"
    onnx.save(model, str(path))
    with pytest.raises(ort.runtime_errors(onnxruntime)) as caught:
        _run(path, batch=2)
    refused = refusal_by_runtime("net.onnx cannot be run", caught.value)
    assert str(refused).startswith("net.onnx cannot be run: Got invalid dimensions for input: input for the following")
    assert "Got: 2 Expected: 1" in str(refused)
