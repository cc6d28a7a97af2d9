"""`edgekd bench` elsewhere and `edgekd bundle`, as they are typed: flags, exit codes, what is printed and published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import standins
from command import Result
from sshd import Device, device, sshd_device  # noqa: F401 - fixtures

import toy
from edgekd import recipe
from edgekd.agent.measure import measure_jobs
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.bench import comparing, golden, measuring, sized_students
from edgekd.bench import device as stages_device
from edgekd.bench.results import Results
from edgekd.errors import InputFileError, MachineError
from edgekd.export import ort_session
from edgekd.export.graph import set_metadata
from edgekd.run.directory import RunDir
from tiny_onnx import conv_net, endless_net


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    patient = comparing.settings_of
    short: dict[str, Any] = {"rounds": 2, "min_runs": 10, "min_seconds": 0.02, "warm_up_seconds": 0.2}
    monkeypatch.setattr(
        comparing, "settings_of", lambda table: [replace(settings, **short) for settings in patient(table)]
    )
    monkeypatch.setattr(sized_students, "SETTINGS", BenchSettings(**short))


@pytest.fixture(scope="module")
def exported(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    toy.advance(folder / "runs" / "toy", toy.toy_recipe(teacher_file, method={"steps": 3}))
    return folder


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "toy"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--clean",), "--clean belongs to a device: give it with --on user@host"),
        (("--trtexec", "/x"), "--trtexec belongs to a device"),
        (("--python", "python3.9"), "--python belongs to a device"),
        (("--runtime", "ort-gpu"), "there is no runtime 'ort-gpu' (known: ort-cpu"),
        (("--on", "-oProxyCommand=x"), "--on takes user@host"),
        (("--on", "device", "--import", "x.json"), "not with --on"),
        (("net.onnx", "--runtime", "torch"), "an ONNX file has no PyTorch network"),
        (("toy", "--on", "nowhere", "--runtime", "torch"), "a device runs ONNX files"),
        (("toy", "--input", "3x8x8"), "--input belongs to an ONNX file"),
    ],
)
def test_flags_that_do_not_fit_are_told(arguments: tuple[str, ...], word: str, run: Path) -> None:
    conv_net(Path("net.onnx"))
    result = Result("bench", *arguments)
    assert (result.exit_code, word in result.stderr) == (2, True), result.stderr


def test_any_onnx_classifier_is_measured_without_a_run() -> None:
    conv_net(Path("open.onnx"), shape=("N", 3, "H", "W"))
    refused = Result("bench", "open.onnx")
    assert (refused.exit_code, "3x224x224" in refused.stderr) == (2, True)
    result = Result("bench", "open.onnx", "--input", "3x9x7", "--batch", "1,2", "--json")
    assert result.exit_code == 0, result.stderr
    assert [row["batch"] for row in result.json()["results"]] == [1, 2]
    assert Result("bench", "absent.onnx").exit_code == 4
    assert list(Path().iterdir()) == [Path("open.onnx")]


@pytest.mark.parametrize(
    ("properties", "data_free", "words"),
    [
        ({}, "absent", ""),
        ({"edgekd.run": "toy", "edgekd.data_free": "true"}, True, ""),
        ({"edgekd.run": "toy", "edgekd.data_free": "false"}, False, "NOT data-free"),
        ({"edgekd.run": "toy", "edgekd.student": '"elsewhere"'}, None, "not known to be data-free"),
    ],
)
def test_a_file_says_itself_what_it_was_made_of(
    properties: dict[str, str], data_free: bool | str | None, words: str
) -> None:
    model = onnx.load(conv_net(Path("net.onnx")))
    set_metadata(model, properties)
    onnx.save(model, "net.onnx")
    result = Result("bench", "net.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.json().get("data_free", "absent") == data_free
    line = result.line("result")
    assert words in line
    assert words or "data-free" not in line


def test_a_bundle_of_files_that_real_images_shaped_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data_free in (True, False):
        monkeypatch.setattr(RunDir, "data_free", lambda self, answer=data_free: answer)
        made = Result("bundle", "toy", "--json")
        assert (made.exit_code, made.json()["data_free"]) == (0, data_free)
        assert ("NOT data-free" in made.line("result")) == (not data_free)


def test_a_fixed_batch_is_the_default_and_all_are_checked_before_any_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv_net(Path("fixed.onnx"), shape=(8, 3, 8, 8))
    result = Result("bench", "fixed.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    assert [row["batch"] for row in result.json()["results"]] == [8]
    monkeypatch.setattr(measuring, "measure_jobs", lambda *_, **__: pytest.fail("measured"))
    for batches in ("1", "8,1"):
        refused = Result("bench", "fixed.onnx", "--batch", batches)
        assert (refused.exit_code, "give --batch 8" in refused.stderr) == (2, True), refused.stderr


@pytest.mark.parametrize(
    ("shape", "flags", "following"),
    [
        (("N", 3, "H", "W"), ("--input", "3x9x7"), "--input 3x9x7 --batch 1,8"),
        (("N", 3, 8, 8), ("--batch", "2", "--seconds", "0.5"), "--batch 2 --seconds 0.5 --threads 1,2"),
        ((8, 3, 8, 8), (), "--threads 1,2"),
        ((8, 3, 8, 8), ("--threads", "1", "--set", "bench.rounds=3"), "--threads 1 --set bench.rounds=3"),
        (
            ("N", 3, 8, 8),
            ("--on", "x", "--python", "p y", "--no-energy"),
            "--on x --python 'p y' --no-energy --batch 1,8",
        ),
    ],
)
def test_the_next_command_keeps_the_flags_and_fits_the_file(
    shape: tuple[int | str, ...], flags: tuple[str, ...], following: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv_net(Path("net.onnx"), shape=shape)
    found = Results(None, (), {}, ())
    monkeypatch.setattr(measuring, "measure_side_by_side", lambda *_, **__: (found, []))
    monkeypatch.setattr(stages_device, "on_device", lambda *_, **__: found)
    result = Result("bench", "net.onnx", *flags)
    assert result.exit_code == 0, result.stderr
    assert f"edgekd bench net.onnx {following}\n" in result.stderr.replace("\n         ", " ")


def test_a_tensorrt_of_which_nothing_is_known_times_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standins.write_unknown_trtexec(tmp_path, 9200)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    conv_net(Path("net.onnx"))
    result = Result("bench", "net.onnx", "--runtime", "tensorrt")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "nothing could be run: net.onnx [tensorrt]: n/a: TensorRT 9.2.0 is installed" in result.stderr


def test_a_file_that_is_no_onnx_file_is_told_to_be_one() -> None:
    Path("plain.ort").write_bytes(b"x")
    result = Result("bench", "plain.ort")
    assert (result.exit_code, "plain.ort is a file, and no run is called so" in result.stderr) == (2, True)


def two_files(folder: Path = Path()) -> None:
    """Write net.onnx and net.onnx.data, as PyTorch exports a network."""
    conv_net(folder / "one.onnx")
    model = onnx.load(folder / "one.onnx")
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.onnx.data")


def test_weights_in_a_file_beside_it_are_a_part_of_the_file() -> None:
    two_files()
    result = Result("bench", "net.onnx", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = result.json()["results"]
    assert row["size_bytes"] == sum(Path(name).stat().st_size for name in ("net.onnx", "net.onnx.data"))
    data = bytearray(Path("net.onnx.data").read_bytes())
    data[0] ^= 1
    Path("net.onnx.data").write_bytes(data)
    assert Result("bench", "net.onnx", "--json").json()["results"][0]["sha256"] != row["sha256"]


def test_weights_in_a_file_beside_it_travel(device: Device) -> None:  # noqa: F811
    two_files()
    result = Result("bench", "net.onnx", "--on", "device", "--no-energy", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.json()["results"][0]["size_bytes"] > Path("net.onnx.data").stat().st_size


@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph", "sparse"])
@pytest.mark.parametrize("location", ["../net.onnx.data", "link.data", "below/net.onnx.data", "", "fifo", "x" * 300])
def test_weights_anywhere_else_are_refused(location: str, where: str) -> None:
    Path("below").mkdir()
    for place in ("../net.onnx.data", "below/net.onnx.data"):
        Path(place).write_bytes(bytes(4096))
    Path("link.data").symlink_to("below/net.onnx.data")
    os.mkfifo("fifo")
    model = onnx.load(conv_net(Path("one.onnx")))
    weight = model.graph.initializer[0]
    outside = onnx.TensorProto()
    outside.CopyFrom(weight)
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=location)
    if where == "initializer":
        weight.CopyFrom(outside)
    elif where == "sparse":
        model.graph.sparse_initializer.add(values=outside, dims=[10])
    else:
        constant = onnx.helper.make_node("Constant", [], ["outside"], value=outside)
        graph = onnx.helper.make_graph([constant], "g", [], [])
        model.graph.node.append(constant if where == "constant" else onnx.helper.make_node("If", ["c"], ["o"], g=graph))
    Path("net.onnx").write_bytes(model.SerializeToString())
    result = Result("bench", "net.onnx")
    assert (result.exit_code, "only a file beside it is read" in result.stderr) == (4, True), result.stderr


def test_weights_that_did_not_come_along_or_in_part_are_named() -> None:
    two_files()
    whole = Path("net.onnx.data").read_bytes()
    Path("net.onnx.data").write_bytes(whole[:-7])
    short = Result("bench", "net.onnx")
    assert (short.exit_code, f"net.onnx.data holds {len(whole) - 7:,} bytes" in short.stderr) == (4, True), short.stderr
    Path("net.onnx.data").unlink()
    none = Result("bench", "net.onnx")
    assert (none.exit_code, "'net.onnx.data', which is not there; copy" in none.stderr) == (4, True), none.stderr


def test_a_place_that_is_written_with_a_dot_is_beside_it() -> None:
    two_files()
    model = onnx.load("net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "./net.onnx.data"
    Path("net.onnx").write_bytes(model.SerializeToString())
    result = Result("bench", "net.onnx", "--json")
    assert result.exit_code == 0, result.stderr


def test_a_loop_without_an_end_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    endless_net(Path("net.onnx"))
    monkeypatch.setattr(ort_session, "LONGEST_RUN_S", 0.5)
    with pytest.raises(InputFileError, match=r"not answered within 0\.5 s; has the model a Loop without an end"):
        golden.reference_logits(Path("net.onnx"), np.zeros((1, 3, 8, 8), np.float32))
    job = BenchJob("net.onnx", Path("net.onnx"))
    with pytest.raises(MachineError, match='no answer to "load" within 3 s'):
        measure_jobs([job], BenchSettings(reply_timeout_s=3.0))


def test_a_name_in_capitals_is_a_file() -> None:
    assert "NET.ONNX is not a file" in Result("bench", "NET.ONNX").stderr


def test_a_run_there(device: Device, run: Path) -> None:  # noqa: F811
    before = (run / "recipe.toml").read_bytes()
    result = Result("bench", "toy", "--on", "device", "--batch", "2")
    assert result.exit_code == 0, result.stderr
    assert "copy     1/" in result.stderr
    assert "bench/device/results.json" in result.stderr
    found = json.loads((run / "bench/device/results.json").read_text())
    assert {row["batch"] for row in found["results"]} == {2}
    assert (run / "recipe.toml").read_bytes() == before, "a device's flags make nothing stale here"
    assert "On device" in (Result("report", "toy").stderr and (run / "report/report.html").read_text())
    cleaned = Result("bench", "--on", "device", "--clean", "--json")
    assert (cleaned.exit_code, cleaned.json()["target"]) == (0, "device")
    device.known_hosts.write_text("")
    refused = Result("bench", "toy", "--on", "device")
    assert refused.exit_code == 6
    assert "ssh device" in refused.stderr
    assert "ssh-copy-id device" in refused.stderr


def test_a_file_there(device: Device) -> None:  # noqa: F811
    conv_net(Path("net.onnx"))
    result = Result("bench", "net.onnx", "--on", "device", "--no-energy", "--json")
    assert result.exit_code == 0, result.stderr
    assert (result.json()["target"], result.json()["run"]) == ("device", None)
    assert [one["passed"] for one in result.json()["numerics"]] == [True]
    assert [path.name for path in (device.home / ".cache").iterdir()] == ["edgekd"], (
        "nothing of ONNX Runtime's telemetry"
    )


def test_a_bundle_there_and_back(run: Path, tmp_path: Path) -> None:
    made = Result("bundle", "toy", "--json")
    assert made.exit_code == 0, made.stderr
    assert "python3 student.pyz bench" in made.stderr
    home = tmp_path / "device"
    home.mkdir()
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(tmp_path / "student.pyz"), "check"], cwd=home, env=env, check=True)
    assert [path.name for path in home.iterdir()] == ["results.json"], "nothing of ONNX Runtime's telemetry"
    result = Result("bench", "toy", "--import", home / "results.json")
    assert result.exit_code == 0, result.stderr
    assert "1 of 1 artefacts compute there what they compute here" in result.stderr
    assert "-check/results.json" in result.stderr
    broken = json.loads((home / "results.json").read_text())
    broken["numerics"][0] |= {"passed": False, "max_difference": 0.5, "wrong_answers": 3}
    (home / "results.json").write_text(json.dumps(broken))
    wrong = Result("bench", "toy", "--import", home / "results.json")
    assert (wrong.exit_code, "do not ship that file" in wrong.stderr) == (5, True)
    assert Result("bundle", "toy", "--output", tmp_path / "no" / "x.pyz").exit_code == 6
    (home / "notes.txt").write_text("mine")
    assert Result("bundle", "toy", "--output", home / "notes.txt").exit_code == 2
    check = [sys.executable, str(tmp_path / "student.pyz"), "check", "--output", "notes.txt"]
    assert subprocess.run(check, cwd=home, env=env, check=False).returncode == 2
    assert (home / "notes.txt").read_text() == "mine"


def test_students_there(device: Device) -> None:  # noqa: F811
    result = Result("students", "lenet5-half", "--input", "1x16x16", "--measure", "--on", "device", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.json()["target"] == "device"
    assert result.json()["students"][0]["latency_ms"] > 0
    assert device.work == []
    assert Result("students", "--on", "device").exit_code == 2


@pytest.mark.slow
def test_a_student_is_chosen_there_once(device: Device, teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    small: tuple[str, ...] = ("--threads", "1", "--steps", "2", "--input", "1x8x8", "--set=method.student.batch_size=8")
    small += ("--set=method.vae.novel=4", "--set=select.samples=64", "--dry-run")
    asked = ("distill", teacher_file, *small, "--student", "auto", "--budget-ms", "5000", "--on", "device")
    first = Result(*asked)
    assert first.exit_code == 0, first.stderr
    assert "lenet5-half takes" in first.stderr
    assert "in FP32 on device" in first.stderr
    kept = recipe.load_resolved(Path("runs/teacher-auto-5000ms/recipe.toml")).student
    assert (kept.name, kept.auto_budget_ms, kept.auto_on) == ("lenet5-half", 5000.0, "device")
    monkeypatch.setattr(sized_students, "time_each", lambda *_, **__: pytest.fail("timed again"))
    assert Result(*asked).exit_code == 0
    assert Result("distill", teacher_file, *small, "--student", "lenet5-half", "--on", "device").exit_code == 2


@pytest.mark.parametrize("value", ["1.5", "nan", "1,x"])
def test_batches_and_threads_are_whole_numbers(value: str) -> None:
    for flag in ("--batch", "--threads"):
        result = Result("bench", "any.onnx", flag, value)
        assert (result.exit_code, f"{flag} takes whole numbers" in result.stderr) == (2, True)
