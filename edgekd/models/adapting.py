"""Networks of other code as classifiers of the kind that is trained here: in float32, answering one tensor of logits.

What is done to one leaves its names and its code alone: lazy layers get their sizes, and hooks, which stay with every
copy, take the logits out of whatever the network answers and keep it from writing into its images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgekd import rng
from edgekd.errors import UsageError
from edgekd.models import probe
from edgekd.models.stems import Shape
from edgekd.text import first_line, listed, sizes

_LOGITS = ("logits", "output", "outputs", "out", "pred", "prediction", "predictions", "scores", "y")
"""Under which names networks return their logits beside other things, the likeliest first."""
_SURE = 1e-7


class LazySizeError(UsageError):
    """The lazy layers of a network cannot take images of a size."""


@dataclass
class LogitsHook:
    """Takes the logits out of what a network answers, and makes two of a single one."""

    one: bool = False
    """Whether the network answers with one number an image: how far it prefers the second of two classes."""
    probability: bool = False
    """Whether that number went through a sigmoid."""
    said: str = ""
    """What was taken for the logits, where the network leaves a choice."""

    def __call__(self, _network: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Return the logits (N, classes); whatever cannot be them stays as it is."""
        images = next((x for x in inputs if isinstance(x, Tensor)), None)
        # Its len() would fix the batch of what is exported.
        found = _chosen(output, None if images is None else images.shape[0])[1]
        if not isinstance(found, Tensor):
            return output
        if not self.one:
            return found.flatten(1) if found.ndim == 4 and found.shape[2:] == (1, 1) else found
        z = found.reshape(-1, 1)
        if self.probability:
            z = z.clamp(_SURE, 1 - _SURE)
            z = (z / (1 - z)).log()
        return torch.cat([z - z, z], dim=1)  # zeros that any runtime of ONNX can make


def as_classifier(network: nn.Module, input_shape: Shape, name: str) -> nn.Module:
    """Bring a fresh network of other code to float32, give lazy layers their sizes, and add the hooks that it needs.

    Raises LazySizeError where lazy layers cannot take such images. What else is wrong the probe tells.
    """
    network.float()
    lazy = any(is_lazy(tensor) for tensor in _tensors(network))
    hook = LogitsHook()
    with rng.seeded_global_rng(0, "adapting"), probe.evaluating(network):
        images = torch.randn(2, *input_shape)
        try:
            answer = network(images)
        except Exception as error:  # foreign networks may raise anything
            if lazy:
                raise LazySizeError(
                    f"{name} cannot be built: its lazy layers do not take {sizes(input_shape)} images "
                    f"({first_line(error)}). Set the right channels and size with --input CxHxW."
                ) from error
            answer = None
    if images._version:
        network.register_forward_pre_hook(_copied)
    network.register_forward_hook(hook)  # first, so that the last operation is that of what it takes
    path, found = _chosen(answer, len(images))
    if isinstance(found, Tensor):
        one = found.numel() == len(images)
        hook.probability = one and probe.last_operation(network, images) in probe.SIGMOIDS
        hook.one = one
        hook.said = _said(path, hook)
    return network


def _copied(_network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give a network that writes into its images a copy of them: others look at the same images."""
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def taken_for_logits(network: nn.Module) -> str:
    """Return what was taken for the logits of a network, in words; empty where it leaves no choice."""
    hooks = network._forward_hooks.values()
    return next((hook.said for hook in hooks if isinstance(hook, LogitsHook)), "")


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _said(path: str, hook: LogitsHook) -> str:
    parts = [f"{path} of what it returns"] if path else []
    if hook.one:
        number = "its one output, a probability p: 0 and log(p / (1 - p))" if hook.probability else "its one output z"
        parts.append(number if hook.probability else f"{number}: 0 and z")
    return ", ".join(parts)


def _chosen(answer: Any, count: Any) -> tuple[str, Any]:
    """What of an answer to so many images are the logits, and where it stands; the answer itself if it is a tensor."""
    if isinstance(answer, Tensor) or answer is None:
        return "", answer
    tensors = {name: part for name, part in _parts(answer) if _may_be_logits(part, count)}
    usual = [name for name in _LOGITS if name in tensors]
    name = next(iter([*usual, *tensors]), None)
    if name is None:
        return "", answer
    others = [other for other, _ in _parts(answer) if other != name]
    return f"{name}{f', not {listed(others, 3)},' if others else ''}", tensors[name]


def _parts(answer: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(answer, Mapping):
        yield from ((str(name), part) for name, part in answer.items())
    elif is_dataclass(answer) and not isinstance(answer, type):
        yield from ((field.name, getattr(answer, field.name)) for field in fields(answer))
    elif isinstance(answer, tuple | list):
        names = getattr(answer, "_fields", [f"entry {index}" for index in range(len(answer))])
        yield from zip(names, answer, strict=True)


def _may_be_logits(part: Any, count: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 2 and part.shape[0] == count
