from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from small_nets import SHAPE, Student, samples

from edgekd.errors import GateError
from edgekd.export.graph import clip_bounds, read_model
from edgekd.export.int8_chain import mean_output_errors
from edgekd.export.quantize import FLAVORS, quantize
from edgekd.export.ranges import (
    PERCENTILES,
    RANGE_METHODS,
    Batches,
    Range,
    Ranges,
    activation_names,
    clipped_values,
    collect_ranges,
)
from edgekd.run.cards.exported import RangesPart


def _scaler() -> object:
    """Return y = 2x for rows of 1000."""
    two = numpy_helper.from_array(np.array(2, dtype=np.float32), "two")
    ends = [make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1000]) for name in "xy"]
    graph = make_graph([make_node("Mul", ["x", "two"], ["y"], "double")], "g", ends[:1], ends[1:], [two])
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def _collect(data: NDArray[np.float32]) -> dict[str, Range]:
    return dict(collect_ranges(_scaler(), lambda: np.array_split(data, 5)).tensors["y"])


def test_absmax_and_percentiles_are_those_of_the_data() -> None:
    data = np.random.default_rng(0).standard_normal((200, 1000)).astype(np.float32)
    found = _collect(data)
    assert found["absmax"] == Range(2 * float(data.min()), 2 * float(data.max()), 2 * float(np.abs(data).max()))
    for method, percentile in PERCENTILES.items():
        tail = (100 - percentile) / 2
        low, high = np.percentile(2 * data, (tail, 100 - tail))
        magnitude = np.percentile(np.abs(2 * data), percentile)
        # One histogram bin is 18/4096 = 0.0045 wide.
        bins = pytest.approx((low, high, magnitude), abs=0.01 if percentile < 99.999 else 0.3)
        assert (found[method].low, found[method].high, found[method].magnitude) == bins


def _error(data: NDArray[np.float32], low: float, high: float, levels: int) -> float:
    step = (high - low) / levels
    kept = np.rint((data.clip(low, high) - low) / step) * step + low
    return float(np.mean((kept - data) ** 2))


def test_mse_is_near_the_best_of_a_full_search() -> None:
    data = np.random.default_rng(1).standard_normal((400, 1000)).astype(np.float32)
    data[0, 0], data[1, 1] = 15, -10
    found, values = _collect(data), 2 * data
    mse, absmax = found["mse"], found["absmax"]
    grid = np.linspace(0.2, 1, 9)
    symmetric = min(_error(values, -absmax.magnitude * a, absmax.magnitude * a, 254) for a in grid)
    asymmetric = min(_error(values, absmax.low * a, absmax.high * b, 255) for a in grid for b in grid)
    plain = _error(values, -absmax.magnitude, absmax.magnitude, 254), _error(values, absmax.low, absmax.high, 255)
    assert _error(values, -mse.magnitude, mse.magnitude, 254) < 1.02 * symmetric < 0.8 * plain[0]
    assert _error(values, mse.low, mse.high, 255) < 1.02 * asymmetric < 0.8 * plain[1]


def test_every_range_contains_zero_and_lies_within_absmax(student: Student) -> None:
    for name, found in student.ranges.tensors.items():
        outer = found["absmax"]
        assert set(found) == set(RANGE_METHODS)
        for method, inner in found.items():
            assert outer.low <= inner.low <= 0 <= inner.high <= outer.high, (name, method)
            assert 0 <= inner.magnitude <= outer.magnitude, (name, method)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30])
def test_constant_activations_have_a_range(value: float) -> None:
    found = _collect(np.full((5, 1000), value, dtype=np.float32))
    double = 2 * float(np.float32(value))
    assert set(found.values()) == {Range(min(double, 0), max(double, 0), abs(double))}


def test_values_that_barely_differ_have_a_range() -> None:
    data = np.full((5, 1000), 1000, dtype=np.float32)
    data[0, 0] = np.nextafter(np.float32(1000), np.float32(2000))
    assert _collect(data)["mse"].high == pytest.approx(2000)


