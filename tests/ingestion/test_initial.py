"""Which weights a student may start from, and which of its layers may stay random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.ingestion import initial
from edgekd.ingestion.weights import state_dict_of
from edgekd.models import registry

SHAPE = (3, 16, 16)


def student(
    name: str = "resnet8@0.5", shape: tuple[int, int, int] = SHAPE, classes: int = 5, seed: int = 0
) -> nn.Module:
    return registry.build(name, input_shape=shape, classes=classes, seed=seed)


def weights(**other: Any) -> dict[str, Tensor]:
    return state_dict_of(student(seed=1, **other).state_dict())


def test_weights_of_the_same_network_are_taken_whole() -> None:
    given = weights()
    found = initial.fit_to_student(student(), given, SHAPE)
    assert found.left_random == ()
    assert set(found.tensors) == set(given)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize(
    ("other", "random", "phrases"),
    [
        ({"classes": 1000}, {"linear.weight", "linear.bias"}, ("linear (1000 classes in the file, 5 here)",)),
        ({"shape": (1, 16, 16)}, {"conv1.weight"}, ("conv1 (1 channels in the file, 3 here)",)),
        (
            {"classes": 2, "shape": (1, 16, 16)},
            {"linear.weight", "linear.bias", "conv1.weight"},
            ("linear (2 classes in the file, 5 here)", "conv1 (1 channels in the file, 3 here)"),
        ),
    ],
    ids=["classes", "channels", "both"],
)
def test_another_head_and_another_stem_stay_random(
    other: dict[str, object], random: set[str], phrases: tuple[str, ...]
) -> None:
    given = weights(**other)
    found = initial.fit_to_student(student(), given, SHAPE)
    assert set(given) - set(found.tensors) == random
    assert found.left_random == phrases


def test_a_head_that_is_a_convolution_stays_random_too() -> None:
    given = state_dict_of(student("squeezenet", classes=1000, seed=1).state_dict())
    found = initial.fit_to_student(student("squeezenet"), given, SHAPE)
    assert set(given) - set(found.tensors) == {"classifier.1.weight", "classifier.1.bias"}


def test_wrappers_of_some_names_only_are_read() -> None:
    given = {f"backbone.{k}" if not k.startswith("linear") else f"head.{k}": t for k, t in weights().items()}
    found = initial.fit_to_student(student(), given, SHAPE)
    assert {name: t.shape for name, t in found.tensors.items()} == {name: t.shape for name, t in weights().items()}


def test_quantized_weights_are_refused() -> None:
    given = {**weights(), "linear.weight": torch.ones(5, 32, dtype=torch.int8)}
    with pytest.raises(InputFileError, match=r"linear\.weight are int8, not floating point"):
        initial.fit_to_student(student(), given, SHAPE)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights().items() if key != name}


def reshaped(name: str, *shape: int) -> dict[str, Tensor]:
    return {**weights(), name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (weights(name="resnet8"), "conv1.weight is 16x3x3x3, expected 8x3x3x3"),
        (weights(name="resnet14@0.5"), "surplus layer1.1.conv1.weight"),
        (without("layer2.0.bn1.running_mean"), "missing layer2.0.bn1.running_mean"),
        (without("linear.bias"), "missing linear.bias"),
        (reshaped("conv1.weight", 8, 1, 5, 5), "conv1.weight is 8x1x5x5, expected 8x3x3x3"),
        (reshaped("linear.weight", 1000, 16), "linear.weight is 1000x16, expected 5x32"),
        (reshaped("linear.weight", 1000, 32), "linear.weight is 1000x32, expected 5x32"),
        ({**reshaped("linear.weight", 0, 32), "linear.bias": torch.zeros(0)}, "linear.weight is 0x32, expected 5x32"),
        (reshaped("linear.bias", 1000), "linear.bias is 1000, expected 5"),
        (reshaped("layer1.0.conv1.weight", 8, 4, 3, 3), "layer1.0.conv1.weight is 8x4x3x3, expected 8x8x3x3"),
        ({}, "missing conv1.weight, bn1.weight, bn1.bias and"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_difference(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputFileError, match="the weights are of another network") as caught:
        initial.fit_to_student(student(), given, SHAPE)
    assert message in str(caught.value)
