"""torchvision's classifiers for any image size, channels and classes: its own code, the first layers replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torchvision.models as tv
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from edgekd.models import stems
from edgekd.models.stems import Shape

if TYPE_CHECKING:
    from edgekd.models.registry import ArchSpec


class _MNASNet(tv.MNASNet):  # type: ignore[misc]
    """torchvision's MNASNet, which otherwise refuses a state dict without metadata (any .safetensors file)."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": 2}, *rest)


def build_mnasnet(width: float, classes: int) -> nn.Module:
    """Build MNASNet as published; the other mobile networks are torchvision's own."""
    return _MNASNet(width, num_classes=classes)


def as_student(net: nn.Module, spec: ArchSpec, input_shape: Shape, downsamplings: Sequence[str]) -> nn.Module:
    """Fit a mobile network to small images: leave out the earliest of its `downsamplings`, the modules that do it."""
    _set_input_channels(net, input_shape[0])
    drop = int(spec.options.get("drop_strides", stems.early_strides_to_drop(input_shape)))
    for path in downsamplings[:drop]:
        _remove_stride(net, path)
    return _settle(net)


def build_resnet(
    name: str,
    input_shape: Shape,
    classes: int,
    *,
    stem: str,
    stem_stride: int,
    maxpool: bool,
    stride_in: str,
) -> nn.Module:
    """Build a ResNet, ResNeXt or wide ResNet with the given stem.

    `stride_in` names the convolution of a bottleneck that strides: `3x3` (torchvision) or `1x1` (He et al. 2016).
    """
    net = tv.get_model(name, weights=None, num_classes=classes)
    kernel = int(stem[0])
    if (kernel, stem_stride, input_shape[0]) != (7, 2, 3):
        net.conv1 = _convolution(net.conv1, input_shape[0], kernel=kernel, stride=stem_stride)
    if not maxpool:
        net.maxpool = nn.Identity()
    if stride_in == "1x1":
        for stage in (net.layer2, net.layer3, net.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return _settle(net)


def remove_logit_relu(squeezenet: nn.Module) -> None:
    """Remove the ReLU that torchvision's SqueezeNet puts on its logits: a student must reach negative ones."""
    _replace(squeezenet, "classifier.2", nn.Identity())


def build_published(name: str, input_shape: Shape, classes: int, **arguments: Any) -> nn.Module:
    """Build any other classifier of torchvision by its own name, as published."""
    net = tv.get_model(name, weights=None, num_classes=classes, **arguments)
    _set_input_channels(net, input_shape[0])
    return _settle(net)


def _settle(net: nn.Module) -> nn.Module:
    """Set dropout and stochastic depth to 0, and slow BatchNorm averages to the usual momentum.

    Momenta of 0.01 and below (MobileNetV3, MNASNet) fit millions of ImageNet steps; after a short distillation
    their running statistics would still be those of the initial weights.
    """
    for module in net.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
        elif isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, 0.1)
    return net


def _set_input_channels(net: nn.Module, channels: int) -> None:
    path, first = next((path, m) for path, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if channels != first.in_channels:
        _replace(net, path, _convolution(first, channels))


def _convolution(like: nn.Conv2d, channels: int, *, kernel: int | None = None, stride: int | None = None) -> nn.Conv2d:
    """A fresh convolution like `like` for other input channels, kernel or stride."""
    size = like.kernel_size if kernel is None else (kernel, kernel)
    padding = like.padding if kernel is None else (kernel // 2, kernel // 2)
    conv = nn.Conv2d(
        channels,
        like.out_channels,
        (size[0], size[1]),
        stride=(like.stride[0], like.stride[1]) if stride is None else stride,
        padding=padding if isinstance(padding, str) else (padding[0], padding[1]),
        bias=like.bias is not None,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _remove_stride(net: nn.Module, path: str) -> None:
    """Let the module at `path` keep the resolution: convolutions get stride 1, a pool becomes the identity."""
    module = net.get_submodule(path)
    if isinstance(module, nn.MaxPool2d):
        _replace(net, path, nn.Identity())
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
