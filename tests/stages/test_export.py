"""The export stage: what passes its gate is published, what fails is not, and nothing local leaves the house."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command import Result

import toy
from edgekd import pipeline
from edgekd.agent.device.environment import this_machine
from edgekd.agent.device.machine import sha256_of
from edgekd.bench import comparing
from edgekd.cli.lines import data_free_warning
from edgekd.errors import GateError, InputFileError, StoppedEarly, UsageError
from edgekd.export import clipping, onnx_files, ort_session, qdq_check
from edgekd.export.fp16 import convert_to_fp16
from edgekd.export.int8 import HEADROOMS
from edgekd.export.int8_chain import FINE_TUNING
from edgekd.export.onnx_export import Normalization
from edgekd.export.quantize import FLAVORS
from edgekd.export.ranges import Range, Ranges, collect_ranges
from edgekd.export.samples import ExportSamples, cached_batches
from edgekd.models import artefacts, registry
from edgekd.models.images import unlabeled
from edgekd.recipe import ExportTable, with_changes
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.stages import export, report
from edgekd.stages.base import Execution
from edgekd.stages.catalog import EXPORT
from edgekd.stopping import Stop
from edgekd.synthesis.sampler import Sampler

ALL = {"int8": True, "target": "all"}
PIXELS = {"mean": [0.5], "std": [0.25]}
NAMES = ["zero", "one", "two", "three"]


@pytest.fixture(scope="module")
def exported(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "names.txt").write_text("\n".join(NAMES))
    wanted = toy.toy_recipe(teacher_file, export=ALL, pixels={**PIXELS, "classes": str(folder / "names.txt")})
    return toy.advance(folder / "toy", wanted)


def files(run: RunDir) -> set[str]:
    return {path.name for path in run.stage("export").glob("*.onnx")}


def properties_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def numbers(run: RunDir, name: str) -> Any:
    return json.loads((run.stage("export") / f"{name}.json").read_text())


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
    for name, found in json.loads((folder / "agreement.json").read_text())["int8"].items():
        rates = [found["clipping"]["overall"], *found["clipping"]["tensors"].values()]
        assert all(0 <= rate < 0.1 for rate in rates)
        assert (found["integer_nodes"] is None) == ("trt" in name)
        assert found["headroom"] in HEADROOMS
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["data_free"] is True
    assert calibration["sources"] == ["generator", "vae decoder"]
    assert calibration["ranges"]["samples"] == 32
    assert calibration["seed"] == pipeline.open_recipe(exported).seed
    assert numbers(exported, "agreement")["data_free"] is True


@pytest.mark.slow
def test_what_a_cpu_without_vnni_makes_of_the_x86_file_by_default_is_measured_and_said(
    exported: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []
    real = ort_session.open_session

    def seen(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("default_kernels", False))
        return real(*arguments, **options)

    monkeypatch.setattr(ort_session, "open_session", seen)
    recipe = with_changes(pipeline.open_recipe(exported), {"export": {"target": "cpu"}})
    for saturates in (True, False):
        asked.clear()
        monkeypatch.setattr(ort_session, "saturates", lambda here=saturates: here)
        run = RunDir(Path(shutil.copytree(exported.path, tmp_path / str(saturates) / "toy")))
        shutil.rmtree(run.stage("export"))
        toy.advance(run.path, recipe, ("export",))
        found = numbers(run, "agreement")
        assert found["int8_instructions"] == this_machine().int8_instructions
        measured = {name: file["default_mode"] for name, file in found["int8"].items()}
        assert measured["student.int8-cpu-arm.onnx"] is None
        default = measured["student.int8-cpu-x86.onnx"]
        assert (default is not None and 0 <= default["share"] <= 1) == saturates
        assert asked.count(True) == saturates, "everything else is judged by exact kernels"
        said = capfd.readouterr().err
        assert said.count("must set session.x64quantprecision=1") == saturates
    results = [
        RunDir(tmp_path / name / "toy").stage("export") / "student.int8-cpu-x86.onnx" for name in ("True", "False")
    ]
    assert results[0].read_bytes() == results[1].read_bytes()


def test_int8_without_a_target_writes_every_file(
    selected: RunDir, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = toy.toy_recipe(teacher_file, export={"target": ExportTable().target})
    run = toy.advance(Path(shutil.copytree(selected.path, tmp_path / "runs" / "toy")), wanted, ("select",))
    monkeypatch.chdir(tmp_path)
    shown = Result("export", "toy", "--int8", "--json")
    assert shown.exit_code == 0, shown.stderr
    int8 = {f"student.int8-{name}.onnx" for name in ("cpu-x86", "cpu-arm", "trt", "trt-fp16")}
    assert files(run) == set(shown.json()["size_bytes"]) == {"student.fp32.onnx", "student.fp16.onnx", *int8}


def drawn(run: RunDir, count: int) -> torch.Tensor:
    return ExportSamples.of_run(run, None).draw("test", count)


def test_the_fp32_file_is_the_student(exported: RunDir) -> None:
    student = artefacts.student_network(exported)
    x = drawn(exported, 16)
    session = ort_session.open_session(exported.stage("export") / "student.fp32.onnx")
    np.testing.assert_allclose(ort_session.logits(session, x.numpy()), student(x).numpy(), rtol=1e-4, atol=1e-4)


def test_the_files_say_what_they_are_and_name_nothing_local(exported: RunDir) -> None:
    facts = {
        "data_free": True,
        "input_name": "input",
        "input_shape": [1, 8, 8],
        "normalization_in_graph": False,
        "mean": [0.5],
        "std": [0.25],
        "class_names": NAMES,
        "student_sha256": sha256_of(exported.stage("select") / "student.safetensors"),
        "teacher_sha256": sha256_of(exported.stage("teacher") / "teacher.safetensors"),
    }
    for name in files(exported):
        path = exported.stage("export") / name
        properties = properties_of(path)
        assert properties.pop("edgekd.run") == "toy"
        assert {key.removeprefix("edgekd."): json.loads(value) for key, value in properties.items()} == facts
        assert str(exported.path.parent).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_files_for_tensorrt_keep_its_rules(exported: RunDir) -> None:
    folder = exported.stage("export")
    assert qdq_check.check(folder / "student.int8-trt.onnx", "8.6") == []
    assert qdq_check.check(folder / "student.int8-trt-fp16.onnx", "11") == []


def test_a_file_that_breaks_a_rule_of_tensorrt_is_refused_and_the_others_are_measured(
    exported: RunDir, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(shutil.copytree(exported.path, tmp_path / "runs" / "toy")))
    monkeypatch.setitem(FLAVORS, "trt", replace(FLAVORS["trt"], symmetric=False))
    monkeypatch.chdir(tmp_path)
    result = Result("export", "toy", "--target", "tensorrt", "--calib-data", photos)
    assert result.exit_code == 5
    assert "student.int8-trt.onnx breaks TensorRT 8.6's rule zero-point" in result.stderr
    assert files(run) == {"student.fp32.onnx", "student.fp16.onnx", "student.int8-trt-fp16.onnx"}
    kept = numbers(run, "agreement")["int8"]
    assert kept["student.int8-trt.onnx"]["passed"] is False
    assert "zero-point" in kept["student.int8-trt.onnx"]["reason"]
    assert (kept["student.int8-trt-fp16.onnx"]["passed"], kept["student.int8-trt-fp16.onnx"]["reason"]) == (True, None)
    assert "20 real images" in result.stdout
    assert any(line.startswith("student.int8-trt-fp16.onnx") for line in result.stdout.splitlines())


@pytest.fixture(scope="module")
def trained(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run long enough that the student gives several answers: all alike would survive any quantisation."""
    method = {"steps": 90, "student": {"lr": 0.02, "ship_average": False}}
    wanted = toy.toy_recipe(teacher_file, method=method, pixels=PIXELS)
    return toy.advance(tmp_path_factory.mktemp("trained") / "toy", wanted, ("ingest", "distill", "select"))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the student's calibration ranges that clip everything."""
    real = collect_ranges

    def tiny_ranges(*arguments: Any, **options: Any) -> Ranges:
        found = real(*arguments, **options)
        tiny = {m: Range(-1e-6, 1e-6, 1e-6) for m in next(iter(found.tensors.values()))}
        return Ranges(found.samples, dict.fromkeys(found.tensors, tiny))

    monkeypatch.setattr(onnx_files, "collect_ranges", tiny_ranges)


