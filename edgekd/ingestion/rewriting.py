"""Other weights of the same function: what a network of the zoo has no place for is brought into a form that it has.

One output z of two classes becomes the logits 0 and z. A bias before a BatchNorm layer, which takes it away again, goes
into the running mean. Both are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.models import probe
from edgekd.models.stems import Shape


@dataclass(frozen=True)
class Rewriting:
    """Weights in a form that may fit where the file's own does not."""

    weights: Mapping[str, Tensor] = field(repr=False)
    head: str = ""
    """The weight that had one row and has two; empty if none."""
    biases: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The biases that were taken away, by the names of the weights beside them."""


def rewritings(weights: Mapping[str, Tensor]) -> Iterator[Rewriting]:
    """Yield the weights as they are, then with two logits for one output, then without biases before BatchNorm."""
    yield Rewriting(weights)
    two_logits = with_two_logits(weights)
    if two_logits is not None:
        yield two_logits
    two = two_logits or Rewriting(weights)
    last: dict[str, Tensor] = {}
    for biases in (_biases_of_convolutions(weights, just_before=True), _biases_of_convolutions(weights)):
        if biases and biases.keys() != last.keys():
            removed = {_bias_of(name) for name in biases}
            yield Rewriting({name: t for name, t in two.weights.items() if name not in removed}, two.head, biases)
        last = biases


def with_two_logits(weights: Mapping[str, Tensor]) -> Rewriting | None:
    """Return the weights with two logits in place of a single output; None where they have several."""
    head = _one_row(weights)
    return None if head is None else Rewriting(_with_a_zero_logit(weights, head), head)


def without_biases(
    net: nn.Module, tensors: Mapping[str, Tensor], biases: Mapping[str, Tensor], input_shape: Shape
) -> dict[str, Tensor] | None:
    """Return `tensors` with each bias subtracted from the running mean of the BatchNorm layer behind it.

    Which layer stands behind is taken from the order, and held to what the network answers with the biases in place;
    None where it answers otherwise.

    Args:
        net: the network, which has no such biases; its weights are overwritten.
        tensors: its state.
        biases: by the names of the weights beside them.
        input_shape: (C, H, W).
    """
    modules = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | _BatchNorm)]
    behind = {f"{name}.weight": after for (name, _), (after, _) in pairwise(modules)}
    folded = dict(tensors)
    for name, bias in biases.items():
        mean = folded.get(f"{behind.get(name, '')}.running_mean")
        if mean is None or mean.shape != bias.shape:
            return None
        folded[f"{behind[name]}.running_mean"] = mean - bias
    with_biases, without = (
        _answer(net, state, added, input_shape) for state, added in ((tensors, biases), (folded, {}))
    )
    close = torch.allclose(with_biases, without, rtol=1e-3, atol=1e-3 * float(with_biases.abs().max()))
    return folded if close else None


def _answer(net: nn.Module, state: Mapping[str, Tensor], biases: Mapping[str, Tensor], input_shape: Shape) -> Tensor:
    """What a network answers seeded noise with this state, and with biases on top."""
    net.load_state_dict(state, strict=False)
    layers = {name: net.get_submodule(name.removesuffix(".weight")) for name in biases}
    for name, layer in layers.items():
        layer.bias = nn.Parameter(biases[name], requires_grad=False)
    images = torch.randn(4, *input_shape, generator=torch.Generator().manual_seed(0))
    answer = torch.as_tensor(probe.call_network(net.eval(), images))
    for layer in layers.values():
        layer.register_parameter("bias", None)
    return answer


def _one_row(weights: Mapping[str, Tensor]) -> str | None:
    """The last weight that makes a single number of a vector."""
    rows = [name for name, t in weights.items() if name.endswith("weight") and t.ndim in (2, 4) and len(t) == 1]
    return next((name for name in reversed(rows) if weights[name][0].numel() == weights[name].shape[1] > 0), None)


def _with_a_zero_logit(weights: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The weights with a first class whose logit is 0."""
    both = {head, _bias_of(head)}
    return {name: torch.cat([torch.zeros_like(t), t]) if name in both else t for name, t in weights.items()}


def _biases_of_convolutions(weights: Mapping[str, Tensor], *, just_before: bool = False) -> dict[str, Tensor]:
    """The biases of convolutions by their weights, or of those alone that a BatchNorm of as many channels follows."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in weights))
    means = [weights.get(f"{layer}.running_mean") for layer in layers]
    if all(mean is None for mean in means):
        return {}
    found = {}
    for layer, after in zip(layers, [*means[1:], None], strict=True):
        weight, bias = weights.get(f"{layer}.weight"), weights.get(f"{layer}.bias")
        if weight is None or bias is None or weight.ndim != 4 or bias.shape != weight.shape[:1]:
            continue
        if not just_before or (after is not None and after.shape == bias.shape):
            found[f"{layer}.weight"] = bias
    return found


def _bias_of(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"