def test_what_a_relu_hides_is_not_collected(student: Student) -> None:
    model = read_model(student.path)
    names = activation_names(model)
    made = {node.output[0]: node.op_type for node in model.graph.node}
    assert names[0] == "input"
    assert [made[name] for name in names[1:]] == [
        *("Clip", "Relu", "Conv", "Conv", "Add", "Relu", "GlobalAveragePool", "Flatten", "Gemm")
    ]
    assert set(student.ranges.tensors) == set(names)


def test_batch_size_changes_nothing(student: Student) -> None:
    data = samples(48)
    whole = collect_ranges(student.path, lambda: [data])
    parts = collect_ranges(student.path, lambda: np.array_split(data, 7))
    assert whole.samples == parts.samples == 48
    for name, found in whole.tensors.items():
        for method, part in found.items():
            other = parts.tensors[name][method]
            step = 2 * found["absmax"].magnitude / 1000
            assert (other.low, other.high, other.magnitude) == pytest.approx(
                (part.low, part.high, part.magnitude), abs=step
            )


def test_ranges_survive_json(student: Student) -> None:
    assert Ranges.of(RangesPart.model_validate_json(student.ranges.to_card().model_dump_json())) == student.ranges


def _bias_errors(student: Student, batches: Batches) -> None:
    mean_output_errors(student.path, quantize(student.path, FLAVORS["trt"], student.ranges, "absmax"), batches)


@pytest.mark.parametrize(
    "read",
    [
        lambda student, batches: collect_ranges(student.path, batches),
        lambda student, batches: clipped_values(student.path, {"input": (-1.0, 0.5)}, batches),
        _bias_errors,
    ],
    ids=["ranges", "clipping", "bias correction"],
)
def test_memory_does_not_grow_with_the_number_of_samples(
    read: Callable[[Student, Batches], object], student: Student
) -> None:
    draw, drawn = np.random.default_rng(0), 0

    def peak(count: int) -> int:
        def batches() -> Iterator[NDArray[np.float32]]:
            nonlocal drawn
            for _ in range(count):
                drawn += 1
                yield draw.standard_normal((16, *SHAPE)).astype(np.float32)

        before = drawn
        tracemalloc.start()
        read(student, batches)
        assert drawn - before >= count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    few, many = peak(2), peak(60)
    assert many < 1.1 * few
    # What keeping the activations would have cost: 16 samples of 6 kB more for each batch.
    assert many - few < 58 * 16 * 4 * np.prod(SHAPE) / 10


def test_no_batch_and_broken_activations_are_errors(student: Student) -> None:
    with pytest.raises(GateError, match="no batch"):
        collect_ranges(student.path, list)
    data = samples(4)
    data[2] = np.nan
    for first in ([], [samples(4)]):
        with pytest.raises(GateError, match="not finite"):
            collect_ranges(student.path, [*first, data].copy)


def test_clipped_values_are_those_outside(student: Student) -> None:
    data = samples(32)
    found = clipped_values(student.path, {"input": (-1.0, 0.5)}, lambda: np.array_split(data, 3))
    assert found == {"input": (int(((data < -1) | (data > 0.5)).sum()), data.size)}


def test_ranges_are_widened_no_further_than_a_clip_lets_values_come(student: Student) -> None:
    bounds = clip_bounds(read_model(student.path))
    (clipped,) = [name for name, ends in bounds.items() if ends == (0.0, 6.0)]
    wide = student.ranges.widened(100.0, bounds).tensors
    assert wide[clipped]["absmax"] == Range(0.0, 6.0, 6.0)
    seen = student.ranges.tensors["input"]["mse"]
    assert wide["input"]["mse"] == Range(seen.low * 100, seen.high * 100, seen.magnitude * 100)
    assert student.ranges.widened(1.0, bounds) == student.ranges