@pytest.mark.usefixtures("poisoned")
def test_poisoned_calibration_trips_the_gate_and_the_rest_is_published(trained: RunDir, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(trained.path, tmp_path / "toy")))
    changes = {"export": {"int8": True, "min_int8_agreement": 0.97}}
    toy.advance(run.path, with_changes(pipeline.open_recipe(run), changes), ("export",))
    with pytest.raises(GateError, match="min_int8_agreement") as caught:
        export.refuse_failures(run)
    assert caught.value.exit_code == 5
    assert files(run) == {"student.fp32.onnx", "student.fp16.onnx"}
    kept = numbers(run, "agreement")["int8"]["student.int8-cpu-x86.onnx"]
    assert kept["passed"] is False
    assert "min_int8_agreement" in kept["reason"]
    assert len(kept["steps"]) == 3, "range choice, float layers and bias correction are all tried"


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
def test_fine_tuning_saves_the_files_that_nothing_else_does(
    trained: RunDir, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(shutil.copytree(trained.path, tmp_path / "runs" / "toy")))
    monkeypatch.chdir(tmp_path)
    settings = ("--set", "export.qat_steps=8", "--set", "export.min_int8_agreement=0.9")
    result = Result("export", "toy", "--int8", "--qat", *settings)
    assert result.exit_code == 0, result.stderr
    tuned = {"student.int8-cpu-x86.onnx", "student.int8-cpu-arm.onnx"}
    assert files(run) == {"student.fp32.onnx", "student.fp16.onnx", *tuned}
    for name in tuned:
        last = numbers(run, "agreement")["int8"][name]["steps"][-1]
        assert (last["remedy"], last["applied"]) == (FINE_TUNING, True)
        found = json.loads(properties_of(run.stage("export") / name)["edgekd.fine_tuned"])
        assert found["quantisation_aware"]["steps"] == 8
    assert "edgekd.fine_tuned" not in properties_of(run.stage("export") / "student.fp32.onnx")
    assert set(numbers(run, "calibration")["fine_tuned"]) == tuned
    clipped = clipping.measure_clipping(run, pipeline.open_recipe(run), unlabeled(run, photos, purpose="clipping"))
    assert {name: rates.images for name, rates in clipped.items()} == dict.fromkeys(tuned)


