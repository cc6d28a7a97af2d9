"""A command that dies before any one of its changes of the file system loses nothing, and the next one goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dying
import pytest
from command import Result
from PIL import Image

import toy
from edgekd import recipe
from edgekd.errors import UsageError
from edgekd.pipeline.fresh_start import ASIDE
from edgekd.run.cards.record import Record
from edgekd.run.ownership import CONTENT, LEDGER, LOCK

RUN = Path("runs/toy")
NOWHERE = {"device": "abacus"}
MINE = {"notes.md": "mine", "code/train.py": "mine too", ".git/HEAD": "main"}
"""What the user keeps in the run."""


def small(**changes: object) -> recipe.Recipe:
    """Return the toy recipe at two steps; paths are relative, so that a copy of the folder works too."""
    return toy.toy_recipe(
        Path("teacher.pt"),
        method={"steps": 2},
        checkpoint_period=1,
        pixels={"normalize": "none"},
        export={"calibration_samples": 32, "holdout_samples": 32},
        bench={"min_runs": 10, "min_seconds": 0.01},
        **changes,
    )


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of copies are made, and fsync has nothing to wait for."""
    place = Path("/dev/shm")  # noqa: S108 - a folder of its own below it
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def original(teacher_file: Path, memory: Path) -> Path:
    """A folder with a finished run in it, and files of the user's beside and in it."""
    folder = memory / "original"
    folder.mkdir()
    shutil.copyfile(teacher_file, folder / "teacher.pt")
    for label in range(toy.CLASSES):
        (folder / "images" / str(label)).mkdir(parents=True)
        Image.new("L", (8, 8), 40 * label).save(folder / "images" / str(label) / "0.png")
    (folder / "toy.toml").write_text(recipe.to_toml(small()))
    (folder / "anew.toml").write_text(recipe.to_toml(small(name="toy", seed=5)))
    assert dying.command("run", "toy.toml", "--data", "images", cwd=folder) == 0
    for name, text in MINE.items():
        (folder / RUN / name).parent.mkdir(exist_ok=True)
        (folder / RUN / name).write_text(text)
    return folder


@dataclass(frozen=True)
class Case:
    """A command, its exit code, what it begins with, and after how many of its deaths it is given again."""

    words: tuple[str, ...]
    code: int = 0
    fresh: bool = False
    without: tuple[str, ...] = ()
    """Folders that are taken away before."""
    continued: int = 3
    often: bool = False
    """Whether the default suite has the time, too."""


