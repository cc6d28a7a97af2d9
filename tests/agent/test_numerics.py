"""Logits of a device against the host's, and the arrays they travel in; no numpy on that side."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edgekd.agent import numerics, session
from edgekd.agent.kernels import PRECISIONS, TOLERANCES, Precision
from edgekd.agent.measure import Tools
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import npy
from edgekd.agent.runners.inputs import noise
from edgekd.bench import golden
from edgekd.errors import InputFileError, UsageError
from edgekd.export.fp16 import convert_to_fp16
from tiny_onnx import conv_net, qlinear_net, two_input_net

NET = BenchJob("net", Path("net.onnx"), "fp32")
JOBS: dict[Precision, BenchJob] = {
    "fp32": NET,
    "tf32": replace(NET, runtime="ort-cuda"),
    "fp16": replace(NET, kind="fp16"),
    "int8": replace(NET, arithmetic="int8"),
}
HOST = [[0.0, 1.0, 10.0], [5.0, 4.9, 0.0], [2.0, 9.0, 1.0]]


def shifted(amount: float) -> list[list[float]]:
    return [[value + amount for value in row] for row in HOST]


def test_equal_logits_pass() -> None:
    found = numerics.compare_with_host(JOBS["fp32"], HOST, HOST)
    assert (found.max_difference, found.wrong_answers, found.passed) == (0.0, 0, True)
    assert (found.images, found.clear) == (3, 3)
    assert numerics.compare_with_host(JOBS["int8"], HOST, HOST).clear == 2, "a near tie says nothing"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_has_its_tolerance(precision: Precision) -> None:
    allowed = 10 * TOLERANCES[precision]
    assert numerics.compare_with_host(JOBS[precision], HOST, shifted(0.9 * allowed)).passed is True
    assert numerics.compare_with_host(JOBS[precision], HOST, shifted(1.1 * allowed)).passed is False


def test_one_wrong_answer_fails() -> None:
    other = [HOST[0], HOST[1], [9.0, 2.0, 1.0]]
    found = numerics.compare_with_host(JOBS["int8"], HOST, other)
    assert (found.wrong_answers, found.passed) == (1, False)


@pytest.mark.parametrize("broken", [[[math.nan] * 3] * 3, [[1.0, 2.0]] * 3, [[1.0, 2.0, 3.0]]])
def test_what_is_no_answer_fails(broken: list[list[float]]) -> None:
    found = numerics.compare_with_host(JOBS["int8"], HOST, broken)
    assert (found.passed, found.max_difference) == (False, None)


@pytest.mark.parametrize(
    ("kind", "runtime", "flags", "precision"),
    [
        ("fp32", "ort-cpu", (), "fp32"),
        ("fp32", "tensorrt", ("--noTF32",), "fp32"),
        ("fp32", "tensorrt", (), "tf32"),
        ("any", "ort-cuda", (), "tf32"),
        ("fp16", "tensorrt", ("--fp16",), "fp16"),
        ("int8-trt", "tensorrt", ("--fp16", "--int8"), "int8"),
    ],
)
def test_precision_follows_from_file_and_flags(kind: str, runtime: str, flags: tuple[str, ...], precision: str) -> None:
    job = BenchJob("net", Path("net.onnx"), kind, runtime, flags=flags)  # type: ignore[arg-type]
    assert numerics.precision_of(job) == precision


def test_precision_is_that_of_the_file_whatever_its_name(tmp_path: Path) -> None:
    floats = conv_net(tmp_path / "net.onnx")
    named = {"model_int8.onnx": "int8", "half.onnx": "fp16", "cast.onnx": "fp16"}
    qlinear_net(tmp_path / "model_int8.onnx")
    convert_to_fp16(floats, tmp_path / "half.onnx")
    conv_net(tmp_path / "cast.onnx", output=TensorProto.FLOAT16)
    for name, precision in {"net.onnx": "fp32", **named}.items():
        assert numerics.precision_of(golden.described(BenchJob(name, tmp_path / name))) == precision, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_npy_files_are_read_without_numpy(dtype: str, tmp_path: Path) -> None:
    array = noise(np, [3, 2, 4, 4], dtype, 1)
    (tmp_path / "a.npy").write_bytes(golden.to_npy(array))
    found, shape, data = npy.read_npy(tmp_path / "a.npy")
    assert (found, shape, data) == (array.dtype.str, (3, 2, 4, 4), array.tobytes())


def test_other_npy_files_are_refused(tmp_path: Path) -> None:
    whole = golden.to_npy(np.zeros((2, 3), np.float32))
    for name, data in {"cut": whole[:-1], "text": b"no array", "double": golden.to_npy(np.zeros(3))}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RefusedError, match=rf"{name} is"):
            npy.read_npy(tmp_path / name)


def test_logits_travel_bit_for_bit() -> None:
    rows = [[1.5, -2.25, 0.0], [3.0, 1e-3, -1e6]]
    reply = npy.array_of_rows(rows)
    assert npy.logits_in(reply) == [[float(np.float32(v)) for v in row] for row in rows]
    assert golden.array_in(reply).tolist() == npy.logits_in(reply)


@pytest.mark.parametrize("output", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("flat", [True, False])
def test_logits_of_any_shape_and_number_are_compared(output: int, flat: bool, tmp_path: Path) -> None:
    model = conv_net(tmp_path / "net.onnx", scale=50.0, output=output, flat=flat)
    inputs = golden.images(golden.signature(model))
    (tmp_path / "golden.npy").write_bytes(golden.to_npy(inputs))
    expected = golden.reference_logits(model, inputs)
    job = golden.described(BenchJob("net", model))
    found = session.check_on_device(job, BenchSettings(batch=3), Tools(), tmp_path / "golden.npy", expected)
    assert (len(expected), {len(row) for row in expected}) == (golden.IMAGES, {4})
    assert found.passed
    assert found.max_difference == pytest.approx(0.0, abs=1e-6)


def test_logits_that_are_no_numbers_are_refused() -> None:
    for dtype, shape, data in (
        ("|b1", [2, 2], b"1111"),
        ("|O", [1], b"12345678"),
        ("<f4", [], b"1234"),
        ("<f4", [0], b""),
    ):
        with pytest.raises(RefusedError, match="not a row of numbers for each image"):
            npy.logits_in(npy.array_of(dtype, shape, data))


def test_golden_inputs_are_noise_that_is_the_same_everywhere(tmp_path: Path) -> None:
    known = golden.signature(conv_net(tmp_path / "net.onnx"))
    assert (known.name, known.dtype, known.image_shape, known.batch) == ("input", "float32", (3, 8, 8), None)
    drawn = golden.images(known)
    assert drawn.shape == (golden.IMAGES, 3, 8, 8)
    assert np.array_equal(drawn, noise(np, [golden.IMAGES, 3, 8, 8], "float32", golden.SEED))
    fixed = golden.signature(conv_net(tmp_path / "fixed.onnx", shape=(3, 3, 8, 8)))
    assert golden.images(fixed).shape[0] == 9, "whole batches"
    assert np.array(golden.reference_logits(tmp_path / "fixed.onnx", golden.images(fixed))).shape == (9, 4)


def test_what_cannot_be_described_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputFileError, match=r"text\.onnx (must have one|is not a readable)"):
        golden.signature(tmp_path / "text.onnx")
    with pytest.raises(InputFileError, match="one float or uint8 image input"):
        golden.signature(two_input_net(tmp_path / "two.onnx"))
    free = conv_net(tmp_path / "open.onnx", shape=("N", 3, "H", "W"))
    with pytest.raises(UsageError, match="give it with --input"):
        golden.signature(free)
    assert golden.signature(free, (3, 9, 9)).image_shape == (3, 9, 9)
    with pytest.raises(UsageError, match=r"is \?x3x\?x\?; 1x9x9 does not fit it"):
        golden.signature(free, (1, 9, 9))
