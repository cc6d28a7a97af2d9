"""Which run is meant, and what to type for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Result

from edgekd.cli.targets import named_run, path_argument, run_argument, run_called
from edgekd.errors import UsageError
from edgekd.run.directory import RunDir


@pytest.mark.parametrize("path", ["runs/one", "elsewhere/one", "/other/place/x", "runs/a b", "..", ".", "./here"])
def test_what_is_typed_names_the_same_run(here: Path, path: str) -> None:
    run = RunDir(Path(path))
    words = run_argument(run).strip("'")
    assert named_run(words).path.resolve() == run.path.resolve()
    assert words == (run.name if path.startswith("runs/") else path)


def test_a_run_in_the_current_folder_hides_its_namesake_below_runs(here: Path) -> None:
    (here / "one").mkdir()
    RunDir(Path("one")).note_command(["edgekd"])
    assert run_argument(RunDir(Path("runs/one"))) == "runs/one"
    assert run_argument(RunDir(Path("one"))) == "one"
    assert named_run("one").path == Path("one")


def test_a_name_that_no_folder_can_have_is_wrong_usage(here: Path) -> None:
    with pytest.raises(UsageError, match="no name for a run"):
        named_run("x" * 5000)


@pytest.mark.parametrize("name", ["a/b", "../a", ".", "..", ".a", "-a", "~a", "a\\b", " a", "a\n", "x" * 256])
def test_what_a_file_is_called_is_no_path_of_a_run(name: str, here: Path) -> None:
    with pytest.raises(UsageError, match="give the run another name with --run NAME"):
        run_called(name)


def test_a_name_that_nobody_typed_is_below_runs_whatever_lies_here(here: Path) -> None:
    (here / "one").mkdir()
    RunDir(Path("one")).note_command(["edgekd"])
    assert run_called("one").path == Path("runs/one")


def test_a_file_is_typed_so_that_it_is_no_flag() -> None:
    assert [path_argument(name) for name in ("-rf.pt", "a b.pt", Path("x.pt"))] == ["./-rf.pt", "'a b.pt'", "x.pt"]


@pytest.mark.parametrize("arguments", [("status", "./loop"), ("prune", "loop/x"), ("status", "x")])
def test_links_in_a_circle_are_an_error_of_the_file_system(arguments: tuple[str, ...], here: Path) -> None:
    for name in ("loop", "runs"):
        (here / name).symlink_to(name)
    refused = Result(*arguments)
    assert refused.exit_code in (2, 6), refused.stderr
    assert "a fault of edgekd" not in refused.stderr
