"""`edgekd ingest` and what the verbs say of a teacher: assumptions, probe, pickles, class names, normalisation."""

from __future__ import annotations

import importlib
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from command import Result
from torch import nn

import toy
from edgekd.agent.device.machine import sha256_of
from edgekd.models import registry
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json

TEACHERS = Path(__file__).parents[3] / "shared" / "teachers"
CIFAR10 = TEACHERS.parent / "data" / "cifar10-test.npz"


class Trap:
    """What a hostile pickle does: code that runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (Path("sentinel"),)


NETS = """
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.top = nn.Linear(8, 6)

    def forward(self, x):
        return self.top(self.features(x).flatten(1)).softmax(1)


def pixelwise():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1))
"""


@pytest.fixture
def nets(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's own in the current folder, imported as their training script would."""
    (here / "users_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    users_nets = importlib.import_module("users_nets")

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(here)])
    return users_nets


def weights(name: str, shape: tuple[int, int, int] = (3, 32, 32)) -> dict[str, torch.Tensor]:
    return dict(registry.build(name, input_shape=shape, classes=10, seed=0).eval().state_dict())


def saved(obj: object, name: str = "teacher.pt") -> str:
    torch.save(obj, name)
    return name


def test_ingest_says_what_the_teacher_is_and_what_was_assumed(here: Path) -> None:
    result = Result("ingest", saved({"state_dict": weights("resnet8"), "epoch": 3}))
    assert result.exit_code == 0
    assert "assumed  image size = 32x32 (change it with --input 3x32x32)" in result.stderr
    assert "assumed  activation = relu (change it with --arch resnet8,activation=leaky_relu)" in result.stderr
    probe = result.line("probe")
    for fact in (
        "(N, 10) finite logits",
        "head alive",
        "7 BatchNorm layers",
        "sure on noise (chance 10.0%)",
        " ms on ",
    ):
        assert fact in probe
    assert "75,290 parameters, 12,239,488 MACs" in result.line("result")
    assert result.line("next") == "next     edgekd distill teacher.pt --run teacher"
    assert "unknown" in result.line("pixels")
    timing = RunDir(Path("runs/teacher")).ledger().teacher_probe
    assert timing is not None
    assert timing.seconds > 0
    assert timing.images == 32


def test_an_assumption_is_changed_by_the_flag_it_names(here: Path) -> None:
    Result("ingest", saved(weights("resnet18")))
    changed = Result("ingest", "teacher.pt", "--run", "pooled", "--arch", "resnet18,maxpool=true", "--input", "3x48x48")
    assert changed.exit_code == 0
    assert "max-pool" not in changed.stderr
    assert "image size" not in changed.stderr
    facts = read_json(Path("runs/pooled/teacher/teacher.json"))
    assert (facts["arch"], facts["input_shape"]) == ("resnet18,maxpool=true", [3, 48, 48])
    assert facts["probe"]["macs"] < read_json(Path("runs/teacher/teacher/teacher.json"))["probe"]["macs"]


@pytest.mark.slow
def test_other_names_are_shown_accepted_and_recorded(here: Path) -> None:
    file = saved({"net": {f"module.{k.replace('linear', 'fc')}": v for k, v in weights("resnet8").items()}})
    refused = Result("ingest", file)
    assert refused.exit_code == 4
    assert "under other names: fc -> linear. Use this mapping with --accept-mapping" in refused.stderr
    assert not (here / "runs").exists()
    accepted = Result("ingest", file, "--accept-mapping")
    assert accepted.exit_code == 0
    assert "mapped   fc -> linear" in accepted.stderr
    assert read_json(Path("runs/teacher/teacher/teacher.json"))["mapping"]["fc.weight"] == "linear.weight"


def test_several_sets_of_weights_are_an_assumption(here: Path) -> None:
    result = Result("ingest", saved({"state_dict": weights("resnet8"), "state_dict_ema": weights("resnet8")}))
    assert "assumed  weights = state_dict, not state_dict_ema (change it with" in result.stderr


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--input", "1x32x32"), 4, "The weights take 3 channels, not 1: --input 3x32x32"),
        (("--input", "32"), 2, "--input takes CHANNELSxHEIGHTxWIDTH"),
        (("--normalize", "mnist"), 2, "do not fit a teacher of 3 channels"),
        (("--normalize", "imagnet"), 3, "pixels.normalize"),
        (("--input", "3x²x32"), 2, "--input takes CHANNELSxHEIGHTxWIDTH"),
        (("--input", "3x300000x300000"), 2, "larger images"),
        (("--mean", "0.5,0.5,0.5"), 2, "do not fit a teacher of 3 channels"),
        (("--mean", "nan,0,0", "--std", "1,1,1"), 2, "--mean takes numbers separated by commas"),
        (("--mean", "0,0,0", "--std", "1,inf,1"), 2, "--std takes numbers separated by commas"),
        (("--normalize", "imagenet", "--std", "0.5,0.5,0.5"), 2, "give one of them"),
        (("--normalize", "none", "--mean", "0,0,0", "--std", "1,1,1"), 2, "give one of them"),
        (("--classes", "names.txt"), 4, "names.txt"),
        (("--arch", "resnet9"), 2, "resnet8"),
        (("--arch", "resnet14"), 4, "resnet14 does not fit"),
        (("--arch", "nowhere:factory"), 2, "nowhere"),
    ],
)
def test_flags_that_do_not_fit_leave_nothing_behind(
    here: Path, flags: tuple[str, ...], code: int, message: str
) -> None:
    (here / "names.txt").write_text("cat\ndog\n")
    result = Result("ingest", saved(weights("resnet8")), *flags)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (here / "runs").exists()


