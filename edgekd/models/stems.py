"""How published networks are fitted to small images: the one place of the rule.

ImageNet networks divide the image side by 32, which leaves nothing of a 32-pixel image. By the shorter side:

    side < 48     the stem has stride 1 and one more early downsampling is dropped (the next strided block,
                  or the max-pool of a ResNet or ShuffleNet): at least 4x4 is left at 32, 2x2 at 16
    48 ... 95     the stem has stride 1
    from 96       as published

A ResNet below 96 has a 3x3 stem in place of the 7x7 one (He et al. 2016, section 4.2, and most code for CIFAR).
Which strides a network was trained with leaves no trace in its weights, so each choice is also an option.
"""

from __future__ import annotations

import math

from edgekd.errors import UsageError

Shape = tuple[int, int, int]
LARGEST_IMAGE = 2**26
"""Values an image may have: 256 MiB in float32."""


def parse_shape(text: str) -> Shape:
    """Parse `3x32x32` into channels, height and width."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise UsageError(f"--input takes CHANNELSxHEIGHTxWIDTH such as 3x32x32, not {text!r}.")
    channels, height, width = (int(part) for part in parts)
    if channels * height * width > LARGEST_IMAGE:
        raise UsageError(f"--input {text} has more than {LARGEST_IMAGE:,} values; edgekd takes no larger images.")
    return channels, height, width


def square_images(values: int) -> list[Shape]:
    """Return the shapes of grey and coloured square images of so many values: one at most."""
    sides = ((channels, math.isqrt(values // channels)) for channels in (1, 3))
    return [(channels, side, side) for channels, side in sides if channels * side * side == values > 0]


def early_strides_to_drop(input_shape: Shape) -> int:
    """Return how many of the earliest downsamplings to leave out for images of `input_shape` (C, H, W)."""
    side = min(input_shape[1:])
    if side < 48:
        return 2
    return 1 if side < 96 else 0


def resnet_stem(input_shape: Shape) -> str:
    """Return the stem convolution of a ResNet for images of `input_shape`: `3x3` or `7x7`."""
    return "3x3" if early_strides_to_drop(input_shape) else "7x7"


def resnet_maxpool(input_shape: Shape) -> bool:
    """Return whether a ResNet for images of `input_shape` keeps the max-pool after its stem."""
    return early_strides_to_drop(input_shape) < 2
