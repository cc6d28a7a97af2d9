"""The export stage: what passes its gate is published, what fails is not, and nothing local leaves the house."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import toy
from edgekd.deploy import ort_session, qdq_check
from edgekd.deploy.ranges import Range, Ranges
from edgekd.errors import GateError, UsageError
from edgekd.rundir import Record, RunDir
from edgekd.stages import artefacts, export, onnx_files

ALL = {"int8": True, "target": "all"}


@pytest.fixture(scope="module")
def exported(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    wanted = toy.toy_recipe(teacher_file, export=ALL, pixels={"mean": [0.5], "std": [0.25]})
    return toy.advance(tmp_path_factory.mktemp("exported") / "toy", wanted)


def files(run: RunDir) -> set[str]:
    return {path.name for path in run.stage("export").glob("*.onnx")}


def test_all_files_are_written_with_their_numbers(exported: RunDir) -> None:
    int8 = {f"student.int8-{name}.onnx" for name in ("cpu-x86", "cpu-arm", "trt", "trt-fp16")}
    assert files(exported) == {"student.fp32.onnx", "student.fp16.onnx", *int8}
    folder = exported.stage("export")
    chain = json.loads((folder / "agreement.json").read_text())["chain"]
    links = {link.split(" -> ")[1] for link in chain}
    assert links == {"student", *files(exported)}
    assert all(0 <= value["share"] <= 1 for value in chain.values())
    parity = json.loads((folder / "parity.json").read_text())
    assert all(parity[name]["passed"] for name in ("student.fp32.onnx", "student.fp16.onnx"))
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["sources"] == ["generator", "vae decoder"]
    assert calibration["ranges"]["samples"] == 32


def test_the_fp32_file_is_the_student(exported: RunDir) -> None:
    student = artefacts.student_network(exported)
    (x,) = artefacts.ReplaySource(exported).batches("test", 16)
    session = ort_session.open_session(exported.stage("export") / "student.fp32.onnx")
    np.testing.assert_allclose(ort_session.logits(session, x.numpy()), student(x).numpy(), rtol=1e-4, atol=1e-4)


def test_the_files_say_what_they_are_and_name_nothing_local(exported: RunDir) -> None:
    for name in files(exported):
        path = exported.stage("export") / name
        properties = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert properties["edgekd.run"] == "toy"
        assert properties["edgekd.data_free"] == "true"
        assert json.loads(properties["edgekd.input_shape"]) == [1, 8, 8]
        assert json.loads(properties["edgekd.mean"]) == [0.5]
        assert str(exported.path.parent).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_files_for_tensorrt_keep_its_rules(exported: RunDir) -> None:
    folder = exported.stage("export")
    assert qdq_check.check(folder / "student.int8-trt.onnx", "8.6") == []
    assert qdq_check.check(folder / "student.int8-trt-fp16.onnx", "11") == []


def test_poisoned_calibration_trips_the_gate_and_the_rest_is_published(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_files.collect_ranges

    def poisoned(*arguments: Any, **options: Any) -> Ranges:
        found = real(*arguments, **options)
        tiny = {m: Range(-1e-6, 1e-6, 1e-6) for m in next(iter(found.tensors.values()))}
        return Ranges(found.samples, dict.fromkeys(found.tensors, tiny))

    monkeypatch.setattr(onnx_files, "collect_ranges", poisoned)
    # Long enough that the student gives several answers: all alike would survive any quantisation.
    method = {"steps": 90, "student": {"lr": 0.02, "ship_average": False}}
    wanted = toy.toy_recipe(teacher_file, export={"int8": True, "min_int8_agreement": 0.97}, method=method)
    run = toy.advance(tmp_path / "toy", wanted)
    with pytest.raises(GateError, match="min_int8_agreement") as caught:
        export.refuse_failures(run)
    assert caught.value.exit_code == 5
    assert files(run) == {"student.fp32.onnx", "student.fp16.onnx"}
    kept = json.loads((run.stage("export") / "agreement.json").read_text())["int8"]["student.int8-cpu-x86.onnx"]
    assert kept["passed"] is False
    assert len(kept["steps"]) == 3, "range choice, float layers and bias correction are all tried"


def test_a_file_that_differs_from_the_student_is_not_published(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_files.convert_to_fp16

    def wrong(source: Path, path: Path) -> Any:
        written = real(source, path)
        model = onnx.load(path)
        weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(weight) * 2
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)
        return written

    monkeypatch.setattr(onnx_files, "convert_to_fp16", wrong)
    run = toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file))
    with pytest.raises(GateError, match=r"student\.fp16\.onnx differs"):
        export.refuse_failures(run)
    assert files(run) == {"student.fp32.onnx"}


def test_uint8_input_takes_pixels(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, export={"uint8_input": True}, pixels={"mean": [0.5], "std": [0.25]})
    run = toy.advance(tmp_path / "toy", wanted)
    session = ort_session.open_session(run.stage("export") / "student.fp32.onnx")
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("image", "tensor(uint8)")
    pixels = np.random.default_rng(0).integers(0, 256, (8, *toy.SHAPE), dtype=np.uint8)
    student = artefacts.student_network(run)
    floats = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
    expected = student(export.torch.from_numpy(floats.astype(np.float32))).numpy()
    np.testing.assert_allclose(ort_session.logits(session, pixels), expected, rtol=1e-4, atol=1e-4)


def test_uint8_input_needs_the_normalisation(teacher_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--normalize"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, export={"uint8_input": True}))
    assert Record.read(tmp_path / "toy" / "export") is None