def test_images_too_small_for_the_network_are_a_clear_error(here: Path) -> None:
    result = Result("ingest", saved(weights("densenet121", (3, 224, 224))), "--input", "3x16x16")
    assert result.exit_code == 4
    assert "does not take 3x16x16 images" in result.stderr
    assert "--input CxHxW" in result.stderr


def test_class_names_and_normalization_are_set_and_changed_later(here: Path) -> None:
    names = [f"kind {index}" for index in range(10)]
    (here / "names.txt").write_text("\n".join(names))
    result = Result("ingest", saved(weights("resnet8")), "--classes", "names.txt", "--normalize", "cifar10")
    assert result.exit_code == 0
    assert result.line("classes") == "classes  kind 0, kind 1, kind 2, kind 3, kind 4 … kind 9"
    assert result.line("pixels") == "pixels   mean 0.4914, 0.4822, 0.4465, std 0.247, 0.2435, 0.2616"
    before = sha256_of(Path("runs/teacher/teacher/teacher.json"))
    later = Result("ingest", "--run", "teacher", "--normalize", "imagenet", "--json")
    assert later.json()["mean"] == [0.485, 0.456, 0.406]
    assert later.json()["class_names"] == names
    assert sha256_of(Path("runs/teacher/teacher/teacher.json")) == before


def test_class_names_are_those_of_the_file_now_and_outlive_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, names = here / "names.txt", [f"kind {index}" for index in range(10)]
    given = ("ingest", saved(weights("resnet8")), "--classes", "names.txt")
    file.write_text("\n".join(names))
    assert Result(*given, "--json").json()["class_names"] == names
    file.write_text("\n".join(reversed(names)))
    assert Result(*given, "--json").json()["class_names"] == names[::-1], "they were edited"
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "names.txt").write_text("\n".join(names))
    monkeypatch.chdir(here / "elsewhere")
    from_there = Result("ingest", "--run", "../runs/teacher", "--normalize", "imagenet", "--json").json()
    assert from_there["class_names"] == names[::-1], "another file that is called alike is not meant"
    monkeypatch.chdir(here)
    file.unlink()
    later = Result("ingest", "--run", "teacher", "--normalize", "cifar10", "--json")
    assert later.json()["class_names"] == names[::-1], "they are in the run"
    assert Result("ingest", "--run", "teacher", "--classes", "typo.txt").exit_code == 4


def test_a_softmax_at_the_end_is_found_and_undone(nets: Any) -> None:
    result = Result("ingest", saved(nets.Small().eval().state_dict()), "--arch", "users_nets:Small", "--json")
    assert result.exit_code == 0
    assert "probabilities: the softmax at its end is undone" in result.stderr
    assert (result.json()["undo"], result.json()["probe"]["emits"]) == ("log", "probabilities")


def test_a_network_that_is_no_classifier_exits_4(nets: Any, here: Path) -> None:
    result = Result("ingest", saved(nets.pixelwise().state_dict()), "--arch", "users_nets:pixelwise")
    assert result.exit_code == 4
    assert "no classifier: for 32 images of 3x32x32 it returns the shape (32, 6, 30, 30)" in result.stderr
    assert not (here / "runs").exists()


def test_the_plan_of_distillation_tells_the_same(here: Path, teacher_file: Path) -> None:
    flags = ("--input", "1x8x8", "--student", toy.STUDENT, "--steps", "9", "--threads", "1", "--dry-run")
    result = Result("distill", teacher_file, *flags)
    assert result.exit_code == 0
    assert "activation relu assumed (--arch resnet8@0.5,activation=leaky_relu)" in result.line("input")
    for fact in ("(N, 4) finite logits", "head alive", "7 BatchNorm layers", "sure on noise", " ms on 1 thread"):
        assert fact in result.line("teacher")


def test_a_pickled_module_is_refused_with_the_classes_it_would_run(here: Path) -> None:
    network = registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0)
    result = Result("ingest", saved(network))
    assert result.exit_code == 4
    for name in (
        "edgekd.models.networks.cifar.CifarResNet",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.linear.Linear",
    ):
        assert name in result.stderr
    assert "Nothing was run" in result.stderr
    assert "--trust-pickle" in result.stderr
    assert not (here / "runs").exists()


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net.half(), "epoch": 1}])
def test_a_trusted_pickle_is_loaded_printed_and_recorded(here: Path, wrap: Any) -> None:
    network = registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0).eval()
    file = saved(wrap(network))
    result = Result("ingest", file, "--trust-pickle")
    assert result.exit_code == 0
    sha256 = sha256_of(Path(file))
    assert sha256 in result.stderr
    run = RunDir(Path("runs/teacher"))
    assert run.ledger().trusted_pickles == {file: sha256}
    record = Record.read(run.stage("teacher"))
    assert record is not None
    assert record.notes == {"trusted_pickle": sha256}
    Result("ingest", "--run", "teacher", "--normalize", "cifar10")
    kept = Record.read(run.stage("teacher"))
    assert kept is not None
    assert kept.notes == record.notes


