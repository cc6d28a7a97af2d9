import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from edgekd import rng
from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion import matching
from edgekd.ingestion.foreign import read_checkpoint
from edgekd.ingestion.identify import build_teacher, infer, state_dict_of
from edgekd.models import probe, registry
from edgekd.models.registry import ArchSpec

TEACHERS = Path(__file__).parents[3] / "shared" / "teachers"
STUDENTS = [
    *registry.student_names(), "mobilenetv2@0.35", "mobilenetv2@1.4", "mobilenetv3-small@0.5", "mnasnet@0.5",
    "mobilenetv3-large@0.75", "shufflenetv2@0.5", "shufflenetv2@2", "resnet20@1.8", "lenet5@2", "wrn-10-4",
    "resnet26", "resnet20,shortcut=B", "resnet20@0.5,shortcut=B", "resnet8,shortcut=3x3", "resnet-3-4-6",
    "resnet-1-2-1@0.5,shortcut=B",
]  # fmt: skip


def saved(net: nn.Module) -> dict[str, torch.Tensor]:
    return state_dict_of(net.state_dict())


def stir(net: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that a wrong mapping would show."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return net.eval()


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_is_inferred_back_from_its_weights(name: str) -> None:
    shape = (1, 16, 16)
    net = stir(registry.build(name, input_shape=shape, classes=7, seed=0))
    arch = "squeezenet,logit_relu=false" if name == "squeezenet" else None
    started = time.thread_time()  # other processes do not count
    found = infer(saved(net), arch=arch, input_shape=shape)
    assert time.thread_time() - started < 4
    assert str(found.arch) == (arch or name)
    assert (found.classes, found.input_shape, dict(found.mapping)) == (7, shape, {})
    loaded = build_teacher(found)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(m.training for m in loaded.modules())
    images = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))


