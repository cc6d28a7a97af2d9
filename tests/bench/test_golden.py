"""What a device is told of a file's input, and the golden inputs in its type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from edgekd.agent import session
from edgekd.agent.measure import Tools
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.inputs import input_shape
from edgekd.bench import golden
from edgekd.errors import InputFileError
from tiny_onnx import conv_net, map_net, nan_net, one_number_net, sequence_net, transposed_net, two_input_net


@pytest.mark.parametrize("batch", ["N", -1, 0])
def test_a_size_below_one_is_an_open_one(batch: str | int, tmp_path: Path) -> None:
    known = golden.signature(conv_net(tmp_path / "net.onnx", shape=(batch, 3, 8, 8)))
    assert (known.batch, known.declared, len(golden.images(known))) == (None, (None, 3, 8, 8), golden.IMAGES)
    assert input_shape(tmp_path, [batch, 3, -1, 8], 2, [3, 9, 8]) == (2, 3, 9, 8)


def test_a_fixed_batch_says_which_flag_fits() -> None:
    with pytest.raises(RefusedError, match="fixed batch of 8; batch 1 cannot be measured, give --batch 8"):
        input_shape(Path("net.onnx"), [8, 3, 8, 8], 1, None)
    with pytest.raises(RefusedError, match="must have a batch"):
        input_shape(Path("net.onnx"), [], 1, None)


def test_an_input_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"it has a \(float\), b \(float\)"):
        golden.signature(two_input_net(tmp_path / "net.onnx"))
    with pytest.raises(InputFileError, match=r"it has input \(double\)"):
        golden.signature(conv_net(tmp_path / "net.onnx", element=TensorProto.DOUBLE))
    model = onnx.load(conv_net(tmp_path / "net.onnx"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputFileError, match="leaves open how many dimensions its input has"):
        golden.signature(tmp_path / "net.onnx")


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_every_type_of_input_is_checked(element: int, tmp_path: Path) -> None:
    job = golden.described(BenchJob("net", conv_net(tmp_path / "net.onnx", element=element, scale=20.0)))
    ((images, expected),) = golden.write_files([job], tmp_path).values()
    found = session.check_on_device(job, BenchSettings(), Tools(), images, expected)
    assert (found.passed, found.images) == (True, golden.IMAGES)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (map_net, "must answer with tensors to be measured; answer is a sequence or a map"),
        (sequence_net, "must answer with tensors to be measured; answer is a sequence or a map"),
        (transposed_net, "gives no row of numbers for each of 8 images: its answer is 3x8"),
        (nan_net, "answers NaN or infinity to ordinary noise"),
        (one_number_net, "gives no row of numbers for each of 8 images: zero-dimensional arrays"),
    ],
)
def test_answers_that_are_no_rows_of_numbers_are_refused(
    network: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    file = network(tmp_path / "net.onnx")
    with pytest.raises(InputFileError, match=rf"net\.onnx {words}"):
        golden.reference_logits(file, golden.images(golden.signature(file)))
