"""Look at a classifier before hours are spent on it: does it answer, with what, how surely, at what cost."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

from edgekd import rng
from edgekd.errors import InputFileError
from edgekd.models.answers import AVERAGES, RELUS, SIGMOIDS, kind_of, not_repeated, remarks, require_logits
from edgekd.models.stems import Shape
from edgekd.models.watching import Watching
from edgekd.text import first_line, sizes

_SCALING = ("mul", "div", "add", "sub", "rsub", "neg")
"""Operations that only move and stretch numbers, where what else they take does not depend on the image."""
_PASSING = (
    *("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "t", "alias", "detach"),
    *("clone", "_to_copy", "contiguous", "slice", "select", "expand", "copy", "cat", "stack"),
)
"""Operations that leave each number as it is."""
_OTHER_PRECISION = re.compile(r"dtype|\b(half|double|float64|float16|bfloat16)\b", re.IGNORECASE)
"""What PyTorch's errors say where numbers of two precisions meet."""


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
    require_gradient(model, images[:2])
    ends_in = last_operation(model, images[:1])
    with evaluating(model):
        started = time.perf_counter()
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    emits = kind_of(output)
    scores = output.clamp_min(1e-7).log() if emits == "probabilities" else output
    head_alive = bool(output.std(dim=0).max() > 1e-6 * output.abs().max())
    require_logits(output, emits, ends_in)
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
        remarks=(*not_repeated(output, again, alone), *remarks(output, scores, emits, ends_in)),
    )


def _flat(images: Tensor) -> Tensor:
    """Images of one shade each, from dark to bright, as many as there are and of their size."""
    shades = torch.linspace(-2, 2, len(images), device=images.device)
    return shades[:, None, None, None].expand_as(images).contiguous()


def require_gradient(model: nn.Module, images: Tensor) -> None:
    """Raise InputFileError unless the answers of a model in eval mode have a gradient that reaches the images."""
    images = images.detach().requires_grad_()
    reason = "its forward runs under torch.no_grad(), detaches its input or leaves PyTorch"
    with evaluating(model), torch.enable_grad():
        try:
            answers = model(images).float()
            if answers.requires_grad and torch.autograd.grad(answers.sum(), images, allow_unused=True)[0] is not None:
                return
        except Exception as error:  # noqa: BLE001 - foreign networks may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
    raise InputFileError(
        f"No gradient of the network's answers reaches its images, and distillation needs it: {reason}."
    )


def require_learning(model: nn.Module, input_shape: Shape, classes: int) -> None:
    """Raise InputFileError unless a model in train mode answers with logits whose gradient reaches its weights."""
    images = torch.randn(2, *input_shape, generator=rng.generator(0, "learning"))
    learner = copy.deepcopy(model).train()
    try:
        with rng.seeded_global_rng(0, "learning"), torch.enable_grad():
            answers = learner(images)
            if isinstance(answers, Tensor) and answers.shape == (2, classes) and answers.requires_grad:
                answers.float().sum().backward()
                return
            reason = "no gradient of its answers reaches its weights"
    except Exception as error:  # noqa: BLE001 - foreign networks may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise InputFileError(f"The network does not learn in train mode: {reason}.")


class _Origins(Watching):
    """Remembers which operation made each tensor that depends on the images, past a new shape, a scale or a mean."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.made = WeakTensorKeyDictionary({images: ""})  # by weak reference: the id of a dead tensor is used again

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        sources = [value for value in _tensors([*args, *(kwargs or {}).values()]) if value in self.made]
        name = self._origin(operation.overloadpacket.__name__.removesuffix("_"), sources, args)
        result = operation(*args, **(kwargs or {}))
        for tensor in _tensors([result]) if sources else ():
            self.made[tensor] = name
        return result

    def _origin(self, name: str, sources: list[Tensor], args: tuple[Any, ...]) -> str:
        """The operation that made what an operation only moves, stretches or averages; else its own name."""
        if name in _SCALING:  # one number, such as an image's sum, stretches all its answers alike
            sources = [value for value in sources if value.numel() > 1] or sources
        before = {self.made[value] for value in sources}
        if name not in (*_SCALING, *_PASSING, *AVERAGES) or len(before) != 1:
            return name
        if name == "div" and args[0] not in self.made:
            return name
        [origin] = before
        return name if name in AVERAGES and origin in RELUS else origin or name


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values, and in lists among them."""
    several = [each for value in values for each in (value if isinstance(value, tuple | list) else (value,))]
    return [value for value in several if isinstance(value, Tensor)]


