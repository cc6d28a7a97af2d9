"""A folder to work in, and a whole chain to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import Result

import toy
from edgekd import recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def original(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A whole toy chain made by `edgekd run`, with images evaluated at the end."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy.images(folder / "images")
        wanted = toy.toy_recipe(teacher_file, export={"int8": True}, pixels={"normalize": "none"})
        (folder / "toy.toml").write_text(recipe.to_toml(wanted))
        return folder, Result("run", "toy.toml", "--data", "images", "--json")


@pytest.fixture
def finished(original: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A copy of the finished chain, which a test may change: no test sees what another one did."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(original[0], folder, dirs_exist_ok=True, symlinks=True)
    return folder, original[1]
