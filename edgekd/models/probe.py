"""Look at a classifier before hours are spent on it: does it answer, with what, how surely, at what cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from edgekd import rng
from edgekd.errors import InputFileError
from edgekd.models.stems import Shape
from edgekd.text import first_line, sizes

_SUM_TOLERANCE = 5e-3
"""By so much a softmax in bfloat16 misses 1."""
_REPEAT_TOLERANCE = 1e-2
"""Part of the largest logit by which answers to the same image differ without a reason."""
LARGEST_LOGIT = 1e4
"""No trained classifier answers noise with larger ones, and no student would reach them within a run."""
SMALLEST_SPREAD = 1e-4
"""Logits that differ by less between classes say next to nothing: a softmax of them is uniform."""
_SIGMOIDS = ("sigmoid", "hardsigmoid", "log_sigmoid", "log_sigmoid_forward")
_BOUNDING = ("tanh", "hardtanh", "clamp", "clip")
_RELUS = ("relu", "threshold", "softplus", "elu", "gelu", "silu", "mish")
"""Activations that leave little of what is below zero; `elu` is SELU and CELU, too."""
_SUMS = ("addmm", "mm", "bmm", "linear", "convolution", "mean", "_adaptive_avg_pool2d", "avg_pool2d", *_RELUS)
"""What logits come from: weighted sums, also of feature maps after their mean."""
_SCALING = ("mul", "div", "add", "sub")
"""Operations that move and stretch all numbers alike, where the other operand is one number."""
_PASSING = (
    *("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "t", "alias", "detach"),
    *("clone", "_to_copy", "contiguous", "slice", "select", "expand", "copy"),
)
"""Operations that leave each number as it is."""


@dataclass(frozen=True)
class Complexity:
    """The size of a network: trainable and frozen parameters, multiply-accumulates for one image."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Probe:
    """What a classifier did on seeded noise."""

    emits: str
    """`logits`, `probabilities` (a softmax at the end) or `log-probabilities`."""
    undo: str
    """`log` where the output's logarithm serves as logits, else `none` (log-probabilities are logits)."""
    batchnorm_layers: int
    head_alive: bool
    """Whether the output depends on the image at all."""
    noise_confidence: float
    """Mean largest probability on standard normal noise."""
    parameters: int
    macs: int
    batch: int
    seconds_per_batch: float = field(compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)
    """What the user ought to know of its answers, a sentence each."""


def probe(model: nn.Module, *, input_shape: Shape, classes: int, seed: int) -> Probe:
    """Run the model on seeded noise and report what comes out.

    Raises InputFileError where it cannot take `input_shape`, is no classifier of `classes`, answers NaN, or answers
    with numbers that are no logits and cannot be turned into any.
    """
    batch = 32 if min(input_shape[1:]) <= 64 else 4
    device = _device_of(model)
    images = torch.randn(batch, *input_shape, generator=rng.generator(seed, "probe")).to(device)
    output = network_logits(model, images, classes)
    alone = network_logits(model, images[:1], classes)  # later stages count and trace with one
    again = network_logits(model, images, classes)
    few = images[:3]
    for what, others in (("images of one shade", _flat(few)), ("noise of three times the contrast", 3 * few)):
        network_logits(model, others, classes, of=what)
    ends_in = last_operation(model, images[:1])
    with _evaluating(model):
        started = time.perf_counter()
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    emits = _kind_of(output)
    scores = output.clamp_min(1e-7).log() if emits == "probabilities" else output
    head_alive = bool(output.std(dim=0).max() > 1e-6 * output.abs().max())
    _require_logits(output, emits, ends_in)
    size = complexity(model, input_shape)
    return Probe(
        emits=emits,
        undo="log" if emits == "probabilities" else "none",
        batchnorm_layers=len(batchnorm_names(model)),
        head_alive=head_alive,
        noise_confidence=float(scores.softmax(dim=1).amax(dim=1).mean()),
        parameters=size.parameters,
        macs=size.macs,
        batch=batch,
        seconds_per_batch=seconds,
        remarks=(*_not_repeated(output, again, alone), *_remarks(output, scores, emits, ends_in)),
    )


def _flat(images: Tensor) -> Tensor:
    """Images of one shade each, from dark to bright, as many as there are and of their size."""
    shades = torch.linspace(-2, 2, len(images), device=images.device)
    return shades[:, None, None, None].expand_as(images).contiguous()


