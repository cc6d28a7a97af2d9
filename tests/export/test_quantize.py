from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from small_nets import SHAPE, Student, Tiny, batches, compute_ops, live, samples, small_mobilenet, small_shufflenet
from torch import Tensor, nn

from edgekd.errors import EdgekdError
from edgekd.export.fp16 import SMALLEST_NORMAL
from edgekd.export.graph import constants, metadata, producers, read_model, weighted_depth
from edgekd.export.int8 import HeldOutSet
from edgekd.export.onnx_export import Normalization, export_fp32
from edgekd.export.ort_session import integer_node_share
from edgekd.export.qdq_check import check
from edgekd.export.quantize import FLAVORS, activation_limits, compute_nodes, depthwise_stem, quantize, quantize_to
from edgekd.export.ranges import Ranges, collect_ranges


@pytest.mark.parametrize("name", FLAVORS)
def test_each_flavor_keeps_answers_metadata_and_standard(name: str, student: Student, tmp_path: Path) -> None:
    flavor = FLAVORS[name]
    file = quantize_to(student.path, tmp_path / flavor.file_name, flavor, student.ranges, "absmax")
    model = read_model(file.path)
    onnx.checker.check_model(model, full_check=True)
    assert metadata(file.path) == {"run": "test"}
    assert [entry.domain for entry in model.opset_import] == [""]
    assert file.opset == (19 if flavor.fp16 else 17)
    quality = student.held_out.measure(file.path, flavor)
    assert 0 < quality.loss < 0.01
    assert quality.agreement.share > 0.95
    assert [check(file.path, version) for version in flavor.tensorrt_versions] == [[]] * len(flavor.tensorrt_versions)