def expanded(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return weights of these shapes that take no memory."""
    return {name: torch.empty(1).expand(shape) for name, shape in shapes.items()}


def assert_told_apart(name: str) -> None:
    shapes = matching.network_shapes(name, (3, 224, 224), 17)
    assert len(shapes) == registry.tensor_counts()[name]
    found = infer(expanded(shapes))
    side = 299 if name == "inception_v3" else 224
    expected = "squeezenet,logit_relu=true" if name == "squeezenet" else name
    assert (str(found.arch), found.classes, found.input_shape) == (expected, 17, (3, side, side))


@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg11", "vgg19_bn", "squeezenet1_0", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
     "regnet_x_400mf", "regnet_x_1_6gf", "convnext_tiny", "inception_v3", "vit_b_16", "swin_t"],
)  # fmt: skip
def test_torchvision_classifiers_are_told_apart(name: str) -> None:
    assert_told_apart(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(registry.tensor_counts()))
def test_every_torchvision_classifier_is_told_apart(name: str) -> None:
    assert name in registry.student_names() or name in torchvision.models.list_models(module=torchvision.models)
    assert_told_apart(name)


def slow(*arguments: str) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *(("lenet5", tensor) for tensor in ("conv1.weight", "conv3.weight", "fc1.weight", "fc2.weight")),
        *(("vit_b_32", tensor) for tensor in ("conv_proj.weight", "encoder.pos_embedding", "heads.head.weight")),
        *(slow("wrn-10-1", tensor) for tensor in ("conv1.weight", "block1.layer.0.conv1.weight", "fc.weight")),
        *(slow("shufflenetv2@0.5", tensor) for tensor in ("conv1.0.weight", "fc.weight", "fc.bias")),
    ],
)
def test_tensors_of_any_shape_are_only_another_network(name: str, tensor: str) -> None:
    weights = expanded(matching.network_shapes(name, (3, 64, 64), 10))
    usual = tuple(weights[tensor].shape)
    for shape in ((), (5,), (2**62, 0), (*usual, 1), (*usual[:-1], usual[-1] + 1), (0, *usual[1:])):
        with pytest.raises(InputFileError, match=r"Nothing fits|does not fit|fix the image size|no usual image size"):
            infer({**weights, tensor: torch.empty(()).expand(shape) if 0 not in shape else torch.empty(shape)})


def test_a_transformer_of_other_patches_is_another_network() -> None:
    with torch.device("meta"):
        net = torchvision.models.VisionTransformer(36, 4, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
    with pytest.raises(InputFileError, match=r"conv_proj\.weight is 768x3x4x4, expected 768x3x16x16"):
        infer(expanded({name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}))


@pytest.mark.parametrize("tensors", [7 + 30 * 201, 9 + 30 * 201])
def test_more_tensors_than_any_network_has_are_no_network(tensors: int) -> None:
    with pytest.raises(InputFileError, match=f"Nothing fits the weights \\({tensors} tensors\\)"):
        infer({f"layer{i}.weight": torch.ones(1) for i in range(tensors)})


@pytest.mark.parametrize(
    ("name", "shape", "changes", "differences"),
    [
        ("resnet20", (1, 32, 32), {"layer1.0.bn1.weight": None}, "missing layer1.0.bn1.weight"),
        ("resnet18", (3, 32, 32), {"extra.weight": torch.ones(3)}, "surplus extra.weight"),
        ("resnet8", (3, 32, 32), {"linear.weight": torch.ones(640)}, "linear.weight is 640, expected Nx64"),
        (
            "resnet18",
            (3, 32, 32),
            {"conv1.weight": torch.ones(64, 3, 9, 9)},
            "conv1.weight is 64x3x9x9, expected 64x3x7x7",
        ),
    ],
)
def test_only_true_differences_are_told(
    name: str, shape: tuple[int, int, int], changes: dict[str, torch.Tensor | None], differences: str
) -> None:
    weights = saved(registry.build(name, input_shape=shape, classes=10, seed=0))
    given = {key: tensor for key, tensor in {**weights, **changes}.items() if tensor is not None}
    with pytest.raises(InputFileError) as caught:
        infer(given)
    assert f"the nearest is {name}: {differences}. Give" in str(caught.value)


def test_vision_transformers_fix_their_image_size() -> None:
    net = registry.build("vit_b_32", input_shape=(1, 64, 64), classes=3, seed=0)
    found = infer(saved(net))
    assert (str(found.arch), found.input_shape) == ("vit_b_32", (1, 64, 64))
    assert "image size" not in {a.what for a in found.assumptions}


@pytest.mark.parametrize(("name", "positions", "side"), [("lenet5", 1, 32), ("lenet5-half", 4, 36), ("lenet5", 81, 64)])
def test_lenet_fixes_its_image_size(name: str, positions: int, side: int) -> None:
    net = registry.build(name, input_shape=(1, side, side), classes=10, seed=0)
    assert isinstance(net.fc1, nn.Linear)
    assert isinstance(net.conv3, nn.Conv2d)
    assert net.fc1.in_features == net.conv3.out_channels * positions
    found = infer(saved(net))
    assert found.input_shape == (1, side, side)
    flags = {f"--arch {name},activation=tanh", f"--arch {name},pool=avg"}
    padded = {"--input 1x28x28"} if side == 32 else set()
    assert {a.flag for a in found.assumptions} == flags | padded


def test_unseen_choices_are_assumed_with_the_flag_that_changes_them() -> None:
    net = registry.build("resnet50", input_shape=(3, 32, 32), classes=10, seed=0)
    found = infer(saved(net))
    flags = {a.what: (a.value, a.flag) for a in found.assumptions}
    assert found.input_shape == (3, 32, 32)
    assert flags["image size"] == ("32x32", "--input 3x32x32")
    assert flags["max-pool after the stem"] == ("no", "--arch resnet50,maxpool=true")
    assert flags["stride of the stem"] == ("1", "--arch resnet50,stem_stride=2")
    assert flags["convolution that strides in a bottleneck"] == ("3x3", "--arch resnet50,stride_in=1x1")
    changed = infer(saved(net), arch="resnet50,maxpool=true")
    assert isinstance(build_teacher(changed).maxpool, nn.MaxPool2d)
    assert isinstance(build_teacher(found).maxpool, nn.Identity)
    assert "max-pool after the stem" not in {a.what for a in changed.assumptions}


def test_every_flag_of_an_assumption_is_accepted() -> None:
    for name in ("resnet18", "mobilenetv2@0.35", "squeezenet", "wrn-10-1", "resnet8", "lenet5"):
        weights = saved(registry.build(name, input_shape=(3, 32, 32), classes=10, seed=0))
        base = infer(weights, input_shape=(3, 32, 32))
        for assumption in base.assumptions:
            changed = infer(weights, input_shape=(3, 32, 32), arch=assumption.flag.removeprefix("--arch "))
            assert changed.arch != base.arch
            build_teacher(changed)


def test_a_published_stem_at_a_small_size_is_kept() -> None:
    net = registry.build("resnet18", input_shape=(3, 224, 224), classes=10, seed=0)
    found = infer(saved(net), input_shape=(3, 32, 32))
    assert str(found.arch) == "resnet18,stem=7x7"
    assert isinstance(build_teacher(found).maxpool, nn.MaxPool2d)
    assert infer(saved(net)).input_shape == (3, 224, 224)


def test_auxiliary_classifiers_are_left_out_and_said_so() -> None:
    weights = expanded(matching.network_shapes("googlenet", (3, 224, 224), 9))
    found = infer({**weights, "aux1.fc2.weight": torch.ones(9, 4)})
    assert str(found.arch) == "googlenet"
    assert "auxiliary classifiers" in {a.what for a in found.assumptions}
    assert "aux1.fc2.weight" not in found.state_dict


def renamed(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights under the names many CIFAR repositories use for a ResNet-18."""
    return {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): tensor for name, tensor in saved(net).items()
    }


