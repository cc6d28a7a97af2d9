"""The doctor tells facts and names what works other than it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgekd import machine
from edgekd.cli.verbs import doctor
from edgekd.machine import Precision


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def examine(monkeypatch: pytest.MonkeyPatch, *, speedup: float, bf16: bool) -> list[str]:
    monkeypatch.setattr(doctor, "bf16_speedup", lambda device: speedup)
    monkeypatch.setattr(machine, "precision_for", lambda network, device, wanted: Precision(device, bf16))
    monkeypatch.setattr(doctor, "runtime_conflict", lambda environment: None)
    problems: list[str] = doctor.examine()["problems"]
    return problems


def test_the_facts_are_there() -> None:
    facts = doctor.examine()["facts"]
    assert facts["torch"] == torch.__version__
    assert facts["threads"] >= 1
    assert "CPUExecutionProvider" in facts["onnxruntime"]
    assert "times as fast as fp32 (auto uses" in facts["bf16 convolutions"]


@pytest.mark.parametrize(
    ("speedup", "bf16", "word"), [(0.5, True, 'precision = "fp32"'), (3.0, False, 'precision = "bf16"')]
)
def test_a_wrong_table_of_precisions_is_a_problem(
    speedup: float, bf16: bool, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = examine(monkeypatch, speedup=speedup, bf16=bf16)
    assert word in problem


@pytest.mark.parametrize(("speedup", "bf16"), [(3.0, True), (1.0, True), (0.5, False), (1.2, False)])
def test_a_right_table_is_none(speedup: float, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(monkeypatch, speedup=speedup, bf16=bf16) == []


@pytest.mark.slow
def test_two_runtimes_over_each_other_are_told_even_where_neither_can_be_imported(tmp_path: Path) -> None:
    for name, version in {"onnxruntime": "1.2.0", "onnxruntime-gpu": "1.3.0"}.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "onnxruntime").mkdir()  # what is left of a mixture: a package without its content
    (tmp_path / "onnxruntime" / "__init__.py").write_text("from onnxruntime.capi import nothing\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgekd", "doctor", "--json"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["facts"]["onnxruntime"] == "unusable"
    (conflict,) = [problem for problem in found["problems"] if "installed over each other" in problem]
    assert f"{sys.executable} -m pip uninstall -y onnxruntime onnxruntime-gpu && " in conflict
    assert "-m pip install onnxruntime" in conflict
    assert any("onnxruntime cannot be imported" in problem for problem in found["problems"])


def test_the_speedup_is_a_ratio_of_times() -> None:
    assert 0.001 < doctor.bf16_speedup(torch.device("cpu"), repeats=1) < 100