def _activation_zero_points(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    values = constants(model)
    return {n.input[0]: values[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}


def test_types_and_biases_of_the_flavors(student: Student) -> None:
    kinds = {"cpu-x86": np.uint8, "cpu-arm": np.int8, "trt": np.int8, "trt-fp16": np.int8}
    for name, kind in kinds.items():
        model = quantize(student.path, FLAVORS[name], student.ranges, "absmax")
        points, values = _activation_zero_points(model), constants(model)
        assert {point.dtype for point in points.values()} == {np.dtype(kind)}
        assert any(point.any() for point in points.values()) == (name in ("cpu-x86", "cpu-arm"))
        biases = [node.input[2] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
        assert all((bias in values) == FLAVORS[name].for_tensorrt for bias in biases)
        weights = [value for key, value in values.items() if key.endswith("weight_quantized")]
        assert len(weights) == 5
        assert {weight.dtype for weight in weights} == {np.dtype(np.int8)}


def test_scales_are_those_of_our_ranges(student: Student) -> None:
    for method in ("absmax", "mse"):
        found = constants(quantize(student.path, FLAVORS["trt"], student.ranges, method))["input_scale"]
        assert found == pytest.approx(student.ranges.tensors["input"][method].magnitude / 127, rel=1e-6)
        limits = activation_limits(FLAVORS["cpu-x86"], student.ranges, method)["input"]
        found = constants(quantize(student.path, FLAVORS["cpu-x86"], student.ranges, method))["input_scale"]
        assert found == pytest.approx((limits[1] - limits[0]) / 255, rel=1e-6)


def test_fp16_scales_are_normal_and_the_weights_fit_them(student: Student, tmp_path: Path) -> None:
    model = read_model(student.path)
    for tensor in model.graph.initializer:
        if tensor.name == "head.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[0] *= 1e-3  # a scale far below the smallest normal float16
            values[1] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    ranges = collect_ranges(model, student.calibration)
    half = quantize(model, FLAVORS["trt-fp16"], ranges, "absmax")
    found = constants(half)
    scale, integers = found["head.weight_scale"], found["head.weight_quantized"]
    assert scale.dtype == np.float16
    assert scale.min() == np.float16(SMALLEST_NORMAL)
    np.testing.assert_allclose(
        integers.astype(np.float32) * scale[:, None].astype(np.float32), values, atol=0.51 * scale.max()
    )
    assert np.abs(integers[0] * np.float32(scale[0]) - values[0]).max() <= 0.51 * SMALLEST_NORMAL
    types = {tensor.data_type for tensor in half.graph.initializer}
    assert types == {TensorProto.INT8, TensorProto.FLOAT16}
    flavor = FLAVORS["trt-fp16"]
    assert HeldOutSet.of(model, student.held_out.batches).measure(half, flavor).loss < 0.01


def test_tensorrt_gets_one_quantized_side_of_each_residual(student: Student) -> None:
    model = quantize(student.path, FLAVORS["trt"], student.ranges, "absmax")
    makers = producers(model)
    (add,) = [node for node in model.graph.node if node.op_type == "Add"]
    sides = {makers[name].op_type: makers[name] for name in add.input}
    assert set(sides) == {"Conv", "DequantizeLinear"}
    skipped = makers[makers[sides["DequantizeLinear"].input[0]].input[0]]
    assert constants(model)[makers[skipped.input[1]].input[0]].shape[2:] == (1, 1)  # the projection


class SharedSkip(nn.Module):
    """Two residual Adds that read the same skip, which no Conv reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        skip = self.project(x)
        x = torch.relu(self.first(x) + skip)
        x = torch.relu(self.second(x) + skip)
        logits: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return logits


def test_two_residuals_may_share_a_skip(tmp_path: Path) -> None:
    path = export_fp32(live(SharedSkip), SHAPE, tmp_path / "fp32.onnx").path
    ranges = collect_ranges(path, batches(samples(32)))
    model = quantize(path, FLAVORS["trt"], ranges, "absmax")
    onnx.checker.check_model(model, full_check=True)
    makers = producers(model)
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    sides = [{makers[name].op_type: name for name in add.input} for add in adds]
    assert [set(side) for side in sides] == [{"Conv", "DequantizeLinear"}] * 2
    assert sides[0]["DequantizeLinear"] == sides[1]["DequantizeLinear"]
    assert check(model, "8.6") == []


class ReadTwice(nn.Module):
    """A residual Add whose deeper Conv is read by another Conv as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.first, self.deep, self.side = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        deep = self.deep(torch.relu(self.first(x)))
        x = torch.relu(deep + self.project(x)) + torch.relu(self.side(deep))
        logits: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return logits


class AddsItsInput(nn.Module):
    """A residual Add whose skip is the network's own input, which no Conv reads."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.head = nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.deep(torch.relu(x)) + x)
        logits: Tensor = self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return logits


@pytest.mark.parametrize("make", [ReadTwice, AddsItsInput])
@pytest.mark.parametrize("name", ["trt", "trt-fp16"])
def test_the_skip_is_quantized_wherever_it_comes_from(name: str, make: type, tmp_path: Path) -> None:
    path = export_fp32(live(make), SHAPE, tmp_path / "fp32.onnx").path
    held_out = HeldOutSet.of(path, batches(samples(32)))
    model = quantize(path, FLAVORS[name], collect_ranges(path, held_out.batches), "absmax")
    onnx.checker.check_model(model, full_check=True)
    makers, depth = producers(model), weighted_depth(model)
    add = next(node for node in model.graph.node if node.op_type == "Add")
    deep, skip = sorted(add.input, key=lambda side: -depth[side])
    assert (makers[deep].op_type, makers[skip].op_type) == ("Conv", "DequantizeLinear")
    assert [check(model, version) for version in FLAVORS[name].tensorrt_versions] == [[], []]
    assert held_out.measure(model, FLAVORS[name]).loss < 0.01


def test_nodes_can_be_left_in_float_or_chosen_alone(student: Student) -> None:
    nodes = compute_nodes(student.path)
    assert len(nodes) == 5

    model = quantize(student.path, FLAVORS["trt"], student.ranges, "absmax", float_nodes=nodes[1:2])
    weights = {node.name: node.input[1] for node in model.graph.node if node.name in nodes}
    assert [name for name, weight in weights.items() if weight in constants(model)] == nodes[1:2]
    # It reads a tensor that a quantised neighbour reads as well, and must get it in float.
    assert not check(model, "10.3")
    model = quantize(student.path, FLAVORS["cpu-x86"], student.ranges, "absmax", only_nodes=nodes[2:3])
    weights = {node.name: node.input[1] for node in model.graph.node if node.name in nodes}
    assert [name for name, weight in weights.items() if weight not in constants(model)] == nodes[2:3]


def _start(*layers: nn.Module) -> nn.Sequential:
    rest = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    return nn.Sequential(*layers, *rest)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (small_mobilenet, 2),
        (lambda: _start(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)), 2),
        (lambda: _start(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8)), 0),
        (lambda: _start(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4)), 0),
        (lambda: _start(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8)), 0),
        (lambda: _start(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 8, 1)), 0),
        (lambda: _start(nn.Conv2d(3, 8, 3), nn.ReLU()), 0),
        pytest.param(lambda: _start(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), 0, marks=pytest.mark.slow),
        pytest.param(Tiny, 0, marks=pytest.mark.slow),
    ],
)
def test_the_float_stem_is_a_convolution_and_a_depthwise_one_behind_it(
    make: Callable[[], nn.Module], named: int, tmp_path: Path
) -> None:
    with torch.no_grad():
        (net := make().eval())(torch.zeros(2, *SHAPE))
    path = export_fp32(net, SHAPE, tmp_path / "fp32.onnx").path
    assert list(depthwise_stem(read_model(path))) == compute_nodes(path)[:named]


def test_logits_stay_float(student: Student) -> None:
    model = quantize(student.path, FLAVORS["cpu-x86"], student.ranges, "absmax")
    assert producers(model)["logits"].op_type == "Gemm"


@pytest.mark.parametrize("make", [small_mobilenet, pytest.param(small_shufflenet, marks=pytest.mark.slow)])
def test_other_architectures_run_as_integers_and_pass_the_check(make: type, tmp_path: Path) -> None:
    path = export_fp32(live(make), SHAPE, tmp_path / "fp32.onnx").path
    ranges = collect_ranges(path, batches(samples(64)))
    held_out = HeldOutSet.of(path, batches(samples(64, key="held-out")))
    for flavor in FLAVORS.values():
        model = quantize(path, flavor, ranges, "absmax")
        assert held_out.measure(model, flavor).loss < 0.03, flavor.name
        for version in flavor.tensorrt_versions:
            assert not check(model, version)
        if not flavor.for_tensorrt:
            share = integer_node_share(model, arm_rules=flavor.name == "cpu-arm")
            assert (share.share, share.total) == (1, len(compute_ops(path)))


def test_normalization_in_the_graph_stays_float(tmp_path: Path) -> None:
    norm = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    path = export_fp32(live(Tiny), SHAPE, tmp_path / "fp32.onnx", uint8_input=norm).path
    pixels = norm.to_uint8(samples(64))
    ranges = collect_ranges(path, lambda: [pixels])
    for flavor in FLAVORS.values():
        model = quantize(path, flavor, ranges, "absmax")
        makers = producers(model)
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        assert makers[first.input[0]].op_type == "Add"
        assert HeldOutSet.of(path, lambda: [pixels]).measure(model, flavor).loss < 0.01


def test_a_missing_range_is_named(student: Student) -> None:
    some = dict(list(student.ranges.tensors.items())[1:])
    with pytest.raises(EdgekdError, match="input"):
        quantize(student.path, FLAVORS["trt"], Ranges(1, some), "absmax")
