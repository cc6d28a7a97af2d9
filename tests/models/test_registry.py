import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from edgekd.errors import MachineError, UsageError
from edgekd.ingestion import matching
from edgekd.models import registry, stems
from edgekd.models.registry import ArchSpec


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def last_map(net: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    sides: list[tuple[int, int]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _i, out: sides.append((out.shape[2], out.shape[3])) if out.shape[2] > 1 else None
            )
    with torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    return sides[-1]


@pytest.mark.parametrize(
    "text",
    ["mobilenetv2", "mobilenetv2@0.35", "mobilenetv2@0.35,drop_strides=0", "resnet18,maxpool=false,stem=3x3",
     "wrn-40-2", "vgg16_bn", "package.module:factory", "timm:resnet18"],
)  # fmt: skip
def test_spec_survives_its_text(text: str) -> None:
    spec = ArchSpec.parse(text)
    assert str(spec) == text
    assert ArchSpec.parse(str(spec)) == spec


def test_options_are_sorted_and_hashable() -> None:
    one = ArchSpec.parse("resnet18,stem=3x3,maxpool=true")
    other = ArchSpec.parse("resnet18, maxpool=true ,stem=3x3")
    assert one == other
    assert len({one, other}) == 1


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("mobilenet_v2", "mobilenetv2"), ("ResNet-20", "resnet20"), ("WRN_16_2", "wrn-16-2"), ("lenet", "lenet5"),
     ("squeezenet1_1", "squeezenet"), ("MobileNetV3_Small", "mobilenetv3-small"), ("resnet-26", "resnet26"),
     ("regnet_x_1_6gf", "regnet_x_1_6gf"), ("regnet_x_16gf", "regnet_x_16gf")],
)  # fmt: skip
def test_other_spellings_are_understood(spelled: str, name: str) -> None:
    assert ArchSpec.parse(spelled).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mobilenetv4", 'Did you mean "mobilenetv2"'),
        ("nonsense", "no architecture"),
        ("resnet18,colour=red", "activation, maxpool, stem, stem_stride"),
        ("resnet18,maxpol=true", 'Did you mean "maxpool"'),
        ("resnet18,maxpool=maybe", "true, false"),
        ("resnet18,maxpool", "true, false"),
        ("resnet18@0.5", "no width multiplier"),
        ("mobilenetv2@wide", "is a number"),
        ("mobilenetv2@nan", "lies between"),
        ("mobilenetv2@9", "lies between"),
        ("mobilenetv2@0.333", "two decimals"),
        ("shufflenetv2@0.75", "0.5, 1, 1.5, 2"),
        ("wrn-17-2", "6n+4"),
        ("package.module:factory,depth=3", "Its options: outputs"),
        ("lenet5,outputs=1", "no option"),
    ],
)
def test_wrong_specs_say_what_is_right(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ArchSpec.parse(text)
    assert message in str(caught.value)


# Parameter counts of the papers' tables or of torchvision's documentation (mobilenetv2: 3 504 872 and so on).
@pytest.mark.parametrize(
    ("text", "shape", "classes", "count"),
    [
        ("mobilenetv2", (3, 224, 224), 1000, 3_504_872),
        ("mobilenetv3-small", (3, 224, 224), 1000, 2_542_856),
        ("mobilenetv3-large", (3, 224, 224), 1000, 5_483_032),
        ("shufflenetv2", (3, 224, 224), 1000, 2_278_604),
        ("squeezenet", (3, 224, 224), 1000, 1_235_496),
        ("mnasnet", (3, 224, 224), 1000, 4_383_312),
        ("efficientnet-b0", (3, 224, 224), 1000, 5_288_548),
        ("regnet-y-400mf", (3, 224, 224), 1000, 4_344_144),
        ("resnet18", (3, 224, 224), 1000, 11_689_512),
        ("resnet34", (3, 224, 224), 1000, 21_797_672),
        ("resnet50", (3, 224, 224), 1000, 25_557_032),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet20", (3, 32, 32), 10, 269_722),
        ("resnet32", (3, 32, 32), 10, 464_154),
        ("resnet56", (3, 32, 32), 10, 853_018),
        ("resnet110", (3, 32, 32), 10, 1_727_962),
        ("wrn-16-2", (3, 32, 32), 10, 691_674),
        ("wrn-40-2", (3, 32, 32), 10, 2_243_546),
        ("lenet5", (1, 32, 32), 10, 61_706),
        ("lenet5-half", (1, 32, 32), 10, 15_738),
    ],
)
def test_sizes_are_the_published_ones(text: str, shape: tuple[int, int, int], classes: int, count: int) -> None:
    assert parameters(registry.build(text, input_shape=shape, classes=classes, seed=0)) == count


@pytest.mark.parametrize("name", registry.student_names())
def test_every_student_answers_at_16_pixels_and_one_channel(name: str) -> None:
    net = registry.build(name, input_shape=(1, 16, 16), classes=7, seed=0).eval()
    with torch.no_grad():
        out = net(torch.randn(2, 1, 16, 16))
    assert out.shape == (2, 7)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    "name",
    ["mobilenetv2", "mobilenetv3-small", "mobilenetv3-large", "shufflenetv2", "mnasnet", "efficientnet-b0",
     "regnet-y-400mf", "resnet18"],
)  # fmt: skip
def test_small_image_rule_leaves_a_map(name: str) -> None:
    for side, expected in ((16, 2), (32, 4), (64, 4), (96, 3)):
        shape = (3, side, side)
        net = registry.build(name, input_shape=shape, classes=4, seed=0)
        assert last_map(net, shape) == (expected, expected), side