def test_other_names_need_consent_and_then_load_alike() -> None:
    net = stir(registry.build("resnet18", input_shape=(3, 32, 32), classes=10, seed=0))
    with pytest.raises(InputFileError) as caught:
        infer(renamed(net))
    assert "resnet18" in str(caught.value)
    assert "linear -> fc" in str(caught.value)
    assert "--accept-mapping" in str(caught.value)
    found = infer(renamed(net), accept_mapping=True)
    assert found.mapping["linear.weight"] == "fc.weight"
    assert "conv1.weight" not in found.mapping
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(build_teacher(found)(images), net(images))


def test_mapping_keeps_to_the_order_of_modules() -> None:
    net = registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0)
    weights = {name.replace("bn1", "norm1"): tensor for name, tensor in saved(net).items()}
    shuffled = dict(sorted(weights.items(), reverse=True))
    with pytest.raises(InputFileError, match="nearest"):
        infer(shuffled, accept_mapping=True)


def test_ambiguous_weights_list_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    net = registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0)
    twins = [ArchSpec("resnet8"), ArchSpec("resnet8", None, {"activation": "silu"})]
    monkeypatch.setattr(matching, "candidate_archs", lambda weights: twins)
    with pytest.raises(InputFileError, match=r"2 architectures: resnet8, resnet8,activation=silu.*--arch"):
        infer(saved(net))


@pytest.mark.parametrize(
    ("change", "nearest", "difference"),
    [
        (lambda w: w.pop("layer3.0.bn1.weight"), "resnet8", "missing layer3.0.bn1.weight"),
        (lambda w: w.update({"extra.weight": torch.ones(1)}), "resnet8", "surplus extra.weight"),
        (lambda w: w.update({"layer3.0.conv1.weight": torch.ones(64, 32, 5, 5)}), "resnet8", "expected 64x32x3x3"),
        (lambda w: w.update({"linear.weight": torch.ones(64)}), "resnet8", "linear.weight is 64"),
        (lambda w: w.update({"linear.bias": torch.ones(3)}), "resnet8", "linear.bias is 3, expected 10"),
        (lambda w: w.update({"conv1.weight": torch.ones(16)}), "resnet8", "conv1.weight is 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_compared_with_the_nearest(
    change: Callable[[dict[str, torch.Tensor]], object], nearest: str, difference: str
) -> None:
    weights = saved(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0))
    change(weights)
    with pytest.raises(InputFileError) as caught:
        infer(weights)
    message = str(caught.value)
    assert f"nearest is {nearest}" in message
    assert difference in message
    assert "--arch package.module:factory" in message
    with pytest.raises(InputFileError, match="resnet8 does not fit"):
        infer(weights, arch="resnet8")


def test_contradictions_of_the_user_are_named() -> None:
    weights = saved(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0))
    with pytest.raises(InputFileError, match="--input 3x32x32"):
        infer(weights, input_shape=(1, 32, 32))
    with pytest.raises(InputFileError, match="10 classes, not 100"):
        infer(weights, classes=100)
    with pytest.raises(InputFileError, match="resnet14 does not fit"):
        infer(weights, arch="resnet14")
    with pytest.raises(UsageError, match="resnet8"):
        infer(weights, arch="resnet9x")
    lenet = saved(registry.build("lenet5", input_shape=(1, 32, 32), classes=10, seed=0))
    with pytest.raises(InputFileError, match="fix the image size at 32x32"):
        infer(lenet, input_shape=(1, 64, 64))


