"""What weights hold, in words, and what is said where nothing fits them."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from edgekd.errors import InputFileError
from edgekd.ingestion import contents
from edgekd.ingestion.identify import infer, state_dict_of
from edgekd.models import registry
from edgekd.models.shapes import Shapes, shapes_in


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU())


def grey_faces() -> nn.Module:
    sizes = [(1, 8), (8, 16), (16, 16), (16, 32)]
    last = [nn.Flatten(), nn.Linear(32 * 48 * 48, 64), nn.ReLU(), nn.Linear(64, 7)]
    return nn.Sequential(*(block(*size) for size in sizes), *last)


def lenet_like() -> nn.Module:
    """LeNet's five layers with other channels, for grey images."""
    net = nn.Module()
    net.conv1, net.conv2, net.conv3 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5), nn.Conv2d(32, 64, 5)
    net.fc1, net.fc2 = nn.Linear(64, 32), nn.Linear(32, 10)
    return net


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (grey_faces(), "4 convolutions, 4 BatchNorms, 2 linear layers; 1 channel in, 7 classes out"),
        (nn.Sequential(nn.Linear(784, 100), nn.Linear(100, 10)), "2 linear layers; 784 numbers in, 10 classes out"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)), "2 convolutions; 3 channels in, 5 classes out"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 1)),
            "1 convolution, 1 linear layer; 3 channels in, 1 number out",
        ),
        (nn.Sequential(nn.BatchNorm2d(3)), "1 BatchNorm"),
        (nn.Sequential(), ""),
    ],
)
def test_layers_channels_and_classes_are_told(net: nn.Module, expected: str) -> None:
    assert contents.in_words(shapes_in(net)) == expected


def test_what_the_order_of_names_hides_is_not_made_up() -> None:
    ordered = shapes_in(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0))
    sorted_names = dict(sorted(ordered.items()))
    assert contents.in_words(sorted_names) == contents.in_words(ordered)
    several = {"a.weight": (10, 64), "b.weight": (7, 64), "conv.weight": (64, 3, 3, 3)}
    assert contents.in_words(several) == "1 convolution, 2 linear layers; 3 channels in"


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ({f"lin{i}.model.1.weight": (1, 64, 1, 1) for i in range(5)}, "LPIPS"),
        ({"model.0.conv.weight": (16, 3, 3, 3), "model.22.cv2.0.0.conv.weight": (64, 64, 3, 3)}, "detector"),
        ({"backbone.conv1.weight": (64, 3, 7, 7), "rpn.head.cls_logits.weight": (3, 256, 1, 1)}, "detector"),
        ({"roi_heads.box_predictor.cls_score.weight": (91, 1024)}, "detector"),
        ({"bbox_head.fc.weight": (4, 8)}, "detector"),
        ({"inc.conv.weight": (64, 3, 3, 3), "up1.conv.weight": (64, 128, 3, 3)}, "segmenter"),
        ({"backbone.conv1.weight": (64, 3, 7, 7), "aux_classifier.0.weight": (256, 1024, 3, 3)}, "segmenter"),
        ({"encoder.0.weight": (8, 3, 3, 3), "decoder.0.weight": (8, 3, 3, 3)}, "segmenter"),
        ({"pos_embedding": (1, 50, 64), "cls_token": (1, 1, 64), "fc.weight": (10, 64)}, "vision transformer"),
        ({"transformer.wte.weight": (50257, 768)}, "language model"),
        ({"fc.weight": (128, 512), "bn.weight": (128,), "bn.running_mean": (128,), "bn.bias": (128,)}, "embedding"),
    ],
)
def test_what_is_no_classifier_is_called_so(shapes: Shapes, word: str) -> None:
    assert word in contents.no_classifier(shapes)


@pytest.mark.parametrize(
    "names",
    [["model.2.cv2.conv.weight", "model.9.linear.weight"], ["downsample.0.weight", "update.weight", "fc.weight"]],
)
def test_a_classifier_is_called_nothing_else(names: list[str]) -> None:
    assert contents.no_classifier(dict.fromkeys(names, (8, 8))) == ""


def test_no_classifier_of_the_zoo_is_called_anything_else() -> None:
    for name in ("resnet8", "wrn-16-1", "lenet5", "resnet18", "mobilenetv2", "shufflenetv2"):
        net = registry.build(name, input_shape=(3, 32, 32), classes=10, seed=0)
        assert contents.no_classifier(shapes_in(net)) == ""


def refusal(weights: Mapping[str, torch.Tensor], arch: str | None = None) -> str:
    with pytest.raises(InputFileError) as caught:
        infer(weights, arch=arch)
    return str(caught.value)


def test_the_nearest_is_named_only_where_half_of_the_tensors_fit() -> None:
    message = refusal({**state_dict_of(lenet_like().state_dict()), "scale.factor": torch.ones(3)})  # so it is no chain
    assert "3 convolutions, 2 linear layers; 1 channel in, 10 classes out)" in message
    assert "nearest" not in message
    near = state_dict_of(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0).state_dict())
    assert "; the nearest is resnet8: missing layer3.0.bn2.bias." in refusal(
        {name: tensor for name, tensor in near.items() if name != "layer3.0.bn2.bias"}
    )


def test_a_grey_file_is_not_compared_with_colours() -> None:
    message = refusal(state_dict_of(lenet_like().state_dict()), arch="lenet5")
    assert "conv1.weight is 16x1x5x5, expected 6x1x5x5" in message


def test_the_nearest_has_the_shortcuts_of_the_file() -> None:
    net = registry.build("resnet20,shortcut=B", input_shape=(3, 32, 32), classes=10, seed=0)
    weights = state_dict_of(net.state_dict())
    del weights["layer3.2.bn2.bias"]
    assert "the nearest is resnet20,shortcut=B: missing layer3.2.bn2.bias." in refusal(weights)
