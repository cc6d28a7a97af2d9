"""The command line as a whole: help, examples, unknown names."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command import Result
from rich.text import Text

import toy
from edgekd.cli import program
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


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str, raises: BaseException | None = None) -> int | str | None:
    """Return what `main` exits with, where the verb may be replaced by an error."""
    monkeypatch.setattr(sys, "argv", ["edgekd", *arguments])
    if raises is not None:

        def fail(**_: object) -> None:
            raise raises

        monkeypatch.setattr(program, "app", fail)
    with pytest.raises(SystemExit) as caught:
        program.main()
    return caught.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", ""),
        ("prune", "--run="),
        ("distill", "x.pt", "--run", "", "--fresh"),
        ("distill", "x.pt", "--run", " "),
        ("run", "x.toml", "--device= "),
        ("ingest", "\n"),
    ],
)
def test_an_argument_that_is_empty_or_blank_is_never_taken_for_none(
    arguments: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --fresh an unset variable would replace the run that has the default name."""
    assert ended(monkeypatch, *arguments) == 2
    assert "is empty; is a variable of your shell not set?" in capsys.readouterr().err


def test_what_no_file_belongs_to_is_named_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"),
    ):
        assert ended(monkeypatch, "status", raises=error) == 6
        assert "too little memory" in capsys.readouterr().err
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    assert ended(monkeypatch, "status", raises=FileNotFoundError(2, "No such file or directory")) == 6
    assert "the working directory, which was removed, cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "line", "words"),
    [
        ("onnxruntime", "raise ImportError('libonnxruntime.so.1: cannot open')", "ImportError: libonnxruntime.so.1"),
        ("onnxruntime", "__version__ = '1.0'", "No module named 'onnxruntime.capi'"),
        ("onnx", "raise AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API not found"),
    ],
)
def test_a_package_that_cannot_be_imported_is_the_machines(package: str, line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(line)
    (tmp_path / "net.onnx").write_bytes(b"")
    where = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ran = toy.cli("bench", "net.onnx", cwd=tmp_path, env=where)
    assert (ran.returncode, ran.stdout) == (6, "")
    assert f"{package} cannot be imported" in ran.stderr
    assert words in ran.stderr