def test_a_file_that_differs_from_the_student_is_not_published(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = convert_to_fp16

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


@pytest.fixture(scope="module")
def selected(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("selected") / "runs" / "toy"
    return toy.advance(folder, toy.toy_recipe(teacher_file), ("ingest", "distill", "select"))


def with_student(patch: pytest.MonkeyPatch, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Let export find a student whose weights were changed."""
    real = artefacts.student_network

    def changed(run: RunDir) -> torch.nn.Module:
        network = real(run)
        change(network.state_dict())
        return network

    patch.setattr(artefacts, "student_network", changed)


def beyond_half_precision(state: dict[str, torch.Tensor]) -> None:
    """Scale what flows through the network, not what comes out of it."""
    for name in ("bn1.weight", "bn1.bias", "layer1.0.bn2.weight", "layer1.0.bn2.bias"):
        state[name] *= 1e3
    state["linear.weight"] /= 1e6


def infinite_inside(state: dict[str, torch.Tensor]) -> None:
    """Let a value that a ReLU makes 0 of be infinite."""
    state["layer1.0.bn2.bias"][0] = -math.inf


def undecided(state: dict[str, torch.Tensor]) -> None:
    """Give every class the same logit."""
    state["linear.weight"][:] = state["linear.weight"][0]
    state["linear.bias"][:] = 0


def test_half_precision_that_overflows_is_a_gate_that_failed(
    selected: RunDir, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_student(monkeypatch, beyond_half_precision)
    wanted = toy.toy_recipe(teacher_file, export={"int8": True, "target": "tensorrt"})
    run = toy.advance(Path(shutil.copytree(selected.path, tmp_path / "toy")), wanted, ("export",))
    with pytest.raises(GateError, match=r"student\.fp16\.onnx answers NaN or infinity"):
        export.refuse_failures(run)
    assert files(run) >= {"student.fp32.onnx", "student.int8-trt.onnx"}
    assert "student.fp16.onnx" not in files(run)
    found = json.loads((run.stage("export") / "parity.json").read_text())["student.fp16.onnx"]
    assert (found["passed"], found["max_difference"]) == (False, None)
    assert "infinity" in found["reason"]


def test_what_no_other_form_can_hold_is_published_in_fp32(
    selected: RunDir, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_student(monkeypatch, infinite_inside)
    wanted = toy.toy_recipe(teacher_file, export={"int8": True})
    run = toy.advance(Path(shutil.copytree(selected.path, tmp_path / "toy")), wanted, ("export",))
    assert files(run) == {"student.fp32.onnx"}
    fp16, int8 = r"student\.fp16\.onnx: weight .* exceeds", r"student\.int8-cpu-arm\.onnx: activation .* not finite"
    with pytest.raises(GateError, match=f"{fp16}.*{int8}"):
        export.refuse_failures(run)
    assert numbers(run, "parity")["student.fp16.onnx"]["passed"] is False
    agreed = numbers(run, "agreement")
    assert "exceeds" in agreed["chain"]["student -> student.fp16.onnx"]["reason"]
    assert agreed["int8"]["student.int8-cpu-x86.onnx"]["passed"] is False
    assert "not finite" in agreed["int8"]["student.int8-cpu-x86.onnx"]["reason"]


def test_a_student_near_ties_costs_only_the_files_that_need_its_answers(
    selected: RunDir, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_student(monkeypatch, undecided)
    wanted = toy.toy_recipe(teacher_file, export={"int8": True})
    run = toy.advance(Path(shutil.copytree(selected.path, tmp_path / "runs" / "toy")), wanted, ("export",))
    assert files(run) == {"student.fp32.onnx", "student.fp16.onnx"}
    with pytest.raises(
        GateError, match=r"int8-cpu-x86\.onnx: none of 64 samples .*; student\.int8-cpu-arm\.onnx: none"
    ):
        export.refuse_failures(run)
    report = json.loads((run.stage("export") / "agreement.json").read_text())
    assert report["chain"]["student -> student.fp32.onnx"]["share"] is None
    assert report["chain"]["teacher -> student"]["share"] is not None
    assert "none of 64 samples" in report["int8"]["student.int8-cpu-x86.onnx"]["reason"]
    assert comparing.agreements(run) == {}
    monkeypatch.chdir(tmp_path)
    shown = Result("export", "toy", "--no-int8")
    assert shown.exit_code == 0, shown.stderr
    row = next(line for line in shown.stdout.splitlines() if line.startswith("student -> student.fp32.onnx"))
    assert row.split()[-2:] == ["–", "0"]


def test_uint8_input_takes_pixels(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file, export={**ALL, "uint8_input": True}, pixels=PIXELS)
    run = toy.advance(tmp_path / "toy", wanted)
    samples = ExportSamples.of_run(run, Normalization((0.5,), (0.25,)))
    (pixels,) = samples.stream("test", 64)()
    assert pixels.dtype == np.uint8
    student = artefacts.student_network(run)
    floats = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
    expected = student(torch.from_numpy(floats.astype(np.float32))).numpy()
    assert len(files(run)) == 6
    for name in files(run):
        path = run.stage("export") / name
        properties = properties_of(path)
        assert (properties["edgekd.input_name"], properties["edgekd.normalization_in_graph"]) == ('"image"', "true")
        session = ort_session.open_session(path, as_written="trt" in name)
        (entry,) = session.get_inputs()
        assert (entry.name, entry.type) == ("image", "tensor(uint8)")
        tolerance = {"fp32": 1e-4, "fp16": 5e-3}.get(name.split(".")[1], 0.2)
        assert np.ptp(ort_session.logits(session, pixels) - expected) <= tolerance * np.ptp(expected), name
        for version in FLAVORS[name[13:-5]].tensorrt_versions if "int8" in name else ():
            assert qdq_check.check(path, version) == []


def test_uint8_input_needs_the_normalization(teacher_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--normalize"):
        toy.advance(tmp_path / "toy", toy.toy_recipe(teacher_file, export={"uint8_input": True}))
    assert Record.read(tmp_path / "toy" / "export") is None


def test_memory_does_not_grow_with_the_number_of_calibration_samples(
    exported: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = 0, 0
    batches = Sampler.batches

    def gone(size: int) -> None:
        nonlocal alive
        alive -= size

    def counted(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        nonlocal alive, most
        for batch in batches(*arguments, **options):
            alive += batch.nbytes
            most = max(most, alive)
            weakref.finalize(batch, gone, batch.nbytes)
            yield batch
            del batch

    monkeypatch.setattr(Sampler, "batches", counted)
    samples = ExportSamples.of_run(exported, None)
    fp32 = exported.stage("export") / "student.fp32.onnx"
    peaks = []
    for count in (128, 1280):
        most = 0
        assert collect_ranges(fp32, samples.stream("export/calibration", count)).samples == count
        peaks.append(most)
    assert peaks[1] == peaks[0] <= 2 * 64 * 4 * 64


def test_held_out_samples_beyond_a_bound_are_drawn_anew(exported: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = ExportSamples.of_run(exported, None).stream("test", 130)
    held = cached_batches(samples)
    assert [a is b for a, b in zip(held(), held(), strict=True)] == [True] * 3
    monkeypatch.setattr("edgekd.export.samples.CACHE_BYTES", 64 * 64 * 4)
    drawn = cached_batches(samples)
    assert [a is b for a, b in zip(drawn(), drawn(), strict=True)] == [False] * 3
    assert all(np.array_equal(a, b) for a, b in zip(drawn(), held(), strict=True))


def test_calibrating_on_real_images_is_said_everywhere(
    exported: RunDir, photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = RunDir(Path(shutil.copytree(exported.path, tmp_path / "toy")))
    table = {"int8": True, "images": str(photos)}
    toy.advance(run.path, toy.toy_recipe(teacher_file, export=table, pixels=PIXELS), ("export",))
    calibration = json.loads((run.stage("export") / "calibration.json").read_text())
    assert (calibration["data_free"], calibration["sources"], calibration["samples"]) == (False, ["real images"], 20)
    assert numbers(run, "agreement")["data_free"] is False
    assert {found["headroom"] for found in numbers(run, "agreement")["int8"].values()} == {1.0}, (
        "these are as wide as real"
    )
    for name in files(run):
        assert properties_of(run.stage("export") / name)["edgekd.data_free"] == "false"
    ledger = run.ledger()
    assert (ledger.data_free, ledger.real_images_read) == (False, 20)
    assert ledger.real_images[-1].purpose == "calibration"
    summary = report.collect(run)
    assert "Made from REAL IMAGES" in report.page(run, summary).split("</p>")[0]
    assert data_free_warning(summary.data_free).startswith("NOT data-free")
    before = toy.fingerprint(run)
    toy.advance(run.path, toy.toy_recipe(teacher_file, export=ALL, pixels=PIXELS), ("export",))
    assert run.ledger().data_free is True, "nothing that real images had a part in is left"
    assert toy.fingerprint(run) != before
    names = (*files(run), "calibration.json", "agreement.json", "parity.json")
    assert all((run.stage("export") / n).read_bytes() == (exported.stage("export") / n).read_bytes() for n in names)


def _stop_after_reading(what: str) -> None:
    if not what.startswith("reading"):
        raise StoppedEarly(what)


def test_an_export_on_real_images_that_was_stopped_leaves_the_one_before_it_data_free(
    exported: RunDir, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(shutil.copytree(exported.path, tmp_path / "runs" / "toy")))
    wanted = with_changes(pipeline.open_recipe(run), {"export": {"images": str(photos)}})
    with pytest.raises(StoppedEarly):
        export.export_student(Execution(EXPORT, run, wanted, pipeline.RunStatus(run, wanted).inputs(EXPORT), Stop(0)))
    assert (run.ledger().real_images_read, run.ledger().data_free) == (0, True)
    monkeypatch.setattr(Stop, "raise_if_requested", lambda _stop, what="": _stop_after_reading(what))
    with pytest.raises(StoppedEarly):
        export.export_student(Execution(EXPORT, run, wanted, pipeline.RunStatus(run, wanted).inputs(EXPORT), Stop()))
    monkeypatch.undo()
    assert (run.ledger().real_images_read, run.ledger().data_free) == (20, True)
    assert report.collect(run).data_free is True
    monkeypatch.chdir(tmp_path)
    again = Result("export", "toy")
    assert "already done" in again.stderr
    assert "NOT data-free" not in again.stderr
    assert run.ledger().data_free is True


def test_clipping_of_real_images_is_of_the_ranges_that_the_file_was_made_with(
    exported: RunDir, photos: Path, tmp_path: Path
) -> None:
    run = RunDir(Path(shutil.copytree(exported.path, tmp_path / "toy")))
    decided = numbers(run, "agreement")

    def rate(headroom: float) -> float:
        for found in decided["int8"].values():
            found["headroom"] = headroom
        (run.stage("export") / "agreement.json").write_text(json.dumps(decided))
        found = clipping.measure_clipping(run, pipeline.open_recipe(run), unlabeled(run, photos, purpose="clipping"))
        rates = found["student.int8-cpu-x86.onnx"].images
        assert rates is not None
        return rates.overall

    assert rate(0.1) > rate(1.0) >= rate(10.0)


def test_clipping_of_real_images_changes_no_file(exported: RunDir, photos: Path, tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(exported.path, tmp_path / "toy")))
    before = toy.fingerprint(run)
    found = clipping.measure_clipping(run, pipeline.open_recipe(run), unlabeled(run, photos, purpose="clipping"))
    assert toy.fingerprint(run) == before
    assert set(found) == {name for name in files(run) if "int8" in name}
    for rates in found.values():
        assert rates.images is not None
        assert "input" in rates.images.tensors
        assert set(rates.images.tensors) == set(rates.held_out.tensors)
        assert 0 < rates.images.overall < 1
    ledger = run.ledger()
    assert (ledger.data_free, ledger.real_images_read, ledger.real_images[-1].purpose) == (True, 20, "clipping")


@pytest.fixture
def elsewhere(tmp_path: Path) -> export.ExternalStudent:
    network = registry.build(toy.ARCH, input_shape=toy.SHAPE, classes=toy.CLASSES, seed=9)
    torch.save(network.state_dict(), tmp_path / "other.pt")
    return export.ExternalStudent(tmp_path / "other.pt", toy.ARCH, tmp_path / "out" / "files")


def whole(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_student_from_elsewhere_gets_a_folder_of_its_own(exported: RunDir, elsewhere: export.ExternalStudent) -> None:
    before = whole(exported.path)
    recipe = with_changes(pipeline.open_recipe(exported), {"export": {"target": "cpu"}})
    mine = elsewhere.out.with_name(f".tmp-{elsewhere.out.name}")
    mine.mkdir(parents=True)
    (mine / "notes.md").write_text("mine")
    assert export.export_external(exported, recipe, elsewhere, Stop()) is True
    assert (mine / "notes.md").read_text() == "mine"
    assert whole(exported.path) == before
    record = Record.read(elsewhere.out)
    assert record is not None
    assert record.damaged_output(elsewhere.out) is None
    assert record.inputs["student"] == sha256_of(elsewhere.file)
    assert record.inputs["select/replay.safetensors"] == sha256_of(exported.path / "select" / "replay.safetensors")
    assert {"student.fp32.onnx", "student.int8-cpu-x86.onnx", "calibration.json"} <= set(record.outputs)
    for path in elsewhere.out.glob("*.onnx"):
        properties = properties_of(path)
        assert (properties["edgekd.run"], properties["edgekd.student"]) == ("toy", '"elsewhere"')
        assert json.loads(properties["edgekd.student_sha256"]) == sha256_of(elsewhere.file)
        assert "edgekd.data_free" not in properties, "what it was trained on is not known"
    for name in ("agreement", "calibration"):
        assert json.loads((elsewhere.out / f"{name}.json").read_text())["data_free"] is None
    network = registry.build(toy.ARCH, input_shape=toy.SHAPE, classes=toy.CLASSES, seed=9).eval()
    x = drawn(exported, 16)
    found = ort_session.logits(ort_session.open_session(elsewhere.out / "student.fp32.onnx"), x.numpy())
    np.testing.assert_allclose(found, network(x).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert export.export_external(exported, recipe, elsewhere, Stop()) is False, "done already"
    elsewhere.out.rename(elsewhere.out.with_name(f".edgekd-old-{elsewhere.out.name}"))  # a kill between two renames
    assert export.export_external(exported, recipe, elsewhere, Stop()) is False, "brought back"
    (elsewhere.out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        export.export_external(exported, recipe, elsewhere, Stop())


def test_real_images_for_a_student_from_elsewhere_stand_in_its_folder_alone(
    exported: RunDir, elsewhere: export.ExternalStudent, photos: Path
) -> None:
    before = whole(exported.path)
    changes = {"export": {"target": "cpu", "images": str(photos)}}
    export.export_external(exported, with_changes(pipeline.open_recipe(exported), changes), elsewhere, Stop())
    assert whole(exported.path) == before
    record = Record.read(elsewhere.out)
    assert record is not None
    assert (record.notes["data_free"], record.notes["real_images"]) == (False, 20)
    assert {properties_of(path)["edgekd.data_free"] for path in elsewhere.out.glob("*.onnx")} == {"false"}


def test_a_student_that_answers_nan_is_refused(exported: RunDir, elsewhere: export.ExternalStudent) -> None:
    state = torch.load(elsewhere.file)
    state["bn1.running_var"][0] = -1
    torch.save(state, elsewhere.file)
    with pytest.raises(GateError, match="NaN or infinity"):
        export.export_external(exported, pipeline.open_recipe(exported), elsewhere, Stop())
    assert not elsewhere.out.exists()


def test_a_student_from_elsewhere_that_does_not_fit_leaves_nothing(
    exported: RunDir, elsewhere: export.ExternalStudent, tmp_path: Path
) -> None:
    recipe = pipeline.open_recipe(exported)
    wider = registry.build(toy.ARCH, input_shape=toy.SHAPE, classes=7, seed=9)
    torch.save(wider.state_dict(), tmp_path / "wider.pt")
    for change, error, words in (
        ({"file": tmp_path / "missing.pt"}, InputFileError, "missing"),
        ({"file": tmp_path / "wider.pt"}, InputFileError, "4 classes"),
        ({"arch": "lenet5"}, (InputFileError, UsageError), "lenet5|LeNet"),
        ({"arch": "resnt8"}, UsageError, "Did you mean"),
        ({"out": exported.stage("export")}, UsageError, "in the run"),
        ({"out": exported.path.parent}, UsageError, "in the run|run in it"),
        ({"out": elsewhere.file}, UsageError, "is a file"),
    ):
        with pytest.raises(error, match=words):
            export.export_external(exported, recipe, replace(elsewhere, **change), Stop())
    assert not elsewhere.out.parent.exists()