def _require_logits(output: Tensor, emits: str, ends_in: str) -> None:
    """Refuse answers that are no logits of several classes: of a sigmoid, or beyond what a student can learn."""
    if output.shape[1] == 1:
        raise InputFileError(
            "The network has a single output; a classifier has one for each class. Of two classes with one number x, "
            "make the logits 0 and x, in code that --arch package.module:factory names."
        )
    between = emits == "logits" and bool((output >= 0).all()) and bool((output <= 1).all())
    if ends_in in _SIGMOIDS or (between and ends_in not in _SUMS):
        what = "ends in a sigmoid" if ends_in in _SIGMOIDS else "answers with numbers from 0 to 1 that do not sum to 1"
        raise InputFileError(
            f"The network {what}, as one does that gives an image several labels at once; edgekd distils classifiers "
            "whose classes exclude each other. If these do, return the logits: leave the sigmoid out, or whatever "
            "brings the answers between 0 and 1, in the code that --arch package.module:factory names."
        )
    sums = output.sum(dim=1)
    if (
        emits == "logits"
        and bool((output >= 0).all())
        and bool(((sums / sums.mean() - 1).abs() < _SUM_TOLERANCE).all())
    ):
        raise InputFileError(
            f"The network answers with numbers that sum to {float(sums.mean()):.3g} for every image, as a softmax of "
            "another scale does. Return the logits, or the softmax itself, which is undone, in the code that --arch "
            "package.module:factory names."
        )
    largest = float(output.abs().max())
    if largest > LARGEST_LOGIT:
        raise InputFileError(
            f"The network answers noise with logits up to {largest:.3g}; no student learns numbers beyond "
            f"{LARGEST_LOGIT:g}. Divide the weights and the bias of its last layer by {largest / 10:.0e}: every image "
            "keeps its class."
        )


def _not_repeated(output: Tensor, again: Tensor, alone: Tensor) -> Iterator[str]:
    """Say that the answer to an image depends on chance, or on the images beside it."""
    unlike = _REPEAT_TOLERANCE * output.abs().max()
    if bool((again - output).abs().max() > unlike):
        yield (
            "the teacher answers the same image otherwise each time, as one does whose dropout is never switched off: "
            "F.dropout needs training=self.training."
        )
    elif bool((alone - output[:1]).abs().max() > unlike):
        yield (
            "the teacher's answer to an image depends on the images beside it in a batch, so accuracy and student "
            "depend on the size of batches; look for a mean or a softmax over the first dimension."
        )


def _remarks(output: Tensor, scores: Tensor, emits: str, ends_in: str) -> Iterator[str]:
    """Say of logits that they hardly differ, or are bounded, which limits how sure the teacher can be."""
    spread = float((scores.amax(dim=1) - scores.amin(dim=1)).max())
    if spread < SMALLEST_SPREAD:
        yield (
            f"the teacher gives all classes the same answer but for {spread:.1g}: it was never trained, or the weights "
            "of its last layer are of another scale (multiplied by any number they keep each image's class)."
        )
    if emits != "logits":  # a softmax that is clamped, as Keras does it, is undone
        return
    if ends_in in _BOUNDING:
        low, high = float(output.min()), float(output.max())
        yield (
            f"the teacher's logits are bounded (they end in {ends_in}, here from {low:.3g} to {high:.3g}), so it is "
            "never sure of a class; where the layer before has the logits, let the network return those."
        )
    elif ends_in in _RELUS:
        yield (
            f"the teacher's logits end in an activation ({ends_in}), so that all classes which it rules out are alike "
            "to it; where the layer before has the logits, let the network return those."
        )


