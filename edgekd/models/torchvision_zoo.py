"""torchvision's classifiers for any image size, channels and classes: its own code, the first layers replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torchvision.models as tv
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from edgekd.models.stems import Shape

SHUFFLENET_WIDTHS = {0.5: "x0_5", 1.0: "x1_0", 1.5: "x1_5", 2.0: "x2_0"}

EARLY_DOWNSAMPLINGS: Mapping[str, tuple[str, str]] = {
    "mobilenetv2": ("features.0", "features.2"),
    "mobilenetv3-small": ("features.0", "features.1"),
    "mobilenetv3-large": ("features.0", "features.2"),
    "shufflenetv2": ("conv1", "maxpool"),
    "squeezenet": ("features.0", "features.2"),
    "mnasnet": ("layers.0", "layers.8"),
    "efficientnet-b0": ("features.0", "features.2"),
    "regnet-y-400mf": ("stem", "trunk_output.block1.block1-0"),
}
"""The students, with the modules that downsample first, in order."""

RESNETS: Mapping[str, str] = {
    "resnet18": "basic",
    "resnet34": "basic",
    "resnet50": "bottleneck",
    "resnet101": "bottleneck",
    "resnet152": "bottleneck",
    "resnext50_32x4d": "bottleneck",
    "resnext101_32x8d": "bottleneck",
    "resnext101_64x4d": "bottleneck",
    "wide_resnet50_2": "bottleneck",
    "wide_resnet101_2": "bottleneck",
}

WEIGHT_TENSORS: Mapping[str, int] = {
    "mobilenetv2": 262, "mobilenetv3-small": 210, "mobilenetv3-large": 266, "shufflenetv2": 282,
    "squeezenet": 52, "mnasnet": 262, "efficientnet-b0": 311, "regnet-y-400mf": 331,
    "resnet18": 102, "resnet34": 182, "resnet50": 267, "resnet101": 522, "resnet152": 777,
    "resnext50_32x4d": 267, "resnext101_32x8d": 522, "resnext101_64x4d": 522,
    "wide_resnet50_2": 267, "wide_resnet101_2": 522,
    "alexnet": 16, "convnext_tiny": 182, "convnext_small": 344, "convnext_base": 344, "convnext_large": 344,
    "densenet121": 606, "densenet161": 806, "densenet169": 846, "densenet201": 1006,
    "efficientnet_b1": 439, "efficientnet_b2": 439, "efficientnet_b3": 496, "efficientnet_b4": 610,
    "efficientnet_b5": 738, "efficientnet_b6": 852, "efficientnet_b7": 1037,
    "efficientnet_v2_s": 672, "efficientnet_v2_m": 963, "efficientnet_v2_l": 1331,
    "googlenet": 287, "inception_v3": 472, "maxvit_t": 548,
    "regnet_x_400mf": 357, "regnet_x_800mf": 267, "regnet_x_1_6gf": 297, "regnet_x_3_2gf": 402,
    "regnet_x_8gf": 372, "regnet_x_16gf": 357, "regnet_x_32gf": 372,
    "regnet_y_800mf": 293, "regnet_y_1_6gf": 540, "regnet_y_3_2gf": 426, "regnet_y_8gf": 350,
    "regnet_y_16gf": 369, "regnet_y_32gf": 407, "regnet_y_128gf": 540,
    "squeezenet1_0": 52, "swin_t": 185, "swin_s": 353, "swin_b": 353,
    "swin_v2_t": 233, "swin_v2_s": 449, "swin_v2_b": 449,
    "vgg11": 22, "vgg13": 26, "vgg16": 32, "vgg19": 38,
    "vgg11_bn": 54, "vgg13_bn": 66, "vgg16_bn": 84, "vgg19_bn": 102,
    "vit_b_16": 152, "vit_b_32": 152, "vit_l_16": 296, "vit_l_32": 296, "vit_h_14": 392,
}  # fmt: skip
"""Every architecture and the number of its tensors (BatchNorm counters aside): what inference looks at first."""

TRAINING_ONLY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Auxiliary heads that published checkpoints carry and inference never runs."""


class _MNASNet(tv.MNASNet):  # type: ignore[misc]
    """torchvision's MNASNet, which otherwise refuses a state dict without metadata (any .safetensors file)."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": 2}, *rest)


def build_student(name: str, width: float, input_shape: Shape, classes: int, *, drop: int) -> nn.Module:
    """Build a mobile network without its `drop` earliest downsamplings."""
    scaled: dict[str, Callable[[], nn.Module]] = {
        "mobilenetv2": lambda: tv.mobilenet_v2(width_mult=width, num_classes=classes),
        "mobilenetv3-small": lambda: tv.mobilenet_v3_small(width_mult=width, num_classes=classes),
        "mobilenetv3-large": lambda: tv.mobilenet_v3_large(width_mult=width, num_classes=classes),
        "shufflenetv2": lambda: tv.get_model(
            f"shufflenet_v2_{SHUFFLENET_WIDTHS[width]}", weights=None, num_classes=classes
        ),
        "squeezenet": lambda: tv.squeezenet1_1(num_classes=classes),
        "mnasnet": lambda: _MNASNet(width, num_classes=classes),
        "efficientnet-b0": lambda: tv.efficientnet_b0(num_classes=classes),
        "regnet-y-400mf": lambda: tv.regnet_y_400mf(num_classes=classes),
    }
    net = scaled[name]()
    _set_input_channels(net, input_shape[0])
    for path in EARLY_DOWNSAMPLINGS[name][:drop]:
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


def build_published(name: str, input_shape: Shape, classes: int, *, transform_input: bool) -> nn.Module:
    """Build any other classifier of torchvision by its own name, as published."""
    arguments: dict[str, Any] = {}
    if name in TRAINING_ONLY:
        arguments = {"aux_logits": False, "init_weights": False, "transform_input": transform_input}
    elif name.startswith("vit_"):
        arguments = {"image_size": input_shape[1]}
    elif name.startswith("maxvit"):
        arguments = {"input_size": input_shape[1:]}
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
    """Return a fresh convolution like `like` for other input channels, kernel or stride."""
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
