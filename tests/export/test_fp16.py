from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_nets import Student, torch_logits

from edgekd.errors import GateError
from edgekd.export.fidelity import TOLERANCE_FP16, TOLERANCE_FP32, check_parity
from edgekd.export.fp16 import convert_to_fp16, to_fp16
from edgekd.export.graph import metadata, read_model


def test_half_precision_keeps_io_metadata_order_and_answers(student: Student, tmp_path: Path) -> None:
    file = convert_to_fp16(student.path, tmp_path / "student.fp16.onnx")
    model = read_model(file.path)
    onnx.checker.check_model(model, full_check=True)
    assert metadata(file.path) == {"run": "test"}
    assert file.size_bytes < 0.75 * student.path.stat().st_size
    for info in (*model.graph.input, *model.graph.output):
        assert info.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}

    reference = torch_logits(student.net, student.fresh)
    parity = check_parity(file.path, student.fresh, reference, TOLERANCE_FP16)
    assert parity.passed, parity
    # Half precision is really there: the float32 tolerance must not hold.
    assert not check_parity(file.path, student.fresh, reference, TOLERANCE_FP32).passed


@pytest.mark.parametrize("value", [1e5, np.nan, np.inf])
def test_a_weight_beyond_float16_is_named(student: Student, value: float) -> None:
    model = read_model(student.path)
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(GateError, match=tensor.name):
        to_fp16(model)
