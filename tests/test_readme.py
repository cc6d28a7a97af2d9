"""Every `$ edgekd` line of the README works, in order, at toy length, and shows what it printed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekd.cli import program

ROOT = Path(__file__).parent.parent
EXCEPTIONS: dict[str, str] = {}
"""Lines that are not run, each with the reason."""
TOY = {
    "distill": [
        "--threads",
        "1",
        "--steps",
        "4",
        "--set",
        "method.student.batch_size=8",
        "--set",
        "method.vae.novel=4",
    ],
    "run": [
        "--threads",
        "1",
        "--set",
        "method.steps=4",
        "--set",
        "bench.min_runs=10",
        "--set",
        "export.min_int8_agreement=0.0",
    ],
    "export": ["--set", "export.min_int8_agreement=0.0"],
    "bench": ["--seconds", "0.1"],
}


def commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ edgekd")]
    return [shlex.split(line, comments=True)[1:] for line in lines if line not in EXCEPTIONS]


def write_digits(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("digits", ROOT / "recipes" / "quickstart" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(folder)


def without_steps(arguments: list[str]) -> list[str]:
    """Drop the tour's own length, which the toy length replaces."""
    for flag in ("--minutes", "--steps"):
        if flag in arguments:
            position = arguments.index(flag)
            arguments = arguments[:position] + arguments[position + 2 :]
    return arguments


@pytest.mark.slow
def test_the_tour_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    write_digits(tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    tour = commands()
    assert {"distill", "export", "bench", "report", "status", "eval", "doctor", "recipes"} <= {c[0] for c in tour}
    for arguments in tour:
        result = CliRunner().invoke(program.app, without_steps(arguments) + TOY.get(arguments[0], []))
        assert result.exit_code == 0, f"edgekd {shlex.join(arguments)}: {result.output}{result.exception}"


def test_the_output_shown_in_the_tour_is_what_was_printed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    printed = set((ROOT / "docs" / "studies" / "tour" / "tour.txt").read_text(encoding="utf-8").splitlines())
    shown = [line for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for line in shown:
        assert line in printed or line == "…" or line.startswith("$ make "), line


def test_the_readme_names_exactly_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\$ (make [a-z-]+)$", text, flags=re.MULTILINE)) == {"make quickstart", "make test"}