def test_small_image_rule_has_its_borders() -> None:
    drops = {side: stems.early_strides_to_drop((3, side, 2 * side)) for side in (16, 47, 48, 95, 96, 224)}
    assert drops == {16: 2, 47: 2, 48: 1, 95: 1, 96: 0, 224: 0}


def test_options_override_the_rule() -> None:
    published = registry.build("mobilenetv2,drop_strides=0", input_shape=(3, 64, 64), classes=4, seed=0)
    assert last_map(published, (3, 64, 64)) == (2, 2)
    net = registry.build("resnet18,maxpool=true,stem=3x3,stem_stride=2", input_shape=(3, 64, 64), classes=4, seed=0)
    assert last_map(net, (3, 64, 64)) == (2, 2)
    caffe = registry.build("resnet50,stride_in=1x1", input_shape=(3, 32, 32), classes=4, seed=0)
    assert caffe.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert caffe.get_submodule("layer2.0.conv2").stride == (1, 1)


def test_activation_option_replaces_every_relu() -> None:
    net = registry.build("resnet8,activation=silu", input_shape=(3, 32, 32), classes=4, seed=0)
    kinds = [type(m) for m in net.modules()]
    assert nn.ReLU not in kinds
    assert nn.SiLU in kinds
    tanh = registry.build("lenet5,activation=tanh,pool=avg", input_shape=(1, 32, 32), classes=4, seed=0)
    assert {nn.Tanh, nn.AvgPool2d} <= {type(m) for m in tanh.modules()}


def test_activation_is_an_option_only_where_it_takes_effect() -> None:
    relu = (nn.ReLU, nn.ReLU6)
    for name in ("vgg11", "alexnet", "squeezenet1_0", "regnet_x_400mf", *registry.student_names()):
        if "activation" not in registry.family_of(name).options or name.startswith("lenet5"):
            continue
        with matching.WeightsOnMeta():
            usual = registry.build(name, input_shape=(3, 64, 64), classes=4, seed=0)
            swapped = registry.build(f"{name},activation=gelu", input_shape=(3, 64, 64), classes=4, seed=0)
        assert any(isinstance(m, relu) for m in usual.modules()), name
        assert not any(isinstance(m, relu) for m in swapped.modules()), name
    for name in ("swin_t", "efficientnet_b1", "densenet121", "googlenet", "mobilenetv3-small"):
        assert "activation" not in registry.family_of(name).options


def test_squeezenet_students_reach_negative_logits() -> None:
    images = torch.randn(8, 3, 32, 32)
    student = registry.build("squeezenet", input_shape=(3, 32, 32), classes=10, seed=0).eval()
    published = registry.build("squeezenet,logit_relu=true", input_shape=(3, 32, 32), classes=10, seed=0).eval()
    published.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert student(images).min() < 0
        torch.testing.assert_close(published(images).min() >= 0, torch.tensor(True))


