from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, NodeProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array, to_array
from small_nets import Student

from edgekd.export.graph import producers, read_model, sort_topologically
from edgekd.export.passes import at_opset
from edgekd.export.qdq_check import RULES, VERSIONS, check
from edgekd.export.quantize import FLAVORS, quantize


@pytest.fixture(scope="module")
def good(student: Student) -> ModelProto:
    return quantize(student.path, FLAVORS["trt"], student.ranges, "absmax")


@pytest.fixture(scope="module")
def good_fp16(student: Student) -> ModelProto:
    return quantize(student.path, FLAVORS["trt-fp16"], student.ranges, "absmax")


def _first(model: ModelProto, op: str, needle: str = "") -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == op and needle in node.name)


def _edit(model: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(from_array(np.ascontiguousarray(change(to_array(tensor).copy())), name))


def _pair(model: ModelProto, tensor: str, like: str = "input") -> str:
    """Put a Q/DQ pair with the scale of `like` behind `tensor`; return what comes out."""
    affine = [f"{like}_scale", f"{like}_zero_point"]
    model.graph.node.append(make_node("QuantizeLinear", [tensor, *affine], [f"{tensor}_q"], f"{tensor}_Q"))
    model.graph.node.append(make_node("DequantizeLinear", [f"{tensor}_q", *affine], [f"{tensor}_dq"], f"{tensor}_DQ"))
    return f"{tensor}_dq"


def _zero_scale(model: ModelProto) -> None:
    _edit(model, "input_scale", lambda value: value * 0)


def _infinite_scale(model: ModelProto) -> None:
    _edit(model, "head.weight_scale", lambda value: np.where(np.arange(len(value)) == 2, np.inf, value).astype("f4"))


def _negative_scale(model: ModelProto) -> None:
    _edit(model, "input_scale", lambda value: -value)


def _computed_scale(model: ModelProto) -> None:
    model.graph.node.append(make_node("Abs", ["input_scale"], ["computed"], "abs"))
    for node in (_first(model, "QuantizeLinear", "input"), _first(model, "DequantizeLinear", "input")):
        node.input[1] = "computed"


def _zero_point(model: ModelProto) -> None:
    _edit(model, "input_zero_point", lambda value: value + np.int8(3))


def _computed_zero_point(model: ModelProto) -> None:
    model.graph.node.append(make_node("Abs", ["input_zero_point"], ["computed"], "abs"))
    for node in (_first(model, "QuantizeLinear", "input"), _first(model, "DequantizeLinear", "input")):
        node.input[2] = "computed"


def _zero_points_of_another_size(model: ModelProto) -> None:
    _edit(model, _first(model, "DequantizeLinear", "head.weight").input[2], lambda value: value[:3])


def _uint8(model: ModelProto) -> None:
    _edit(model, "input_zero_point", lambda value: value.astype(np.uint8))


def _no_zero_point(model: ModelProto) -> None:
    del _first(model, "DequantizeLinear", "head.weight").input[2]


def _per_channel_activation(model: ModelProto) -> None:
    _edit(model, "input_scale", lambda value: np.full(3, value))
    _edit(model, "input_zero_point", lambda value: np.zeros(3, dtype=np.int8))


def _wrong_axis(model: ModelProto) -> None:
    node = _first(model, "DequantizeLinear", "head.weight")
    node.attribute[0].i = 1
    _edit(model, node.input[1], lambda value: np.resize(value, 16))
    _edit(model, node.input[2], lambda value: np.resize(value, 16))


def _wrong_count(model: ModelProto) -> None:
    _first(model, "DequantizeLinear", "head.weight").attribute[0].i = 1


def _quantized_bias(model: ModelProto) -> None:
    node = _first(model, "Gemm")
    model.graph.initializer.append(from_array(np.zeros(5, dtype=np.int32), "bias_q"))
    model.graph.node.insert(0, make_node("DequantizeLinear", ["bias_q", "input_scale"], ["bias_dq"], "bias_DQ"))
    node.input[2] = "bias_dq"


def _int32_that_is_no_bias(model: ModelProto) -> None:
    affine = ["input_scale", "integers_zero_point"]
    for name, size in (("integers", 5), ("integers_zero_point", 1)):
        model.graph.initializer.append(from_array(np.zeros(size, dtype=np.int32), name))
    model.graph.node.append(make_node("DequantizeLinear", ["integers", *affine], ["restored"], "integers_DQ"))


def _pair_before_activation(model: ModelProto) -> None:
    clip = _first(model, "Clip")
    clip.input[0] = _pair(model, clip.input[0])


def _pair_before(op: str) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        _pair_before_activation(model)
        clip = _first(model, "Clip")
        clip.op_type = op
        del clip.input[1:]
        if op == "PRelu":
            model.graph.initializer.append(from_array(np.ones((8, 1, 1), dtype=np.float32), "slope"))
            clip.input.append("slope")

    damage.__name__ = f"pair_before_{op.lower()}"
    return damage


def _product(model: ModelProto, factor: Callable[[str], list[NodeProto]], *, of: str = "") -> None:
    """Put a Q/DQ pair on one side of a product in place of the first activation; `factor` makes the other side."""
    clip = _first(model, "Clip")
    source = clip.input[0]
    nodes = factor(of or source)
    model.graph.node.extend(nodes)
    clip.op_type = "Mul"
    del clip.input[:]
    clip.input.extend([nodes[-1].output[0], _pair(model, source)])


def _sigmoid(source: str) -> list[NodeProto]:
    return [make_node("Sigmoid", [source], ["gate"], "gate")]


def _pair_in_silu(model: ModelProto) -> None:
    _product(model, _sigmoid)


def _pair_in_gelu(model: ModelProto) -> None:
    for name, value in (("root", 1.4142), ("one", 1.0)):
        model.graph.initializer.append(from_array(np.array(value, dtype=np.float32), name))

    def normal_distribution(source: str) -> list[NodeProto]:
        return [
            make_node("Div", [source, "root"], ["scaled"], "scaled"),
            make_node("Erf", ["scaled"], ["erf"], "erf"),
            make_node("Add", ["one", "erf"], ["gate"], "gate"),
        ]

    _product(model, normal_distribution)


def _both_sides(model: ModelProto) -> None:
    add, makers = _first(model, "Add"), producers(model)
    index = next(i for i, name in enumerate(add.input) if makers[name].op_type == "Conv")
    add.input[index] = _pair(model, add.input[index])


def _neither_side(model: ModelProto) -> None:
    add, makers = _first(model, "Add"), producers(model)
    index = next(i for i, name in enumerate(add.input) if makers[name].op_type == "DequantizeLinear")
    add.input[index] = makers[makers[add.input[index]].input[0]].input[0]


def _wrong_side(model: ModelProto) -> None:
    add, makers = _first(model, "Add"), producers(model)
    deep = next(i for i, name in enumerate(add.input) if makers[name].op_type == "Conv")
    _neither_side(model)
    add.input[deep] = _pair(model, add.input[deep])


def _float_weight(model: ModelProto) -> None:
    node = _first(model, "Gemm")
    model.graph.initializer.append(from_array(np.ones((5, 16), dtype=np.float32), "plain"))
    node.input[1] = "plain"


def _float_input(model: ModelProto) -> None:
    node, makers = _first(model, "Gemm"), producers(model)
    node.input[0] = makers[makers[node.input[0]].input[0]].input[0]


def _foreign_import(model: ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def _foreign_node(model: ModelProto) -> None:
    _foreign_import(model)
    _first(model, "Relu").domain = "com.microsoft"


def _refused_operator(model: ModelProto) -> None:
    outputs = ["dynamic", "dynamic_scale", "dynamic_zero_point"]
    model.graph.node.insert(0, make_node("DynamicQuantizeLinear", ["input"], outputs, "dynamic"))


BROKEN = [
    (_zero_scale, "8.6", "scale", "positive"),
    (_infinite_scale, "10.3", "scale", "finite"),
    (_negative_scale, "8.6", "scale", "positive"),
    (_computed_scale, "10.3", "scale", "constant"),
    (_zero_point, "10.3", "zero-point", "not 0"),
    (_no_zero_point, "8.6", "zero-point", "requires"),
    (_computed_zero_point, "8.6", "zero-point", "not a constant"),
    (_zero_points_of_another_size, "10.3", "zero-point", "differ in size"),
    (_uint8, "8.6", "int8", "uint8"),
    (_per_channel_activation, "10.3", "per-channel", "activation"),
    (_wrong_axis, "8.6", "per-channel", "axis 1 instead of 0"),
    (_wrong_count, "8.6", "per-channel", "another size"),
    (_quantized_bias, "10.3", "bias", "bias is quantised"),
    (_int32_that_is_no_bias, "8.6", "bias", "dequantises int32"),
    (_pair_before_activation, "10.3", "activation-fusion", "cannot fuse"),
    *((_pair_before(op), "10.3", "activation-fusion", "cannot fuse") for op in ("Elu", "PRelu", "Erf", "Sigmoid")),
    (_pair_in_silu, "8.6", "activation-fusion", "cannot fuse"),
    (_pair_in_gelu, "10.3", "activation-fusion", "cannot fuse"),
    (_both_sides, "8.6", "residual-add", "both"),
    (_neither_side, "10.3", "residual-add", "skip"),
    (_wrong_side, "10.3", "residual-add", "instead of its skip"),
    (_float_weight, "10.3", "half-quantised", "weight"),
    (_float_input, "10.3", "half-quantised", "input"),
    (_foreign_import, "10.3", "domain", "com.microsoft"),
    (_foreign_node, "8.6", "domain", "Relu"),
    (_refused_operator, "10.3", "operator", "DynamicQuantizeLinear"),
]


CASES = [
    (damage, version, rule, word)
    for damage, only, rule, word in BROKEN
    for version in ((only,) if word == "requires" else VERSIONS)
]
"""Every damage for every version; only 8.6 requires zero points."""


@pytest.mark.parametrize(
    ("damage", "version", "rule", "word"),
    CASES,
    ids=[f"{damage.__name__.strip('_')}-{version}" for damage, version, *_ in CASES],
)
def test_a_broken_rule_is_named(
    damage: Callable[[ModelProto], None],
    version: str,
    rule: str,
    word: str,
    good: ModelProto,
    good_fp16: ModelProto,
) -> None:
    model = read_model(good_fp16 if version == "11" else good)
    assert check(model, version) == []
    damage(model)
    sort_topologically(model)
    found = [violation for violation in check(model, version) if violation.rule == rule]
    assert found, check(model, version)
    assert any(word in violation.message for violation in found)


def test_a_product_with_something_else_is_no_activation_function(good: ModelProto) -> None:
    model = read_model(good)
    _product(model, _sigmoid, of="input")
    sort_topologically(model)
    assert "activation-fusion" not in {violation.rule for violation in check(model, "8.6")}


def test_opsets_by_version(good: ModelProto, good_fp16: ModelProto) -> None:
    assert [v.rule for v in check(at_opset(good, 18), "8.6")] == ["opset"]
    assert not check(at_opset(good, 20), "10.3")
    for version in ("10.3", "11"):
        assert [v.rule for v in check(at_opset(good, 21), version) if v.rule != "float32-rest"] == ["opset"]
    assert {v.rule for v in check(good_fp16, "8.6")} == {"opset", "fp16-scale"}


def test_axes_of_reduce_mean_as_an_input_are_a_trap_of_old_versions(good: ModelProto) -> None:
    model = at_opset(good, 18)
    pool = _first(model, "GlobalAveragePool")
    model.graph.initializer.append(from_array(np.array([2, 3]), "axes"))
    pool.op_type = "ReduceMean"
    pool.input.append("axes")
    assert {v.rule for v in check(model, "8.6")} == {"opset", "reduce-mean"}
    assert not check(model, "10.3")


def test_half_precision_scales_must_be_normal_and_new_enough(good_fp16: ModelProto) -> None:
    assert not check(good_fp16, "10.3")
    assert not check(good_fp16, "11")
    model = read_model(good_fp16)
    _edit(model, "input_scale", lambda value: np.array(3e-5, dtype=np.float16))
    for version in ("10.3", "11"):
        assert {v.rule for v in check(model, version)} == {"fp16-scale"}
        assert "subnormal" in check(model, version)[0].message
    old = read_model(good_fp16)
    old.opset_import[0].version = 18
    assert {v.rule for v in check(old, "10.3")} == {"fp16-scale"}
    assert "opset 18 does not allow" in check(old, "10.3")[0].message


def test_version_11_wants_float16_around_int8(good: ModelProto, student: Student) -> None:
    assert {v.rule for v in check(good, "11")} == {"float32-rest"}
    assert not check(student.path, "11")  # a plain float32 file is meant to be float32


def test_files_for_cpus_are_refused(student: Student) -> None:
    model = quantize(student.path, FLAVORS["cpu-x86"], student.ranges, "absmax")
    assert {"zero-point", "int8", "bias"} <= {v.rule for v in check(model, "10.3")}


def test_every_rule_is_broken_by_a_test() -> None:
    elsewhere = {"opset", "reduce-mean", "fp16-scale", "float32-rest"}
    assert {rule for _, _, rule, _ in BROKEN} | elsewhere == set(RULES)
    assert set(VERSIONS) == {"8.6", "10.3", "11"}
