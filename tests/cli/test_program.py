"""The command line as a whole: help, examples, unknown names."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command import Result
from rich.text import Text

from edgekd.cli.program import VERBS, app
from edgekd.cli.verb import Verb


def test_help_is_instant_and_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import edgekd.cli.program"]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    modules = {line.split("|")[-1].strip() for line in imported.splitlines()}
    assert modules.isdisjoint({"torch", "pydantic", "onnx", "numpy", "matplotlib"})
    helped, bare = (
        min(_cpu_seconds([sys.executable, *arguments]) for _ in range(3))
        for arguments in (("-m", "edgekd", "--help"), ("-c", "import typer.rich_utils, rich.console"))
    )
    assert helped < 3 * bare  # not seconds: the next test may share this processor


def _cpu_seconds(command: list[str]) -> float:
    """Return the processor time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_no_word_of_a_help_is_taken_for_markup() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    texts = [str(getattr(one, "help", "") or "") for verb in command.commands.values() for one in verb.params]
    assert len(texts) > 50
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_each_help_ends_with_two_examples(verb: Verb) -> None:
    text = Result(verb.name, "--help").stdout
    assert text.index("Examples") > text.index("Options")
    assert text.split("Examples")[1].count(f"$ edgekd {verb.name}") >= (1 if verb.name == "doctor" else 2)


def test_unknown_names_get_a_suggestion(here: Path, teacher_file: Path) -> None:
    student = Result("distill", teacher_file, "--student", "mobilnetv2", "--input", "1x8x8")
    assert (student.exit_code, "mobilenetv2" in student.stderr) == (2, True)
    key = Result("distill", teacher_file, "--set", "method.generator.lrr=1")
    assert key.exit_code == 3
    assert 'Did you mean "lr"' in key.stderr
    preset = Result("distill", teacher_file, "--method", "pre-dfk")
    assert preset.exit_code == 3
    assert 'Did you mean "pre-dfkd"' in preset.stderr
    assert Result("distil", teacher_file).exit_code == 2
    assert Result("export", "nowhere").exit_code == 2


def test_doctor_and_recipes_answer(here: Path) -> None:
    assert {"facts", "problems"} <= set(Result("doctor", "--json").json())
    listing = Result("recipes", "--json").json()
    assert "quickstart" in listing["recipes"]
    assert {"edgekd", "pre-dfkd", "pre-dfkd-released", "dafl", "dfad", "memory-bank"} <= set(listing["methods"])
    assert Result("recipes", "--copy", "edgekd").exit_code == 0
    assert Result("recipes", "--check", "edgekd.toml").exit_code == 0
    assert Result("recipes", "--copy", "edgekd").exit_code == 2
