"""Pairs of names: by order, by shape within a block, and by words where the order is lost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from with_statistics import with_drawn_statistics

from edgekd.errors import InputFileError
from edgekd.ingestion.identify import build_teacher, infer, state_dict_of

Weights = dict[str, Tensor]


def registered(order: Callable[[str], tuple[bool, ...]], words: dict[str, str]) -> Callable[[Weights], Weights]:
    """Return what gives a block's layers another order, by their names within it, and then other names."""

    def change(weights: Weights) -> Weights:
        blocks: dict[str, list[str]] = {}
        for name in weights:
            parts = name.split(".")
            blocks.setdefault(".".join(parts[:2]) if parts[0].startswith("layer") else parts[0], []).append(name)
        ordered = [n for block, names in blocks.items() for n in sorted(names, key=lambda n: order(n[len(block) :]))]
        return {".".join(words.get(part, part) for part in name.split(".")): weights[name] for name in ordered}

    return change


def shortcut_first(name: str) -> tuple[bool, ...]:
    return ("shortcut" not in name and "downsample" not in name,)


def convolutions_first(name: str) -> tuple[bool, ...]:
    """conv1, conv2, bn1, bn2, and the shortcut last."""
    return "shortcut" in name, "bn" in name


def as_it_is(_name: str) -> tuple[bool, ...]:
    return ()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("resnet8,shortcut=B", registered(shortcut_first, {"shortcut": "down_sampler"})),
        ("resnet8,shortcut=B", registered(shortcut_first, {"shortcut": "skip", "conv1": "conv", "bn1": "bn"})),
        ("resnet8,shortcut=B", registered(shortcut_first, {"shortcut": "res", "linear": "fc"})),
        ("resnet8,shortcut=B", registered(convolutions_first, {"shortcut": "projection"})),
        ("resnet8@0.5,shortcut=B", registered(shortcut_first, {"shortcut": "downsample"})),
        ("resnet8", registered(convolutions_first, {"linear": "out"})),
        ("resnet8,shortcut=3x3", registered(as_it_is, {"shortcut": "downsample", "conv1": "conv", "bn1": "bn"})),
        ("resnet8,shortcut=3x3", registered(shortcut_first, {"shortcut": "skip"})),
        ("resnet-2-1-3,shortcut=3x3", registered(as_it_is, {"shortcut": "downsample", "conv1": "conv", "bn1": "bn"})),
        ("resnet18", registered(shortcut_first, {"downsample": "shortcut", "conv1": "prep", "bn1": "norm"})),
        ("resnet50", registered(shortcut_first, {"downsample": "identity_downsample"})),
    ],
)
def test_layers_registered_in_another_order_are_paired_by_shape(
    name: str, change: Callable[[Weights], Weights]
) -> None:
    net = with_drawn_statistics(name)
    found = infer(change(state_dict_of(net.state_dict())), input_shape=(3, 32, 32), accept_mapping=True)
    assert str(found.arch) == name
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(build_teacher(found)(images), net(images))


def test_another_order_needs_consent_and_is_shown() -> None:
    change = registered(shortcut_first, {"shortcut": "down_sampler"})
    with pytest.raises(InputFileError, match=r"under other names: down_sampler -> shortcut \(4 layers\)\. Use"):
        infer(change(state_dict_of(with_drawn_statistics("resnet8,shortcut=B").state_dict())))


@pytest.mark.parametrize(
    "words",
    [
        {"downsample": "shortcut", "fc": "linear"},
        {"bn1": "norm1", "bn2": "norm2"},
        {"layer1": "stage1", "layer2": "stage2", "layer3": "stage3", "layer4": "stage4"},
    ],
)
def test_sorted_names_of_other_words_are_paired_by_their_words(words: dict[str, str]) -> None:
    net = with_drawn_statistics("resnet18")
    renamed = registered(as_it_is, words)(state_dict_of(net.state_dict()))
    found = infer(dict(sorted(renamed.items())), accept_mapping=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(build_teacher(found)(images), net(images))