def test_option_a_shortcut_subsamples_and_pads_both_sides() -> None:
    net = registry.build("resnet8", input_shape=(3, 8, 8), classes=4, seed=0)
    x = torch.randn(1, 16, 8, 8)
    out = net.get_submodule("layer2.0.shortcut")(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == 0
    assert out[:, 24:].abs().sum() == 0


def test_build_is_a_function_of_its_seed_and_leaves_global_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = registry.build("resnet8", input_shape=(1, 8, 8), classes=4, seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    same = registry.build("resnet8", input_shape=(1, 8, 8), classes=4, seed=3).state_dict()
    other = registry.build("resnet8", input_shape=(1, 8, 8), classes=4, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("name", ["mobilenetv3-small", "mnasnet", "efficientnet-b0"])
def test_no_dropout_and_usual_batchnorm_momentum(name: str) -> None:
    net = registry.build(name, input_shape=(3, 32, 32), classes=4, seed=0)
    assert all(m.momentum is not None and m.momentum >= 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    # In training mode two passes agree only without dropout and stochastic depth (running statistics aside).
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.train()(images), net(images))


def test_mnasnet_loads_a_state_dict_without_metadata() -> None:
    net = registry.build("mnasnet@0.5", input_shape=(3, 32, 32), classes=4, seed=0)
    other = registry.build("mnasnet@0.5", input_shape=(3, 32, 32), classes=4, seed=1)
    other.load_state_dict(dict(net.state_dict()))
    assert torch.equal(other.get_parameter("layers.0.weight"), net.get_parameter("layers.0.weight"))


def test_custom_factory_gets_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]
) -> None:
    (tmp_path / "house_nets.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def tiny(input_shape, classes):
            return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes))
        def fixed():
            return nn.Linear(2, 2)
        def broken(classes):
            raise ZeroDivisionError("no")
        def text():
            return "net"
    """)
    )
    monkeypatch.chdir(tmp_path)
    approve(f"house_nets:{factory}" for factory in ("tiny", "fixed", "broken", "text", "none"))
    net = registry.build("house_nets:tiny", input_shape=(1, 4, 4), classes=3, seed=0)
    assert net(torch.zeros(1, 1, 4, 4)).shape == (1, 3)
    assert isinstance(registry.build("house_nets:fixed", input_shape=(1, 4, 4), classes=3, seed=0), nn.Linear)
    for name, message in (("broken", "ZeroDivisionError: no"), ("text", "returned a str"), ("none", "AttributeError")):
        with pytest.raises(UsageError, match=message):
            registry.build(f"house_nets:{name}", input_shape=(1, 4, 4), classes=3, seed=0)
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        registry.build("no_such_package:net", input_shape=(1, 4, 4), classes=3, seed=0)


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "def net():\n    raise SystemExit(0)"])
def test_own_code_that_ends_the_program_is_told_and_ends_nothing(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]
) -> None:
    approve(["script_that_exits:net"])
    (tmp_path / "script_that_exits.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "script_that_exits", raising=False)
    with pytest.raises(UsageError, match="script_that_exits:net cannot be built: SystemExit"):
        registry.build("script_that_exits:net", input_shape=(3, 32, 32), classes=10, seed=0)


def test_a_factory_of_any_arguments_gets_the_number_of_classes(approve: Callable[..., None]) -> None:
    approve(["torchvision.models:shufflenet_v2_x0_5"])
    net = registry.build("torchvision.models:shufflenet_v2_x0_5", input_shape=(3, 32, 32), classes=7, seed=0)
    assert net.get_submodule("fc").out_features == 7


@pytest.mark.parametrize("error", [RuntimeError("no such layer\nStack"), TypeError("in_chans"), KeyError("head")])
def test_whatever_timm_raises_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def create_model(*_: object, **__: object) -> nn.Module:
        raise error

    timm = SimpleNamespace(is_model=lambda name: name == "net", list_models=lambda: ["net"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(UsageError, match=f"timm:net cannot be built: {type(error).__name__}: ") as caught:
        registry.build("timm:net", input_shape=(1, 32, 32), classes=3, seed=0)
    assert "\n" not in str(caught.value)


def test_timm_is_built_or_named_as_missing() -> None:
    try:
        import timm  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MachineError, match="edgekd\\[timm\\]"):
            registry.build("timm:resnet10t", input_shape=(1, 32, 32), classes=3, seed=0)
        return
    net = registry.build("timm:resnet10t", input_shape=(1, 32, 32), classes=3, seed=0).eval()
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="two classes"):
        registry.build("resnet8", input_shape=(1, 8, 8), classes=1, seed=0)
    with pytest.raises(UsageError, match="vit_b_16"):
        registry.build("vit_b_16", input_shape=(3, 30, 30), classes=2, seed=0)