def test_custom_code_is_matched_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]
) -> None:
    approve(["our_nets:tiny"])
    (tmp_path / "our_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(classes):\n"
        "    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    net = registry.build("our_nets:tiny", input_shape=(2, 8, 8), classes=6, seed=0)
    found = infer(saved(net), arch="our_nets:tiny")
    assert (found.classes, found.input_shape) == (6, (2, 32, 32))
    assert {a.what for a in found.assumptions} == {"image size"}
    images = torch.randn(2, 2, 8, 8)
    assert torch.equal(build_teacher(found)(images), net(images))
    other = {**saved(net), "0.weight": torch.ones(4, 2, 5, 5)}
    with pytest.raises(InputFileError, match=r"0\.weight is 4x2x5x5, expected 4x2x3x3"):
        infer(other, arch="our_nets:tiny")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_from_file_to_network(tmp_path: Path, suffix: str) -> None:
    net = stir(registry.build("mobilenetv2@0.35", input_shape=(1, 16, 16), classes=10, seed=0))
    path = tmp_path / f"teacher{suffix}"
    tensors = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    if suffix == ".pt":
        torch.save({"epoch": 1, "state_dict": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    found = infer(state_dict_of(read_checkpoint(path)), input_shape=(1, 16, 16))
    assert str(found.arch) == "mobilenetv2@0.35"
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(build_teacher(found)(images), net(images))


@pytest.mark.skipif(not TEACHERS.is_dir(), reason="the public teachers are not on this machine")
@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_public_checkpoints_load_with_nothing_but_their_name(name: str) -> None:
    found = infer(state_dict_of(read_checkpoint(TEACHERS / f"cifar10-{name}.th")))
    assert (str(found.arch), found.classes, found.input_shape) == (name, 10, (3, 32, 32))
    result = probe.probe(build_teacher(found), input_shape=found.input_shape, classes=10, seed=0)
    assert result.head_alive
    assert result.emits == "logits"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arch"),
    [("alexnet", ""), ("vgg11_bn", ""), ("densenet121", ""), ("googlenet", ""), ("swin_t", ""), ("vit_b_32", ""),
     ("efficientnet_b1", ""), ("regnet_x_400mf", ""), ("convnext_tiny", ""), ("resnext50_32x4d", ""),
     ("mobilenet_v3_small", "mobilenetv3-small"), ("shufflenet_v2_x0_5", "shufflenetv2@0.5"),
     ("mnasnet0_5", "mnasnet@0.5")],
)  # fmt: skip
def test_what_torchvision_saved_answers_as_it_did(tmp_path: Path, name: str, arch: str) -> None:
    with rng.seeded_global_rng(0, "test", name):
        quick = {"init_weights": False} if name == "googlenet" else {}
        net = torchvision.models.get_model(name, weights=None, num_classes=10, **quick)
        if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
            net.train()(torch.randn(4, 3, 96, 96))
    torch.save(net.eval().state_dict(), tmp_path / "teacher.pth")
    found = infer(state_dict_of(read_checkpoint(tmp_path / "teacher.pth")))
    assert str(found.arch) == (arch or name)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(build_teacher(found)(images), net(images))
