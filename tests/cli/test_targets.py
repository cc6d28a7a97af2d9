"""Which run is meant, and what to type for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Result

from edgekd.agent.device.machine import sha256_of
from edgekd.cli.targets import named_run, run_argument, run_called, run_of
from edgekd.errors import UsageError
from edgekd.recipe import parse, to_toml
from edgekd.run.cards.record import Record
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("~/runs/one", "begins with ~, which your shell has left as it is"),  # as bash leaves it in --run=~/runs/one
        ("~one", "begins with ~"),
        ("one\u200b", "a character that cannot be printed"),
        ("elsewhere/\udce4", "a character that cannot be printed"),
    ],
)
def test_a_name_that_cannot_be_meant_begins_no_run(name: str, words: str, here: Path) -> None:
    with pytest.raises(UsageError, match=words):
        named_run(name)
    (here / "runs" / "~old").mkdir(parents=True)
    assert named_run("~old").path == Path("runs/~old"), "what is there can be named"


@pytest.mark.parametrize("name", ["a/b", "../a", ".", "..", ".a", "-a", "~a", "a\\b", " a", "a\n", "x" * 256])
def test_what_a_file_is_called_is_no_path_of_a_run(name: str, here: Path) -> None:
    with pytest.raises(UsageError, match="give the run another name with --run NAME"):
        run_called(name)


def test_a_name_that_nobody_typed_is_below_runs_whatever_lies_here(here: Path) -> None:
    (here / "one").mkdir()
    RunDir(Path("one")).note_command(["edgekd"])
    assert run_called("one").path == Path("runs/one")


@pytest.mark.parametrize("arguments", [("status", "./loop"), ("prune", "loop/x"), ("status", "x")])
def test_links_in_a_circle_are_an_error_of_the_file_system(arguments: tuple[str, ...], here: Path) -> None:
    for name in ("loop", "runs"):
        (here / name).symlink_to(name)
    refused = Result(*arguments)
    assert refused.exit_code in (2, 6), refused.stderr
    assert "a fault of edgekd" not in refused.stderr


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("wrn/ckpt.pth", "wrn-ckpt"),
        ("wrn/best.pth", "wrn-best"),
        ("wrn/checkpoint.pth.tar", "wrn-checkpoint"),
        ("wrn/model_best.pth.tar", "wrn-model_best"),
        ("wrn/pytorch_model.bin", "wrn-pytorch_model"),
        ("wrn/Weights.pt", "wrn-Weights"),
        ("wrn/best (1).pth", "wrn-best (1)"),
        ("wrn/model copy.pt", "wrn-model copy"),
        ("wrn/checkpoint-epoch=90.ckpt", "wrn-checkpoint-epoch=90"),
        ("exp3/weights/last.pt", "exp3-weights-last"),
        ("logs/wide/version_0/checkpoints/last.ckpt", "wide-version_0-checkpoints-last"),
        ("deep/fold_0/best.pth", "deep-fold_0-best"),
        ("deep/run-1/seed3/model.pth", "deep-run-1-seed3-model"),
        ("wrn/2026-01-05/0090.pt", "wrn-2026-01-05-0090"),
        ("wrn/best_acc.pth", "wrn-best_acc"),
        ("wrn/model_best_acc.pth", "wrn-model_best_acc"),
        ("wrn/best_loss.pt", "wrn-best_loss"),
        ("wrn/best_val.pt", "wrn-best_val"),
        ("wrn/best_acc@1.pt", "wrn-best_acc@1"),
        ("wrn/swa_model.pt", "wrn-swa_model"),
        ("wrn/epoch=9-val_loss=0.32.ckpt", "wrn-epoch=9-val_loss=0.32"),
        ("wrn/val_loss=1e-05-v1.ckpt", "wrn-val_loss=1e-05-v1"),
        ("wrn/chkpt.pt", "wrn-chkpt"),
        ("wrn/my_model.pt", "wrn-my_model"),
        ("wrn/trained_model.pt", "wrn-trained_model"),
        ("wrn/model-final-v3.pt", "wrn-model-final-v3"),
        ("wrn/saved_models/best.pt", "wrn-saved_models-best"),
        ("wrn/resnet20.th", "resnet20"),
        ("wrn/vnet.pt", "vnet"),
        ("wrn/swav.pt", "swav"),
        ("wrn/teacher.pt", "teacher"),
        ("wrn/model_a.pt", "model_a"),
    ],
)
def test_a_file_whose_name_says_nothing_takes_its_folders_name(file: str, name: str, here: Path) -> None:
    path = here / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert run_of(path, "", "-lenet5").path == Path(f"runs/{name}-lenet5")
    assert run_of(Path(file), "", "-lenet5").path == Path(f"runs/{name}-lenet5"), "however it is typed"
    assert run_of(path, "mine").path == Path("runs/mine")


@pytest.mark.parametrize("before", ["best_acc", "saved-best_acc", "results-saved-best_acc"])
def test_a_run_is_continued_whatever_part_of_the_path_an_older_edgekd_took(before: str, here: Path) -> None:
    file = Path("wrn/results/saved/best_acc.pth")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert run_of(file, "").path == Path("runs/wrn-results-saved-best_acc")
    run = RunDir(here / "runs" / before)
    run.path.mkdir(parents=True)
    run.note_command(["edgekd"])
    run.recipe_file.write_text(to_toml(parse({"teacher": {"file": str(file)}}, origin="toy")))
    assert run_of(file, "").path.resolve() == run.path.resolve()


def test_a_run_under_the_name_of_before_is_continued(here: Path) -> None:
    for folder in ("a", "b", "c"):
        (here / folder).mkdir()
        (here / folder / "ckpt.pth").write_bytes(b"weights of b" if folder == "c" else folder.encode())
    for name in ("ckpt/teacher", "c-ckpt"):
        (here / "runs" / name).mkdir(parents=True)
    older = RunDir(Path("runs/ckpt"))
    older.note_command(["edgekd"])
    older.recipe_file.write_text(to_toml(parse({"teacher": {"file": "a/ckpt.pth"}}, origin="toy")))
    assert run_of(Path("a/ckpt.pth"), "").path == older.path, "by its path"
    assert run_of(Path("b/ckpt.pth"), "").path == Path("runs/b-ckpt")
    Record(
        stage="ingest", version=1, key="", recipe_slice={}, inputs={"file": sha256_of(Path("c/ckpt.pth"))}, outputs={}
    ).write(older.stage("teacher"))
    assert run_of(Path("c/ckpt.pth"), "").path == older.path, "by its content"
    (here / "a" / "ckpt.pth").unlink()
    assert run_of(Path("a/ckpt.pth"), "").path == older.path, "although the file is gone"
    RunDir(Path("runs/c-ckpt")).note_command(["edgekd"])
    assert run_of(Path("c/ckpt.pth"), "").path == Path("runs/c-ckpt"), "the present name goes first"
