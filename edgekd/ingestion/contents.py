"""What a file of weights holds, in words: its layers, what goes in and comes out, and whether it is no classifier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgekd.models.shapes import Shapes
from edgekd.text import counted

_KINDS: Mapping[str, str] = {
    r"^lin\d+\.model\.\d+\.weight$": "These are the layers that LPIPS puts behind a network, no classifier.",
    r"(^|\.)(rpn|roi_heads?|bbox\w*|box_\w+|anchors?|dfl|yolo\w*|\d+\.cv[23]\.\d+)\.": (
        "They are those of a detector; edgekd distils classifiers."
    ),
    r"(^|\.)(decoder\w*|decode_head|aux_classifier|seg\w*_head|up_?(conv|block|sample)?s?_?\d*|outc)\.": (
        "They are those of a segmenter, or of another network that makes images; edgekd distils classifiers."
    ),
    r"(^|\.)(embed_tokens|lm_head|wte|word_embeddings)\.": (
        "They are those of a language model; edgekd distils classifiers of images."
    ),
    r"(^|\.)(cls_token|class_token|pos_embed\w*|patch_embed\w*|to_patch_embedding)(\.|$)": (
        "They are those of a vision transformer; weights do not show how many heads its attention has."
    ),
}
"""Names by which networks are known that are no convolutional classifiers, and what is said of them."""


@dataclass(frozen=True)
class _Layers:
    """The shapes of the layers' weights by kind, in order."""

    convolutions: dict[str, tuple[int, ...]]
    linear: dict[str, tuple[int, ...]]


def in_words(shapes: Shapes) -> str:
    """Return what weights hold: `4 convolutions, 4 BatchNorms, 2 linear layers; 1 channel in, 7 classes out`."""
    layers = _layers(shapes)
    batchnorms = sum(name.endswith("running_mean") for name in shapes)
    kinds = (len(layers.convolutions), "convolution"), (batchnorms, "BatchNorm"), (len(layers.linear), "linear layer")
    counts = [counted(number, what) for number, what in kinds if number]
    ends = [end for end in (_comes_in(shapes, layers), _goes_out(shapes, layers)) if end]
    return "; ".join(", ".join(part) for part in (counts, ends) if part)


def no_classifier(shapes: Shapes) -> str:
    """Return a sentence that says what weights are where they are no convolutional classifier's; else nothing."""
    for pattern, sentence in _KINDS.items():
        if any(re.search(pattern, name) for name in shapes):
            return sentence
    layer = [*shapes, ""][len(shapes) - 1].rpartition(".")[0]
    if not _sorted(shapes) and f"{layer}.running_mean" in shapes:
        return (
            f"They end in a BatchNorm of {shapes[f'{layer}.running_mean'][0]} features, as those of an embedding, or "
            "of a network without its last layer; a classifier ends in a layer with one output for each class."
        )
    return ""


def _layers(shapes: Shapes) -> _Layers:
    weights = {name: shape for name, shape in shapes.items() if name.endswith("weight") and 0 not in shape}
    convolutions = {name: shape for name, shape in weights.items() if len(shape) in (3, 4, 5)}
    return _Layers(convolutions, {name: shape for name, shape in weights.items() if len(shape) == 2})


def _comes_in(shapes: Shapes, layers: _Layers) -> str:
    """The channels that the first convolution reads, or the numbers that the first linear layer does."""
    convolutions = list(layers.convolutions.values())
    if _sorted(shapes):  # no other reads as few, but those that read each channel alone
        convolutions = sorted((s for s in convolutions if s[1] > 1 or len(convolutions) < 3), key=lambda s: s[1])[:1]
    if convolutions:
        return f"{counted(convolutions[0][1], 'channel')} in"
    first = next(iter(layers.linear.values()), None)
    return "" if first is None or _sorted(shapes) else f"{first[1]} numbers in"


def _goes_out(shapes: Shapes, layers: _Layers) -> str:
    """The rows of the last layer; of sorted names, of the only linear layer whose rows none else reads."""
    read = {shape[1] for shape in layers.linear.values()}
    if _sorted(shapes):
        rows = [shape[0] for shape in layers.linear.values() if shape[0] not in read]
        return f"{_outputs(rows[0])} out" if len(rows) == 1 else ""
    last = [shape for name, shape in shapes.items() if name in {**layers.convolutions, **layers.linear}][-1:]
    return f"{_outputs(last[0][0])} out" if last else ""


def _outputs(number: int) -> str:
    return "1 number" if number == 1 else f"{number} classes"


def _sorted(shapes: Shapes) -> bool:
    """Whether the order of layers is lost."""
    return list(shapes) == sorted(shapes)