class _Origins(TorchDispatchMode):
    """Remembers which operation made each tensor, past those that only give it another shape or scale."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, str] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__.removesuffix("_")
        several = [value for value in args if isinstance(value, Tensor) and value.numel() > 1]
        if (name in _PASSING or (name in _SCALING and len(several) == 1)) and args and isinstance(args[0], Tensor):
            name = self.made.get(id(several[0] if several else args[0]), name)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.made[id(tensor)] = name
        return result


def last_operation(model: nn.Module, images: Tensor) -> str:
    """Return the name that PyTorch gives the operation whose numbers a model answers with, such as `addmm`."""
    origins = _Origins()
    with _evaluating(model), origins:
        output = model(images)
    return origins.made.get(id(output), "")


def complexity(model: nn.Module, input_shape: Shape) -> Complexity:
    """Count parameters, and the multiply-accumulates of convolutions and matrix products for one image."""
    with _evaluating(model), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *input_shape, device=_device_of(model)))
    return Complexity(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def batchnorm_names(model: nn.Module) -> list[str]:
    """Return the dotted names of the BatchNorm layers that keep running statistics."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def head_name(model: nn.Module, input_shape: Shape) -> str:
    """Return the dotted name of the last Linear or Conv2d that runs: its input is the penultimate feature."""
    layers = {n: module for n, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    ran = [name for name, _ in _answers_of(layers, model, input_shape)]
    if not ran:
        raise InputFileError("The network has no linear or convolutional layer, so it has no classification head.")
    return ran[-1]


def stage_sizes(model: nn.Module, input_shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the size (C, H, W) of the feature map each stage sends on; a stage is a child with modules of its own."""
    stages = {name: child for name, child in model.named_children() if next(child.children(), None) is not None}
    return _map_sizes(stages, model, input_shape)


def last_maps(model: nn.Module, input_shape: Shape) -> dict[tuple[int, ...], tuple[str, int]]:
    """Return the last feature map of each resolution (H, W) above one pixel: the module that sends it on, and C.

    Looks at stages and their blocks, not at the layers within a block.
    """
    modules = {name: module for name, module in model.named_modules() if name and name.count(".") < 2}
    return {size[1:]: (name, size[0]) for name, size in _map_sizes(modules, model, input_shape).items()}


def _map_sizes(modules: Mapping[str, nn.Module], model: nn.Module, input_shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the size (C, H, W) of the maps that some of a model's modules send on, in the order in which they end."""
    answers = _answers_of(modules, model, input_shape)
    maps = {name: tuple(map_.shape[1:]) for name, map_ in answers if isinstance(map_, Tensor) and map_.ndim == 4}
    return {name: size for name, size in maps.items() if size[1:] != (1, 1)}


def _answers_of(modules: Mapping[str, nn.Module], model: nn.Module, input_shape: Shape) -> list[tuple[str, Any]]:
    """What some of a model's modules answer when it sees one black image, in the order in which they ran."""
    answers: list[tuple[str, Any]] = []

    def see(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        answers.append((name, output))

    handles = [module.register_forward_hook(partial(see, name)) for name, module in modules.items()]
    try:
        with _evaluating(model):
            model(torch.zeros(1, *input_shape, device=_device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return answers


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block without gradients in eval mode, and give each module its mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def call_network(model: nn.Module, images: Tensor) -> Any:
    """Return whatever a model answers; what it raises becomes an InputFileError that names the size of the images."""
    try:
        return model(images)
    except (Exception, SystemExit) as error:  # foreign networks may raise anything
        raise InputFileError(
            f"The network does not take {'single ' if len(images) == 1 else ''}{sizes(images.shape[1:])} images: "
            f"{type(error).__name__}: {first_line(error)}. Set the right channels and size with --input CxHxW."
        ) from error


def network_logits(model: nn.Module, images: Tensor, classes: int, of: str = "ordinary noise") -> Tensor:
    """Return the answers (N, classes) of a model in eval mode; raise InputFileError where they are anything else.

    `of` says in words what the images are.
    """
    with _evaluating(model):
        output = call_network(model, images)
    if not isinstance(output, Tensor):
        raise InputFileError(
            f"The network returns a {type(output).__name__}; a classifier returns one tensor of logits."
        )
    if output.ndim != 2 or output.shape[0] != len(images):
        raise InputFileError(
            f"The network is no classifier: for {len(images)} images of {sizes(images.shape[1:])} it returns the shape "
            f"{tuple(output.shape)}, not ({len(images)}, {classes})."
        )
    if output.shape[1] != classes:
        raise InputFileError(f"The network has {output.shape[1]} outputs, not the {classes} classes expected of it.")
    sound = torch.isfinite(output)
    if not bool(sound.all()):
        cause = "look for a division by zero, an overflow or a mask" if bool(sound.any()) else "its weights are damaged"
        where = f"{int((~sound.all(dim=1)).sum())} of {len(output)} images"
        raise InputFileError(f"The network answers NaN or infinity on {of} ({where}); {cause}.")
    return output.float()


def same_answers(first: nn.Module, other: nn.Module, input_shape: Shape, *, seed: int) -> bool:
    """Return whether two classifiers in eval mode answer seeded noise alike, a softmax at the end of either undone."""
    images = torch.randn(8, *input_shape, generator=rng.generator(seed, "compare"))
    with _evaluating(first), _evaluating(other):
        answers = [call_network(model, images) for model in (first, other)]
    if any(not isinstance(a, Tensor) or a.ndim != 2 for a in answers) or answers[0].shape != answers[1].shape:
        return False
    kinds = [_kind_of(a.float()) for a in answers]
    logs = [a.float().log() if kind == "probabilities" else a.float() for a, kind in zip(answers, kinds, strict=True)]
    if kinds[0] != kinds[1]:
        logs = [log.log_softmax(dim=1) for log in logs]
    return bool(torch.allclose(logs[0], logs[1], rtol=1e-3, atol=1e-3 * float(logs[1].abs().max())))


def _kind_of(output: Tensor) -> str:
    """Tell logits from the output of a softmax or log-softmax by the row sums."""

    def sums_to_one(rows: Tensor) -> bool:
        return bool(((rows.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all())

    if bool((output >= 0).all()) and sums_to_one(output):
        return "probabilities"
    if bool((output <= 0).all()) and sums_to_one(output.exp()):
        return "log-probabilities"
    return "logits"
