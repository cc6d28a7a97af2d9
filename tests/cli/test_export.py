"""Exports of a run's student, and of one from elsewhere."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import Result

import toy
from edgekd import recipe


def test_flags_of_export_are_kept_and_taken_back(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/other"], check=True)
    assert Result("export", "other", "--no-int8").exit_code == 0
    assert not list(Path("runs/other/export").glob("*int8*"))
    assert recipe.load_resolved(Path("runs/other/recipe.toml")).export.int8 is False
    assert "already done" in Result("export", "other").stderr
    pruned = Result("prune", "other", "--json").json()["removed"]
    assert "select/replay.safetensors" in pruned
    assert not Path("runs/other/select/replay.safetensors").exists()
    assert {s["state"] for s in Result("status", "other", "--json").json()["stages"][:4]} == {"done"}
    refused = Result("export", "other", "--int8")
    assert refused.exit_code == 2
    assert "pruned" in refused.stderr


@pytest.mark.slow
def test_export_measures_clipping_and_calibrates_on_real_images_only_when_asked(
    finished: tuple[Path, Result], monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/images"], check=True)
    clipped = Result("export", "images", "--calib-data", "images", "--json").json()
    assert set(clipped["clipping"]) == {"student.int8-cpu-x86.onnx", "student.int8-cpu-arm.onnx"}
    assert clipped["data_free"] is True
    assert "real images" in Result("export", "images", "--calib-data", "images").stdout
    assert Result("export", "images", "--calib-data", "nowhere").exit_code == 4
    assert Result("export", "images", "--no-int8", "--calib-data", "images").exit_code == 2
    assert Result("export", "images", "--no-int8", "--images", "images").exit_code == 2
    assert Result("export", "images", "--no-int8", "--set", "export.calibrate_on_real=images").exit_code == 2
    assert recipe.load_resolved(Path("runs/images/recipe.toml")).export.int8 is True
    real = Result("export", "images", "--images", "images")
    assert real.exit_code == 0
    assert "NOT data-free" in real.stderr
    for verb in (("bench",), ("eval", "--data", "images"), ("status",), ("report",)):
        assert "NOT data-free" in Result(verb[0], "images", *verb[1:]).stderr, verb
    assert json.loads(Path("runs/images/bench/local/results.json").read_text())["data_free"] is False
    assert json.loads(Path("runs/images/eval/images.json").read_text())["data_free"] is False


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_of_a_student_from_elsewhere_names_what_is_missing(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    weights, out = tmp_path / "student.safetensors", tmp_path / "out"
    weights.write_bytes((folder / "runs/toy/select/student.safetensors").read_bytes())
    flags = {"--student-weights": weights, "--arch": toy.STUDENT, "--out": out}
    for left_out in flags:
        given = [part for flag, value in flags.items() if flag != left_out for part in (flag, value)]
        refused = Result("export", "toy", *given)
        assert (refused.exit_code, f"{left_out} " in refused.stderr) == (2, True)
    everything = [part for pair in flags.items() for part in pair]
    assert Result("export", "toy", *everything, "--calib-data", "images").exit_code == 2
    assert Result("export", "nowhere", *everything).exit_code == 2
    for idle in ("seed=5", "select.samples=128", "machine.device=cuda"):
        refused = Result("export", "toy", *everything, "--set", idle)
        assert (refused.exit_code, idle.split("=")[0] in refused.stderr) == (2, True)
    before = _content(folder / "runs")
    made = Result("export", "toy", *everything, "--set", "machine.threads=1", "--json").json()
    assert (made["out"], made["data_free"]) == (str(out), None)
    assert _content(folder / "runs") == before
    assert (out / "student.int8-cpu-x86.onnx").is_file()
    again = Result("export", "toy", *everything, "--set", "machine.threads=1").stderr
    assert "already done" in again
    assert "not known to be data-free" in again