def test_trust_belongs_to_the_file_that_was_there(here: Path) -> None:
    network = registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0)
    assert Result("ingest", saved(network), "--trust-pickle").exit_code == 0
    torch.save({"state_dict": network.state_dict(), "trap": Trap()}, "teacher.pt")
    torch.save({"state_dict": network.state_dict(), "trap": Trap()}, "other.pt")
    for file in ("teacher.pt", "other.pt"):
        shutil.rmtree("runs/teacher/teacher")
        result = Result("ingest", file, "--run", "teacher")
        assert (result.exit_code, "--trust-code" in result.stderr) == (2, True)
        result = Result("ingest", file, "--run", "teacher", "--trust-pickle")
        assert (result.exit_code, "not the pickle that this run was told to trust" in result.stderr) == (4, True)
        assert not Path("sentinel").exists(), "nothing was run"
        Result("ingest", saved(network), "--run", "teacher")


@pytest.mark.slow
def test_a_trusted_module_must_answer_as_the_network_of_the_zoo_does(here: Path) -> None:
    network = torchvision.models.resnet18(num_classes=10).eval()
    assert Result("ingest", saved(nn.Sequential(network, nn.Softmax(1))), "--trust-pickle").exit_code == 0
    network.maxpool = nn.Identity()
    result = Result("ingest", saved(network, "changed.pt"), "--trust-pickle")
    assert result.exit_code == 4
    assert "answers otherwise than resnet18" in result.stderr
    assert not Path("runs/changed").exists()


def test_a_trusted_module_of_other_code_names_that_code(nets: Any) -> None:
    file = saved(nets.Small().eval())
    result = Result("ingest", file, "--trust-pickle")
    assert result.exit_code == 4
    assert "users_nets:Small" in result.stderr
    assert Result("ingest", file, "--trust-pickle", "--arch", "users_nets:Small").exit_code == 0


@pytest.mark.parametrize("flags", [(), ("--trust-pickle",)])
def test_programs_are_refused_with_the_way_on_whatever_is_trusted(here: Path, flags: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "script.pt")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), "program.pt2")
    script, program = Result("ingest", "script.pt", *flags), Result("ingest", "program.pt2", *flags)
    assert (script.exit_code, program.exit_code) == (4, 4)
    assert "torch.jit.load('script.pt', 'cpu').state_dict()" in script.stderr
    assert "torch.export.load('program.pt2').state_dict" in program.stderr
    assert not (here / "runs").exists()


def test_a_teacher_that_moved_away_is_not_asked_for_again(here: Path) -> None:
    file = Path(saved(weights("resnet8")))
    assert Result("ingest", file).exit_code == 0
    file.unlink()
    assert Result("ingest", file, "--normalize", "cifar10").exit_code == 0
    assert Result("ingest", "other.pt", "--run", "other").exit_code == 4
    assert not Path("runs/other").exists()


def test_a_teacher_that_is_there_but_cannot_be_read_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(saved(weights("resnet8")))
    assert Result("ingest", file).exit_code == 0
    opened = Path.open

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == file:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    result = Result("ingest", file)
    assert (result.exit_code, "Permission denied" in result.stderr) == (4, True)


@pytest.mark.slow
@pytest.mark.skipif(not TEACHERS.is_dir(), reason="the public teachers are not on this machine")
@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_public_teachers_need_nothing_but_the_file_name(here: Path, name: str) -> None:
    result = Result("ingest", TEACHERS / f"cifar10-{name}.th", "--json")
    assert result.exit_code == 0
    facts = result.json()
    assert (facts["arch"], facts["classes"], facts["input_shape"]) == (name, 10, [3, 32, 32])


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_file(), reason="CIFAR-10's test images are not on this machine")
def test_public_teachers_keep_their_accuracy(here: Path) -> None:
    arrays = np.load(CIFAR10)
    for index, label in enumerate(arrays["labels"]):
        path = here / "cifar10" / "test" / str(arrays["classes"][label]) / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(arrays["jpeg"][arrays["offsets"][index] : arrays["offsets"][index + 1]].tobytes())
    for name, expected in (("resnet20", 0.8103), ("resnet32", 0.8256)):
        assert Result("ingest", TEACHERS / f"cifar10-{name}.th", "--normalize", "imagenet").exit_code == 0
        measured = Result("eval", f"cifar10-{name}", "--data", "cifar10/test", "--json").json()
        assert measured["images"] == 10_000
        assert measured["accuracy"]["teacher"] == pytest.approx(expected, abs=0.003)
