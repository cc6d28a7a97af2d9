"""Biases before BatchNorm and a single output: what the zoo has no place for, and the same function without it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from with_statistics import with_drawn_statistics

from edgekd.errors import InputFileError
from edgekd.ingestion.identify import Inferred, build_teacher, infer, state_dict_of
from edgekd.models import probe

SHAPE = (3, 32, 32)
Weights = dict[str, Tensor]


def biased(name: str, which: Callable[[str], bool] = lambda _: True) -> nn.Module:
    net = with_drawn_statistics(name)
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is None and which(path):
            module.bias = nn.Parameter(0.3 * torch.randn(module.out_channels))
    return net


def with_one_output(net: nn.Module) -> nn.Module:
    net.linear = nn.Linear(64, 1)
    return net


def answers(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(net(torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))))


def assumed(found: Inferred) -> dict[str, str]:
    return {assumption.what: assumption.value for assumption in found.assumptions}


def reordered(weights: Weights) -> Weights:
    return dict(sorted(weights.items()))


def renamed(weights: Weights) -> Weights:
    return {name.replace("shortcut", "downsample").replace("bn1", "norm1"): t for name, t in weights.items()}


@pytest.mark.parametrize("name", ["resnet8", "resnet8,shortcut=B", "mobilenetv3-small@0.5"])
@pytest.mark.parametrize("change", [dict, reordered])
def test_a_bias_before_batchnorm_goes_into_the_running_mean(name: str, change: Callable[[Weights], Weights]) -> None:
    net = biased(name)
    found = infer(change(state_dict_of(net.state_dict())), input_shape=SHAPE)
    assert str(found.arch) == name
    assert "the same function" in assumed(found)["biases before BatchNorm"]
    torch.testing.assert_close(answers(build_teacher(found)), answers(net), rtol=1e-3, atol=1e-3)


def test_some_convolutions_have_a_bias_and_others_other_names() -> None:
    net = biased("resnet8,shortcut=B", lambda path: "conv2" in path or path == "conv1")
    found = infer(renamed(state_dict_of(net.state_dict())), accept_mapping=True)
    assert found.mapping["layer2.0.norm1.weight"] == "layer2.0.bn1.weight"
    assert assumed(found)["biases before BatchNorm"].startswith("of 4 convolutions")
    torch.testing.assert_close(answers(build_teacher(found)), answers(net), rtol=1e-4, atol=1e-4)


def test_a_bias_that_no_batchnorm_takes_away_is_refused() -> None:
    with pytest.raises(InputFileError, match=r"fit wrn-10-1 but for biases of convolutions which no BatchNorm takes"):
        infer(state_dict_of(biased("wrn-10-1").state_dict()))


def test_weights_that_fit_as_they_are_are_not_rewritten() -> None:
    net = with_drawn_statistics("mobilenetv3-small@0.5")
    weights = state_dict_of(net.state_dict())
    found = infer(weights, input_shape=SHAPE)
    assert assumed(found).keys() == {"early strides"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.state_dict.items())


@pytest.mark.parametrize("change", [dict, reordered])
def test_one_output_is_two_logits(change: Callable[[Weights], Weights]) -> None:
    net = with_one_output(with_drawn_statistics("resnet8"))
    found = infer(change(state_dict_of(net.state_dict())))
    assert (str(found.arch), found.classes) == ("resnet8", 2)
    assert "0 and z" in assumed(found)["the single output z of linear.weight"]
    logits = answers(build_teacher(found))
    torch.testing.assert_close(logits[:, 1:], answers(net), rtol=1e-4, atol=1e-5)
    assert not logits[:, 0].any()


def test_one_output_and_biases_come_together() -> None:
    net = with_one_output(biased("resnet8"))
    found = infer(state_dict_of(net.state_dict()))
    assert {"biases before BatchNorm", "the single output z of linear.weight"} <= assumed(found).keys()
    torch.testing.assert_close(answers(build_teacher(found))[:, 1:], answers(net), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("end", [nn.Identity, nn.Sigmoid])
def test_the_network_of_two_logits_answers_as_the_one_of_a_single_output(end: type[nn.Module]) -> None:
    net = with_one_output(with_drawn_statistics("resnet8"))
    teacher = build_teacher(infer(state_dict_of(net.state_dict())))
    assert probe.same_answers(nn.Sequential(net, end()), teacher, SHAPE, seed=0)
    assert not probe.same_answers(nn.Sequential(net, nn.Hardtanh(-1e-3, 1e-3), end()), teacher, SHAPE, seed=0)
