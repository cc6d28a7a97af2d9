from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from edgekd.export.ort_session import open_session
from edgekd.export.passes import at_opset, fix_reshapes, pool_spatial_means, slice_splits

X = np.random.default_rng(0).standard_normal((3, 6, 4, 5)).astype(np.float32)
Rewrite = Callable[[ModelProto], ModelProto]


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, list[int]], outputs: int = 1, opset: int = 18
) -> ModelProto:
    made = [make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None) for index in range(outputs)]
    given = make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 4, 5])
    values = [from_array(np.array(value, dtype=np.int64), name) for name, value in constants.items()]
    graph = make_graph(nodes, "g", [given], made, values)
    return make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=9)


def _run(model: ModelProto) -> list[np.ndarray]:
    outputs: list[np.ndarray] = open_session(model).run(None, {"x": X})
    return outputs


def _ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
@pytest.mark.parametrize(("keepdims", "ops"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Flatten"])])
def test_spatial_means_become_pooling(axes: list[int], keepdims: int, ops: list[str]) -> None:
    model = _model([make_node("ReduceMean", ["x", "axes"], ["y0"], "mean", keepdims=keepdims)], {"axes": axes})
    lowered = at_opset(pool_spatial_means(model), 17)
    assert _ops(lowered) == ops
    assert not lowered.graph.initializer
    np.testing.assert_allclose(_run(lowered)[0], _run(model)[0], atol=1e-6)


def test_means_over_other_axes_keep_their_axes() -> None:
    model = _model([make_node("ReduceMean", ["x", "axes"], ["y0"], "mean")], {"axes": [1]})
    try:
        lowered = at_opset(pool_spatial_means(model), 17)
    except ValueError as refused:
        pytest.skip(f"this version of onnx refuses, as it may: {refused}")
    assert _ops(lowered) == ["ReduceMean"]
    assert list(lowered.graph.node[0].input) == ["x"]  # the axes are an attribute again
    np.testing.assert_allclose(_run(lowered)[0], _run(model)[0], atol=1e-6)


@pytest.mark.parametrize(("axis", "parts"), [(1, 2), (1, 3), (-1, 2)])
def test_equal_splits_become_slices_of_what_is_read(axis: int, parts: int) -> None:
    names = [f"y{index}" for index in range(parts - 1)] + ["unread"]
    split = make_node("Split", ["x"], names, "split", axis=axis, num_outputs=parts)
    model = _model([split], {}, outputs=parts - 1)
    lowered = at_opset(slice_splits(model), 17)
    assert _ops(lowered) == ["Slice"] * (parts - 1)
    for found, wanted in zip(_run(lowered), _run(model), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("shape", "ops"), [([-1, 120], ["Flatten"]), ([-1, 6, 20], ["Reshape"])])
@pytest.mark.parametrize("computed", [False, True], ids=["constant", "computed from the batch"])
def test_reshapes_that_keep_the_batch_need_no_computed_shape(shape: list[int], ops: list[str], computed: bool) -> None:
    parts = [
        make_node("Shape", ["x"], ["n"], "size", start=0, end=1),
        make_node("Concat", ["n", "rest"], ["s"], axis=0),
    ]
    reshape = make_node("Reshape", ["x", "s"], ["y0"], "reshape", allowzero=1)
    model = _model([*parts, reshape], {"rest": shape[1:]}) if computed else _model([reshape], {"s": shape})
    fixed = fix_reshapes(model)
    assert _ops(fixed) == ops
    np.testing.assert_array_equal(_run(fixed)[0], X.reshape(shape))


@pytest.mark.parametrize("shape", [[-1, 60], [120, -1]])
def test_reshapes_across_the_batch_stay(shape: list[int]) -> None:
    model = _model([make_node("Reshape", ["x", "s"], ["y0"])], {"s": shape})
    fixed = fix_reshapes(model)
    assert _ops(fixed) == ["Reshape"]
    np.testing.assert_array_equal(_run(fixed)[0], X.reshape(shape))


@pytest.mark.parametrize(("given", "wanted"), [(20, 17), (17, 19)])
def test_pads_are_carried_between_opsets(given: int, wanted: int) -> None:
    pads = [0, 2, 0, 0, 0, 1, 0, 3]
    model = _model(
        [
            make_node("Pad", ["x", "pads"], ["y0"], "pad"),
        ],
        {"pads": pads},
        opset=given,
    )
    moved = at_opset(model, wanted)
    assert [(entry.domain, entry.version) for entry in moved.opset_import] == [("", wanted)]
    onnx.checker.check_model(moved, full_check=True)
    np.testing.assert_array_equal(_run(moved)[0], np.pad(X, ((0, 0), (2, 1), (0, 0), (0, 3))))


def test_foreign_imports_are_dropped_and_foreign_operators_refused() -> None:
    model = _model([make_node("Relu", ["x"], ["y0"])], {})
    model.opset_import.add(domain="com.microsoft", version=1)
    assert [entry.domain for entry in at_opset(model, 17).opset_import] == [""]
    model.graph.node.append(make_node("Gelu", ["y0"], ["z"], domain="com.microsoft"))
    with pytest.raises(ValueError, match=r"com\.microsoft"):
        at_opset(model, 17)
