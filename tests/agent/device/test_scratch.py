"""Temporary folders go with their process, or with the next one of the same user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.agent.device import scratch


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


HOLD = """
import time
from edgekd.agent.device import scratch
with scratch.folder() as folder:
    (folder / "part").mkdir()
    (folder / "part/model.onnx").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def child(place: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    """Start a process with a script; return it, and the first line that it prints."""
    children: list[subprocess.Popen[str]] = []

    def start(script: str) -> tuple[subprocess.Popen[str], str]:
        environment = {**os.environ, "TMPDIR": str(place)}
        one = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        children.append(one)
        assert one.stdout is not None
        return one, one.stdout.readline().strip()

    yield start
    for one in children:
        one.kill()
        one.communicate()


def test_a_folder_goes_at_the_end_whatever_happens(place: Path) -> None:
    def fail() -> None:
        with scratch.folder() as folder:
            (folder / "file").touch()
            assert folder.parent == place
            assert folder.stat().st_mode & 0o777 == 0o700
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert list(place.iterdir()) == []


def test_what_a_kill_leaves_the_next_process_removes_and_a_living_one_keeps(child: Any, place: Path) -> None:
    (killed, dead), (_, alive) = child(HOLD), child(HOLD)
    killed.kill()
    killed.wait()
    assert (Path(dead) / "part/model.onnx").exists()
    with scratch.folder() as folder:
        assert set(place.iterdir()) == {Path(alive), folder}
        assert (Path(alive) / "part/model.onnx").exists()


def test_what_is_not_of_this_kind_is_left_alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (place / "edgekd-scratch-abcdefg1").symlink_to(elsewhere)
    (place / "edgekd-scratch-abcdefg2").touch()
    for name in ("edgekd-scratch-notes", "edgekd-abcdefgh", "other"):
        (place / name).mkdir()
    theirs = place / "edgekd-scratch-abcdefg3"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 12345, 12345)
    before = set(place.iterdir()) - (set() if os.geteuid() == 0 else {theirs})
    with scratch.folder() as folder:
        assert set(place.iterdir()) - {folder} == before
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize("step", ["tempfile.mkdtemp", "os.open"])
def test_no_sweep_takes_a_folder_that_is_just_being_made(
    step: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = {"tempfile": tempfile, "os": os}[step.partition(".")[0]], step.partition(".")[2]
    real = getattr(module, name)
    swept: list[Any] = []

    def followed_by_a_sweep(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        if not swept:
            swept.append(step)
            scratch.sweep()
            assert list(place.iterdir()) == [], "the new folder looked like a dead one's"
        return made

    monkeypatch.setattr(module, name, followed_by_a_sweep)
    scratch._swept.add(str(place))
    with scratch.folder() as folder:
        assert swept
        assert list(place.iterdir()) == [folder]
