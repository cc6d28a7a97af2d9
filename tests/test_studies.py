"""The scripts under docs/ that make docs/results/ run from end to end at toy length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import toy
from edgekd.deploy.agent.environment import this_machine

ROOT = Path(__file__).parent.parent
TINY = (
    *("--student", toy.STUDENT, "--input", "1x8x8", "--normalize", "none", "--threads", "1", "--device", "cpu"),
    *(f"--set=method.{key}" for key in ("generator.width=8", "generator.latent=8", "vae.latent=4", "vae.width=8")),
    *(f"--set=method.{key}" for key in ("student.batch_size=16", "replay.batch_size=8", "vae.novel=8")),
    *("--set=method.vae.rehearsed=4", "--set=select.samples=64", "--set=select.reestimate_batches=2"),
)


def images(folder: Path, classes: int, side: int, mode: str) -> Path:
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(2):
            picture = Image.effect_noise((side, side), 20 * (label + 1)).convert(mode)
            picture.save(folder / str(label) / f"{index}.png")
    return folder


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, f"docs/{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("data") / "images", toy.CLASSES, 8, "L")


@pytest.fixture(scope="module")
def run(teacher_file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation with its curve and an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    command = [sys.executable, "-m", "edgekd", "distill", str(teacher_file), *TINY, "--steps", "8"]
    subprocess.run([*command, "--data", str(data), "--run", str(folder)], check=True, capture_output=True)
    evaluate = [sys.executable, "-m", "edgekd", "eval", str(folder), "--data", str(data)]
    subprocess.run(evaluate, check=True, capture_output=True)
    return folder


def test_collected_runs_have_curves_figures_and_no_path_of_this_machine(run: Path, tmp_path: Path) -> None:
    script("collect.py", tmp_path / "out.json", tmp_path / "out.svg", f"a={run}", "--note", "how")
    found = content(tmp_path / "out.json")
    assert found["note"] == "how"
    facts = found["runs"]["a"]
    assert {"mean", "sd", "variance", "max", "final", "regret"} <= set(facts["curve"])
    assert facts["steps"] == 8
    assert str(tmp_path.parent) not in json.dumps(found)
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")


def test_selection_shows_agreement_beside_accuracy_for_every_candidate(run: Path, data: Path, tmp_path: Path) -> None:
    script("selection.py", tmp_path / "out.json", f"a={run}={data}")
    found = content(tmp_path / "out.json")
    row = found["runs"]["a"]
    assert set(row["candidates"]) == {"raw", "ema", "raw+batchnorm", "ema+batchnorm"}
    best = max(candidate["accuracy"] for candidate in row["candidates"].values())
    assert row["cost"] == best - row["candidates"][row["chosen"]]["accuracy"]
    assert row["right"] == (row["cost"] == 0)
    assert found["summary"]["runs"] == 1


@pytest.mark.slow
def test_the_ablation_goes_through_every_ingredient_both_ways(teacher_file: Path, data: Path, tmp_path: Path) -> None:
    arguments = (tmp_path / "out.json", teacher_file, data, tmp_path / "runs", "--steps", 2, "--seeds", "1", *TINY)
    script("ablation.py", *arguments)
    rows = content(tmp_path / "out.json")["rows"]
    plain = {label for label in rows if " with" not in label}
    assert plain == {"edgekd", "pre-dfkd"}
    assert len(rows) > 15
    assert all(rows[label]["changes"] != rows["edgekd"]["changes"] for label in rows if " without " in label)


@pytest.mark.slow
def test_int8_speed_names_the_machine_and_no_path_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "docs/int8_speed.py", str(tmp_path / "out.json"), "lenet5-half", "--toy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [(row["input"], row["threads"], row["toy"]) for row in rows] == [("3x32x32", 1, True), ("3x32x32", 2, True)]
    has = this_machine().int8_instructions
    for row in rows:
        assert set(row["latency_ms"]) == {"fp32", "int8-cpu-x86"}
        assert row["int8_instructions"] == has
        assert any("no VNNI" in warning for warning in row["warnings"]) == (not has)
        assert not any("/bin/" in str(fact) for fact in row["environment"].values())
    assert ("no VNNI" in done.stderr) == (not has)


@pytest.mark.slow
def test_the_gpu_check_goes_through_at_toy_length_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for part in ("train", "test"):
        images(tmp_path / "cifar10" / part, 10, 32, "RGB")
    arguments = (tmp_path, tmp_path / "runs", tmp_path / "out", "--toy")
    assert "time is up" in script("gpu.py", *arguments, "--max-seconds", 1)
    script("gpu.py", *arguments, "--max-seconds", 900)
    written = sorted(path.stem for path in (tmp_path / "out").iterdir())
    assert written == ["resnet34-resnet18", "wrn-40-2-wrn-16-1", "wrn-40-2-wrn-16-2"]
    found = content(tmp_path / "out" / "wrn-40-2-wrn-16-1.json")
    assert found["toy"] is True
    assert set(found["runs"]) == {"edgekd", "pre-dfkd"}
    assert {"seconds_per_step", "utilisation", "peak_memory_bytes"} <= set(found["plans"][1])
