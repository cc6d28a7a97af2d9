"""Published weights by the name of their network, from a file: nothing is downloaded, what is known of them is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from command import Result

from edgekd.cli import published
from edgekd.errors import UsageError
from edgekd.models import registry
from edgekd.recipe import load_resolved
from edgekd.run.cards.record import Record
from edgekd.run.cards.teacher import PixelsCard, TeacherCard
from edgekd.run.directory import RunDir

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
IMAGENET = (0.485, 0.456, 0.406)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_torchvisions_weights_are_read_by_name_and_their_normalisation_is_assumed(here: Path) -> None:
    network = registry.build("squeezenet,logit_relu=true", input_shape=(3, 224, 224), classes=7, seed=0)
    torch.save(network.state_dict(), here / "weights.pth")
    shown = Result("ingest", "torchvision:squeezenet1_1", "--weights", "weights.pth", "--run", "mine")
    assert shown.exit_code == 0, shown.stderr
    assert "pixels = normalize imagenet, as torchvision says" in shown.stderr
    run = RunDir(here / "runs/mine")
    table = load_resolved(run.recipe_file).teacher
    assert (table.file, table.arch) == ("weights.pth", "squeezenet")
    assert run.read(TeacherCard).classes == 7
    assert run.read(PixelsCard).mean == IMAGENET
    again = Result("ingest", "--run", "mine", "--normalize", "cifar10")
    assert again.exit_code == 0, again.stderr
    kept = Result("ingest", "torchvision:squeezenet1_1", "--weights", "weights.pth", "--run", "mine")
    assert (kept.exit_code, "as torchvision says" in kept.stderr) == (0, False)
    assert run.read(PixelsCard).mean != IMAGENET, "what the user said stays"


@pytest.mark.slow
def test_the_name_and_the_file_are_what_arch_and_file_would_be(here: Path) -> None:
    torch.save(registry.build("alexnet", input_shape=(3, 64, 64), classes=3, seed=0).state_dict(), here / "w.pt")
    flags = ("--input", "3x64x64", "--normalize", "none")
    for run, words in (("a", ("torchvision:alexnet", "--weights", "w.pt")), ("b", ("w.pt", "--arch", "alexnet"))):
        shown = Result("ingest", *words, "--run", run, *flags)
        assert shown.exit_code == 0, shown.stderr
    first, second = (RunDir(here / "runs" / run) for run in "ab")
    records = [Record.read(run.stage("teacher")) for run in (first, second)]
    assert records[0] is not None
    assert records[1] is not None
    assert records[0].key == records[1].key
    assert first.recipe_file.read_text() == second.recipe_file.read_text()


@needs_timm
def test_timms_weights_are_read_by_name_with_their_own_normalisation(here: Path) -> None:
    import timm

    torch.save(timm.create_model("test_vit", num_classes=5).state_dict(), here / "vit.pt")
    shown = Result("ingest", "timm:test_vit.r160_in1k", "--weights", "vit.pt", "--run", "mine")
    assert shown.exit_code == 0, shown.stderr
    config = timm.get_pretrained_cfg("test_vit.r160_in1k")
    assert config is not None
    run = RunDir(here / "runs/mine")
    assert run.read(PixelsCard).mean == tuple(config.mean)
    assert run.read(TeacherCard).input_shape == tuple(config.input_size)
    assert "as timm says of its weights" in shown.stderr
    wrong = Result("ingest", "timm:test_vits.r160_in1k", "--weights", "vit.pt", "--run", "other")
    assert (wrong.exit_code, "timm has no model" in wrong.stderr) == (2, True), wrong.stderr


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("torchvision:resnet18",), "edgekd downloads nothing"),
        (("timm:resnet18.a1_in1k",), "edgekd downloads nothing"),
        (("w.pt", "--weights", "v.pt"), "--weights belongs to"),
        (("torchvision:resnet18", "--weights", "w.pt", "--arch", "resnet34"), "both name"),
        (("torchvision:resnet19", "--weights", "w.pt"), "torchvision has no classifier"),
        (("torchvision:lenet5", "--weights", "w.pt"), "torchvision has no classifier"),
    ],
)
def test_what_is_missing_or_said_twice_is_told(here: Path, typed: tuple[str, ...], words: str) -> None:
    for verb in ("ingest", "distill"):
        shown = Result(verb, *typed)
        assert (shown.exit_code, words in shown.stderr) == (2, True), shown.stderr
    assert not Path("runs").exists()


def test_a_file_that_is_missing_is_an_unusable_file(here: Path) -> None:
    shown = Result("ingest", "torchvision:resnet18", "--weights", "nosuch.pt")
    assert (shown.exit_code, "nosuch.pt does not exist" in shown.stderr) == (4, True)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("mobilenet_v2", "mobilenetv2"),
        ("mobilenet_v3_small", "mobilenetv3-small"),
        ("shufflenet_v2_x0_5", "shufflenetv2@0.5"),
        ("mnasnet1_3", "mnasnet@1.3"),
        ("regnet_y_1_6gf", "regnet_y_1_6gf"),
        ("wide_resnet50_2", "wide_resnet50_2"),
        ("vgg16_bn", "vgg16_bn"),
    ],
)
def test_torchvisions_names_are_the_zoos(name: str, arch: str) -> None:
    assert published.teacher(Path(f"torchvision:{name}"), "w.pt", "").arch == arch


def test_every_classifier_of_torchvisions_that_the_zoo_has_is_called_by_its_name() -> None:
    import torchvision

    missing = []
    for name in torchvision.models.list_models(module=torchvision.models):
        try:
            published.teacher(Path(f"torchvision:{name}"), "w.pt", "")
        except UsageError:
            missing.append(name)
    assert missing == []
