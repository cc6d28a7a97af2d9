"""The built wheel, installed elsewhere, brings its recipes and distils."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_wheel_works_elsewhere(teacher_file: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    options = ("--quiet", "--no-deps", "--no-index", "--target", site)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=tmp_path)
    assert not (site / "recipes").exists(), "recipes must not become a top-level package"
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import edgekd; print(edgekd.__file__)", cwd=tmp_path, env=env).stdout
    assert where.startswith(str(site))
    assert "pre-dfkd-released" in run(sys.executable, "-m", "edgekd", "recipes", cwd=tmp_path, env=env).stdout
    flags = ("--input", "1x8x8", "--student", "resnet8@0.25", "--steps", "2", "--threads", "1")
    sets = ("--set", "method.student.batch_size=8", "--set", "method.vae.novel=4", "--set", "select.samples=64")
    said = run(sys.executable, "-m", "edgekd", "distill", teacher_file, *flags, *sets, cwd=tmp_path, env=env).stderr
    assert "next" in said
    assert (tmp_path / "runs" / "teacher-resnet8@0.25" / "select" / "student.safetensors").is_file()