def assignments(wanted: dict[str, Any], known: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the flags that make one recipe of another."""
    flags = []
    for key, value in wanted.items():
        if isinstance(value, dict):
            flags += assignments(value, known[key], f"{prefix}{key}.")
        elif value != known[key]:
            flags.append(f"--set={prefix}{key}={json.dumps(value)}")
    return flags


def distilling(*more: str, **changes: object) -> tuple[str, ...]:
    """Return the command that distils the toy with another seed."""
    default, wanted = recipe.parse({}, origin="default"), small(seed=5, **changes)
    flags = assignments(wanted.model_dump(mode="json"), default.model_dump(mode="json"))
    return ("distill", "teacher.pt", "--run", "toy", *flags, *more)


CASES = {
    "ingest": Case(("ingest", "teacher.pt", "--run", "toy", "--input", "1x8x8"), without=("runs",)),
    "ingest --fresh": Case(("ingest", "teacher.pt", "--run", "toy", "--input", "1x8x8", "--fresh"), fresh=True),
    "ingest --normalize": Case(("ingest", "--run", "toy", "--normalize", "mnist"), often=True),
    "distill": Case(distilling(), without=("runs",), continued=2),
    "distill --fresh": Case(distilling("--fresh"), fresh=True, often=True),
    "distill --fresh, refused": Case(distilling("--fresh", machine=NOWHERE), code=2, fresh=True),
    "distill, refused": Case(distilling(), code=3, continued=2),
    "distill, first, refused": Case(distilling(machine=NOWHERE), code=2, without=("runs",), continued=2),
    "run": Case(("run", "toy.toml"), without=("runs",)),
    "run --fresh": Case(("run", "anew.toml", "--fresh"), fresh=True),
    "select": Case(("select", "toy"), without=("runs/toy/select",), often=True),
    "export": Case(("export", "toy", "--set=export.holdout_samples=33"), continued=1),
    "bench": Case(("bench", "toy", "--set=bench.min_runs=11"), continued=1),
    "eval": Case(("eval", "toy", "--data", "images")),
    "report": Case(("report", "toy")),
    "bundle": Case(("bundle", "toy")),
    "prune": Case(("prune", "toy"), continued=7, often=True),
    "recipes --copy": Case(("recipes", "--copy", "quickstart")),
}


def published(folder: Path) -> dict[str, dict[str, str]]:
    """Return the recorded hashes of each stage of the run whose outputs are all there, byte for byte."""
    found = {}
    for file in (folder / RUN).rglob("record.json"):
        place, record = file.parent, Record.read(file.parent)
        name = str(place.relative_to(folder / RUN))
        if record is not None and record.damaged_output(place) is None and "checkpoints" not in name:
            found[name] = record.outputs
    return {name: outputs for name, outputs in found.items() if not any(p[0] == "." for p in Path(name).parts)}


def foreign(folder: Path) -> dict[str, bytes]:
    """Return every file that is not a run's."""
    own = {folder / RUN / name for name in (*CONTENT, LEDGER, LOCK, ASIDE)}
    files = (path for path in folder.rglob("*") if path.is_file() and own.isdisjoint((path, *path.parents)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob(".*") if p.name.startswith((".tmp-", ".old-", ASIDE))]


def begun_anew(folder: Path) -> bool:
    """Return whether the run trains with the new seed."""
    checkpoints = (folder / RUN / "distill" / "checkpoints").glob("step-*")
    return any(checkpoints) and recipe.load_resolved(folder / RUN / "recipe.toml").seed == 5


def check_state(state: Path, case: Case, before: Path, after: Path) -> None:
    """Hold what a death left: the run is seen, its stages are of before or of after, the user's files are there."""
    was, will = published(before), published(after)
    if was:
        states = {entry["stage"]: entry["state"] for entry in Result("status", "toy", "--json").json()["stages"]}
        assert states["ingest"] in ("done", "stale")
    else:  # a beginning
        with_status = Result("status", "toy")
        assert (
            with_status.exit_code == 0
            or "there is no run" in with_status.stderr
            or "had a recipe" in with_status.stderr
        )
    found = published(state)
    if case.fresh:
        back = (
            found == was and (state / RUN / "recipe.toml").read_bytes() == (before / RUN / "recipe.toml").read_bytes()
        )
        forward = case.code == 0 and all(will.get(name) == outputs for name, outputs in found.items())
        settled = begun_anew(state) if "ingest" not in case.words else found == will
        assert back or (forward and settled)
    else:
        waiting = (state / RUN / ".old-report").exists()  # it is written without the lock; the next one cleans up
        for name in was:
            assert found.get(name) in (was[name], will.get(name)) or (waiting and name == "report"), name
    assert foreign(before).items() <= foreign(state).items()


def check_continued(state: Path, case: Case, after: Path) -> None:
    """Give the command again where it died, and hold that it ends as if it never had."""
    output = state.with_name(f"{state.name}.output")
    code = dying.command(*case.words, cwd=state, output=output)
    assert code == case.code, output.read_text()
    measured = ("bench/local", "report")  # differ from run to run
    found, wanted = published(state), published(after)
    assert found.keys() == wanted.keys()
    assert {k: v for k, v in found.items() if k not in measured} == {
        k: v for k, v in wanted.items() if k not in measured
    }
    assert leftovers(state) == []
    assert foreign(after).keys() == foreign(state).keys()
    gone = {name for name in ("select/replay.safetensors", "distill/checkpoints") if not (after / RUN / name).exists()}
    assert [name for name in gone if (state / RUN / name).exists()] == []


@pytest.mark.parametrize(
    ("name", "thoroughly"),
    [
        *(pytest.param(name, False, id=name) for name, case in CASES.items() if case.often),
        *(pytest.param(name, True, id=f"{name}, thoroughly", marks=pytest.mark.slow) for name in CASES),
    ],
)
def test_a_death_before_any_change_loses_nothing_and_is_made_good(
    name: str, thoroughly: bool, original: Path, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, folder = CASES[name], Path(tempfile.mkdtemp(dir=memory))
    work, before, dead = folder / "work", folder / "before", folder / "dead"
    shutil.copytree(original, work)
    for gone in case.without:
        shutil.rmtree(work / gone)
    shutil.copytree(work, before)
    code, changes = dying.states(*case.words, cwd=work, into=dead)
    assert code == case.code, (dead / "output").read_text()
    assert len(changes) > 2
    assert leftovers(work) == []
    continued = 3 * case.continued if thoroughly else case.continued
    stride = max(1, len(changes) // continued)  # neighbors differ by one file; all are looked at
    for number, change in enumerate(changes, start=1):
        state = dead / str(number)
        try:
            monkeypatch.chdir(state)
            check_state(state, case, before, work)
            if number % stride == 0:
                check_continued(state, case, work)
        except (AssertionError, UsageError) as error:
            raise AssertionError(f"died before change {number}, {change}: {error}") from error
        finally:
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(state)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["distill --fresh, refused", "prune"])
def test_a_real_death_leaves_what_the_copies_show(name: str, original: Path, memory: Path) -> None:
    case, folder = CASES[name], Path(tempfile.mkdtemp(dir=memory))
    shutil.copytree(original, folder / "work")
    _, changes = dying.states(*case.words, cwd=folder / "work", into=folder / "dead")
    for number in (len(changes) // 4, len(changes) // 2, len(changes) - 3):
        shutil.rmtree(folder / "work")
        shutil.copytree(original, folder / "work")
        code = dying.command(*case.words, cwd=folder / "work", dies_before=number)
        assert code == -signal.SIGKILL
        left, shown = (
            sorted(str(path.relative_to(place)) for path in place.rglob("*"))
            for place in (folder / "work", folder / "dead" / str(number))
        )
        assert left == shown, changes[number - 1]
    shutil.rmtree(folder)