def last_operation(model: nn.Module, images: Tensor) -> str:
    """Return the name that PyTorch gives the operation whose numbers a model answers with, such as `addmm`."""
    origins = _Origins(images)
    with evaluating(model), origins:
        output = model(images)
    return str(origins.made.get(output, "")) if isinstance(output, Tensor) else ""


def complexity(model: nn.Module, input_shape: Shape) -> Complexity:
    """Count parameters, and the multiply-accumulates of convolutions and matrix products for one image."""
    from edgekd.models.flops import FlopsByDtype  # which imports triton, and a refused file does without

    with evaluating(model), FlopsByDtype() as counter:
        model(torch.zeros(1, *input_shape, device=_device_of(model)))
    return Complexity(sum(p.numel() for p in model.parameters()), sum(counter.flops.values()) // 2)


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
        with evaluating(model):
            model(torch.zeros(1, *input_shape, device=_device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return answers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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


def of_other_precision(error: BaseException) -> str:
    """Return what to do about an error that comes of numbers in two precisions; empty for any other."""
    if not _OTHER_PRECISION.search(str(error)):
        return ""
    return ". edgekd runs it in float32: leave .half(), .double() and .to(dtype) out of its code."


@torch.no_grad()
def call_network(model: nn.Module, images: Tensor) -> Any:
    """Return whatever a model answers; what it raises becomes an InputFileError that names the size of the images."""
    try:
        return model(images)
    except (Exception, SystemExit) as error:  # foreign networks may raise anything
        advice = of_other_precision(error) or ". Set the right channels and size with --input CxHxW."
        raise InputFileError(
            f"The network does not take {'single ' if len(images) == 1 else ''}{sizes(images.shape[1:])} images: "
            f"{type(error).__name__}: {first_line(error)}{advice}"
        ) from error


def network_logits(model: nn.Module, images: Tensor, classes: int, of: str = "ordinary noise") -> Tensor:
    """Return the answers (N, classes) of a model in eval mode; raise InputFileError where they are anything else.

    `of` says in words what the images are.
    """
    with evaluating(model):
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
    """Return whether two classifiers in eval mode answer seeded noise alike, a softmax at the end of either undone.

    A single output counts as the second of two logits, the first being 0.
    """
    images = torch.randn(8, *input_shape, generator=rng.generator(seed, "compare"))
    with evaluating(first), evaluating(other):
        answers = [_with_a_zero_logit(model, images, call_network(model, images)) for model in (first, other)]
    if any(not isinstance(a, Tensor) or a.ndim != 2 for a in answers) or answers[0].shape != answers[1].shape:
        return False
    kinds = [kind_of(a.float()) for a in answers]
    logs = [a.float().log() if kind == "probabilities" else a.float() for a, kind in zip(answers, kinds, strict=True)]
    if kinds[0] != kinds[1]:
        logs = [log.log_softmax(dim=1) for log in logs]
    return bool(torch.allclose(logs[0], logs[1], rtol=1e-3, atol=1e-3 * float(logs[1].abs().max())))


def _with_a_zero_logit(model: nn.Module, images: Tensor, answer: Any) -> Any:
    """Two logits in place of a single output, a sigmoid at its end undone; other answers as they are."""
    if not isinstance(answer, Tensor) or answer.shape[1:] != (1,):
        return answer
    score = answer.logit() if last_operation(model, images) in SIGMOIDS[:1] else answer
    return torch.cat([torch.zeros_like(score), score], dim=1)
