from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from edgekd.models.code import imports


def test_code_in_the_working_directory_is_found_only_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lies_here.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path), list(sys.meta_path)
    with imports.from_here(imports.files_of("lies_here")):
        assert importlib.import_module("lies_here").answer == 42
    monkeypatch.delitem(sys.modules, "lies_here")
    assert (sys.path, sys.meta_path) == before
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lies_here")


@pytest.mark.parametrize("on_the_path", [None, "", ".", "HERE"])
def test_what_lies_here_unapproved_is_not_found(
    on_the_path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stays_here.py").write_text("raise ZeroDivisionError\n")
    (tmp_path / "folder_here").mkdir()
    monkeypatch.chdir(tmp_path)
    if on_the_path is not None:  # as of `python -m`, `python -c`, or code that adds it
        monkeypatch.syspath_prepend(str(tmp_path) if on_the_path == "HERE" else on_the_path)
    with imports.from_here({}):
        for name in ("stays_here", "folder_here"):
            assert importlib.util.find_spec(name) is None, "a library that looks for an optional one goes on without"
            with pytest.raises(ModuleNotFoundError) as caught:
                importlib.import_module(name)
            assert str(tmp_path / name) in imports.unapproved(caught.value)


def test_code_that_tidies_the_finders_itself_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.meta_path)
    with imports.from_here({}):
        sys.meta_path[:] = before
    assert sys.meta_path == before


@pytest.mark.parametrize("module", ["pk.sub.own", "pk.sub.deep.own"])
def test_packages_without_init_are_found_at_any_depth(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{module.replace('.', '/')}.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..two import *\n")
    (file.parents[1] / "two.py").write_text("answer = 42\n")
    (file.parents[1] / "three.py").touch()
    monkeypatch.chdir(tmp_path)
    files = imports.files_of(module)
    assert sorted(files.values()) == sorted([file, file.parents[1] / "two.py"])
    with imports.from_here(files):
        assert importlib.import_module(module).answer == 42
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{module.rpartition('.')[0].rpartition('.')[0]}.three")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pk"]:
        del sys.modules[name]
