"""Code from outside the zoo: the user's own, and timm's models where timm is installed."""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion import outside, search, timm_index
from edgekd.ingestion.identify import Inferred, build_teacher, infer, state_dict_of
from edgekd.ingestion.matching import Match, Mismatch
from edgekd.models import probe, registry
from edgekd.models.registry import ArchSpec

HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")

CODE = """
from torch import nn


class Split(nn.Module):
    def __init__(self, channels=2, classes=6):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.backbone(x))


class Wrapped(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.model = Split(3, num_classes)

    def forward(self, x):
        return self.model(x)


def split():
    return Split()


def of_any_channels(input_shape, classes):
    return Split(input_shape[0], classes)


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def no_classifier():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1))
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]) -> str:
    factories = ("split", "Wrapped", "of_any_channels", "convolutional", "no_classifier", "no_such_factory")
    approve(f"outside_nets:{factory}" for factory in factories)
    (tmp_path / "outside_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_nets", raising=False)
    return "outside_nets"


def built(arch: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> nn.Module:
    return registry.build(arch, input_shape=shape, classes=classes, seed=0).eval()


def same(net: nn.Module, found: Inferred) -> bool:
    images = torch.randn(2, *found.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(build_teacher(found)(images), net(images))


@pytest.mark.parametrize(
    ("factory", "shape", "classes"),
    [
        ("split", (2, 32, 32), 6),
        ("Wrapped", (3, 32, 32), 9),
        ("of_any_channels", (1, 32, 32), 7),
        ("convolutional", (3, 32, 32), 6),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.net."])
def test_own_code_shows_its_channels_and_classes(
    code: str, factory: str, shape: tuple[int, int, int], classes: int, prefix: str
) -> None:
    net = built(f"{code}:{factory}", shape, classes)
    weights = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    found = infer(state_dict_of(weights), arch=f"{code}:{factory}")
    assert (found.classes, found.input_shape, dict(found.mapping)) == (classes, shape, {})
    assert same(net, found)


def test_the_order_of_names_does_not_matter(code: str) -> None:
    net = built(f"{code}:Wrapped", classes=9)
    weights = dict(sorted(net.state_dict().items(), reverse=True))
    assert infer(weights, arch=f"{code}:Wrapped").classes == 9


def test_own_code_is_built_once_for_each_shape(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {f"part{i}.{j}.weight": torch.ones(2) for i in range(9) for j in range(9)}
    builds: list[str] = []
    build = registry.build

    def counted(arch: str, **options: Any) -> nn.Module:
        builds.append(arch)
        return build(arch, **options)

    monkeypatch.setattr(registry, "build", counted)
    with pytest.raises(InputFileError, match="does not fit"):
        infer(weights, arch=f"{code}:split")
    assert len(builds) == 1


def test_wrong_channels_and_other_names_are_told(code: str) -> None:
    net = built(f"{code}:Wrapped", classes=9)
    with pytest.raises(InputFileError, match="take 3 channels, not 1"):
        infer(net.state_dict(), arch=f"{code}:Wrapped", input_shape=(1, 32, 32))
    renamed = {name.replace("fc", "top"): tensor for name, tensor in net.state_dict().items()}
    with pytest.raises(InputFileError, match="top -> fc"):
        infer(renamed, arch=f"{code}:Wrapped")
    assert same(net, infer(renamed, arch=f"{code}:Wrapped", accept_mapping=True))


def test_code_that_is_no_classifier_is_left_to_the_probe(code: str) -> None:
    net = built(f"{code}:no_classifier")
    found = infer(net.state_dict(), arch=f"{code}:no_classifier")
    with pytest.raises(InputFileError, match="no classifier"):
        probe.probe(build_teacher(found), input_shape=found.input_shape, classes=found.classes, seed=0)


@pytest.mark.parametrize("factory", ["split", "Wrapped"])
@pytest.mark.parametrize("name", ["backbone.0.weight", "fc.weight", "fc.bias"])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2**62, 0)])
def test_tensors_of_any_shape_do_not_fit_own_code(code: str, factory: str, name: str, shape: tuple[int, ...]) -> None:
    prefix = "model." if factory == "Wrapped" else ""
    weights = dict(built(f"{code}:{factory}", classes=9).state_dict())
    with pytest.raises(InputFileError, match="does not fit the weights"):
        infer({**weights, f"{prefix}{name}": torch.empty(shape)}, arch=f"{code}:{factory}")


def test_code_that_cannot_be_built_is_wrong_usage(code: str) -> None:
    with pytest.raises(UsageError, match="no_such_factory"):
        infer({"a.weight": torch.ones(2)}, arch=f"{code}:no_such_factory")


def test_without_timm_nothing_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "timm_is_installed", lambda: False)
    monkeypatch.setattr(outside, "search_timm", lambda *_, **__: pytest.fail("searched"))
    layers = {f"blocks.{i}.conv.weight": torch.ones(4, 4, 3, 3) for i in range(outside.FEWEST_TENSORS)}
    with pytest.raises(InputFileError, match="pip install"):
        infer(
            {
                "conv_stem.weight": torch.ones(4, 3, 3, 3),
                "skip.weight": torch.ones(4),
                **layers,
                "classifier.weight": torch.ones(5, 4),
            }
        )


def test_of_fewer_layers_than_timms_models_have_timm_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "timm_is_installed", lambda: True)
    monkeypatch.setattr(outside, "_timm", lambda: pytest.fail("imported"))
    with pytest.raises(InputFileError) as caught:
        infer({"conv_stem.weight": torch.ones(4, 3, 3, 3), "classifier.weight": torch.ones(5, 4)})
    assert "timm" not in str(caught.value)


def test_building_stops_at_foreign_shapes() -> None:
    allowed = frozenset({(4, 3, 3, 3), (4,)})
    with outside._OnlyShapes(allowed, meta=True, forgiven=0):
        assert nn.Conv2d(3, 4, 3).weight.is_meta
    with outside._OnlyShapes(allowed, meta=False, forgiven=2):
        assert not nn.Conv2d(3, 5, 3).weight.is_meta
    with pytest.raises(outside._OtherShape), outside._OnlyShapes(allowed, meta=True, forgiven=1):
        nn.Conv2d(3, 5, 3)
    with pytest.raises(outside._OtherShape), outside._OnlyShapes(allowed, meta=False, forgiven=9):
        nn.Linear(2**14, 2**14)


def timm_net(name: str, **arguments: int) -> nn.Module:
    import timm

    generator = torch.Generator().manual_seed(0)
    net: nn.Module = timm.create_model(name, pretrained=False, **arguments).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand(tensor.shape, generator=generator))
    return net


@needs_timm
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ghostnet_100", {"num_classes": 12}),
        ("convnext_atto", {"num_classes": 10, "in_chans": 1}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 7}),
        ("vit_tiny_r_s16_p8_224", {"num_classes": 5}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_timms_models_are_found(name: str, arguments: dict[str, int], prefix: str) -> None:
    net = timm_net(name, **arguments)
    weights = {f"{prefix}{key}": tensor for key, tensor in net.state_dict().items()}
    started = time.monotonic()
    found = infer(weights)
    assert time.monotonic() - started < outside.SEARCH_SECONDS
    assert (str(found.arch), found.classes) == (f"timm:{name}", arguments["num_classes"])
    assert found.input_shape == (arguments.get("in_chans", 3), 224, 224)
    assert same(net, found)
    assert str(infer(weights, arch=f"timm:{name}").arch) == f"timm:{name}"


@needs_timm
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("ghostnet_100", {}), ("convnext_atto", {"in_chans": 1}), ("resnet10t", {}), ("vit_tiny_patch16_224", {})],
)
def test_timms_models_are_offered_under_other_names(name: str, arguments: dict[str, int]) -> None:
    net = timm_net(name, num_classes=0, **arguments)
    head = nn.Linear(int(net.head_hidden_size), 5)  # type: ignore[arg-type]
    own = {f"features.{key}": tensor for key, tensor in net.state_dict().items()}
    own |= {f"my_head.{key}": tensor for key, tensor in head.state_dict().items()}
    with pytest.raises(InputFileError, match=rf"timm:{name}\b"):
        infer(own)
    found = infer(own, arch=f"timm:{name}", accept_mapping=True)
    assert (str(found.arch), found.classes) == (f"timm:{name}", 5)
    images = torch.randn(2, *found.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(build_teacher(found)(images), head(net(images)), atol=1e-5)


@needs_timm
@pytest.mark.parametrize("name", ["ghostnet_100", "convnext_atto", "resnet10t", "levit_128s", "mixer_s32_224"])
def test_the_index_has_the_shapes_that_timms_models_have(name: str) -> None:
    net = timm_net(name, num_classes=7)
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items() if "num_batches" not in key}
    assert name in timm_index.models_like(shapes)
    if name != "levit_128s":  # two classifiers, which sorted names do not tell
        assert name in timm_index.models_like(dict(sorted(shapes.items())))
    assert timm_index.models_like(dict(list(shapes.items())[:-5])) == ()


def test_a_file_of_very_many_layers_is_looked_up_at_once() -> None:
    layers = {f"l{i}.weight": (i + 1, 3) for i in range(10_000)} | {f"l{i}.bias": (i + 1,) for i in range(10_000)}
    started = time.monotonic()
    assert timm_index.models_like(layers) == ()
    assert time.monotonic() - started < 5


@needs_timm
def test_the_index_is_of_the_timm_that_is_tested() -> None:
    assert timm_index.is_complete(), "python -m docs.studies.teachers.timm_shapes edgekd/ingestion/timm_shapes.json"


@needs_timm
def test_models_that_answer_alike_are_one() -> None:
    found = infer(timm_net("vit_tiny_patch16_224", num_classes=3).state_dict())
    assert found.arch.name in ("timm:deit_tiny_patch16_224", "timm:vit_tiny_patch16_224")
    assert any(a.what == "architecture" and "answer alike" in a.value for a in found.assumptions)


@needs_timm
def test_models_that_answer_otherwise_are_ambiguous_unless_the_file_names_one() -> None:
    weights = timm_net("tf_mobilenetv3_large_100", num_classes=3).state_dict()
    with pytest.raises(InputFileError, match=r"timm:mobilenetv3_large_100, timm:tf_mobilenetv3_large_100\. Choose"):
        infer(weights)
    found = infer(weights, hint="tf_mobilenetv3_large_100")
    assert found.arch.name == "timm:tf_mobilenetv3_large_100"
    assert any("as the file says" in a.value for a in found.assumptions)


@needs_timm
def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = timm_net("ghostnet_100", num_classes=4).state_dict()
    alike = outside.timm_alike(weights)
    assert "ghostnet_100" in alike
    assert "resnet18" not in alike
    found = outside.search_timm(alike, weights, None, deadline=time.monotonic() - 1)
    assert (found.structures, found.complete) == ((), False)
    monkeypatch.setattr(outside, "SEARCH_SECONDS", -1.0)
    monkeypatch.setattr(timm_index, "models_like", lambda _shapes: ())
    monkeypatch.setattr(timm_index, "is_complete", lambda: False)  # as for a timm that is newer than the index
    with pytest.raises(InputFileError, match="search of timm's models stopped"):
        infer(weights)


@needs_timm
def test_a_model_of_fixed_size_takes_no_other() -> None:
    weights = timm_net("deit_tiny_distilled_patch16_224", num_classes=7).state_dict()
    found = search.compare_with_zoo(weights, None, None, None, "")
    assert found.exact is not None
    assert found.exact.structures[0].side_is_fixed
    assert isinstance(outside.CustomArchitecture(ArchSpec("timm:ghostnet_100")).fit(weights, None, None), Mismatch)
    assert isinstance(
        outside.CustomArchitecture(ArchSpec("timm:deit_tiny_distilled_patch16_224")).fit(weights, None, None), Match
    )


@needs_timm
def test_the_pixels_of_timms_own_weights_are_offered_also_those_of_models_that_answer_alike() -> None:
    found = infer(timm_net("vit_tiny_patch16_224", num_classes=3).state_dict())
    flags = {a.what: a.flag for a in found.assumptions}["mean and std of real images"]
    assert "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5" in flags
    assert "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in flags
    grey = infer(timm_net("vit_tiny_patch16_224", num_classes=3, in_chans=1).state_dict())
    assert "mean and std of real images" not in {a.what for a in grey.assumptions}


@needs_timm
def test_a_model_of_timms_with_one_output_has_two_logits() -> None:
    net = timm_net("ghostnet_100", num_classes=1)
    found = infer(net.state_dict())
    assert (str(found.arch), found.classes) == ("timm:ghostnet_100", 2)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(build_teacher(found)(images)[:, 1:], net(images), rtol=1e-4, atol=1e-4)


@needs_timm
def test_the_text_of_timm_shows_the_ends_of_its_models() -> None:
    """Of two it does not: their configuration lacks the first layer."""
    import timm

    missed = []
    for name in timm.list_models():
        ends = outside._ends(name)
        layers = [next(iter(names), "") for names in (ends.first, ends.heads)]
        if ends.heads and not outside.timm_may_fit({f"net.{layer}.weight": torch.empty(1, 1) for layer in layers}):
            missed.append(name)
    assert [name for name in missed if not name.startswith("csatv2")] == []
    assert not outside.timm_may_fit({"conv1.weight": torch.empty(1, 1), "linear.weight": torch.empty(1, 1)})
