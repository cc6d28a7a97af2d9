from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from edgekd.models import imports


def test_code_in_the_working_directory_is_found_only_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lies_here.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with imports.from_here():
        assert importlib.import_module("lies_here").answer == 42
    monkeypatch.delitem(sys.modules, "lies_here")
    assert sys.path == before
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lies_here")


def test_code_that_tidies_the_path_itself_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with imports.from_here():
        sys.path.remove(str(tmp_path))
    assert sys.path == before
