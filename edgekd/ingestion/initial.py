"""Weights a student starts from: all must fit, except a head of other classes and a stem of other channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.ingestion import views
from edgekd.ingestion.weights import require_floats
from edgekd.models import probe
from edgekd.models.stems import Shape
from edgekd.text import listed, sizes

_SHOWN = 3


@dataclass(frozen=True)
class InitialWeights:
    """The tensors to start from, by the student's names, and one phrase for each layer that stays random."""

    left_random: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(repr=False, compare=False)


def fit_to_student(student: nn.Module, weights: Mapping[str, Tensor], input_shape: Shape) -> InitialWeights:
    """Compare weights with the student's own tensors, by name and shape, in every way to read all the names.

    Raises InputFileError naming the first differences of the plainest reading.
    """
    first: InputFileError | None = None
    for view in views.views(weights):
        if view.left_out:
            continue
        try:
            return _fit(student, {ours: weights[theirs] for theirs, ours in view.names.items()}, input_shape)
        except InputFileError as error:
            first = first or error
    raise first or InputFileError("there are no weights.")


def _fit(student: nn.Module, weights: Mapping[str, Tensor], input_shape: Shape) -> InitialWeights:
    expected = {name: t for name, t in student.state_dict().items() if not name.endswith("num_batches_tracked")}
    excused = _excused(student, weights, expected, input_shape)
    missing = [name for name in expected if name not in weights]
    surplus = [name for name in weights if name not in expected]
    other = [
        f"{name} is {sizes(weights[name].shape)}, expected {sizes(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and name not in excused and weights[name].shape != tensor.shape
    ]
    differences = other[:_SHOWN]
    differences += [f"{word} {listed(names)}" for word, names in (("missing", missing), ("surplus", surplus)) if names]
    if differences:
        raise InputFileError(f"the weights are of another network: {'; '.join(differences)}.")
    require_floats(weights, expected)
    tensors = {name: weights[name] for name in expected if name not in excused}
    return InitialWeights(tuple(dict.fromkeys(excused.values())), tensors)


def _excused(
    student: nn.Module, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], input_shape: Shape
) -> dict[str, str]:
    """The tensors that may stay random, each with the phrase that says so."""
    head = probe.head_name(student, input_shape)
    stem = next((path for path, module in student.named_modules() if isinstance(module, nn.Conv2d)), None)
    excused: dict[str, str] = {}
    for layer, roles, axis, what in ((head, ("weight", "bias"), 0, "classes"), (stem, ("weight",), 1, "channels")):
        names = [name for name in (f"{layer}.{role}" for role in roles) if name in weights and name in expected]
        sizes = {_size_along(axis, weights[name], expected[name]) for name in names}
        here = expected[names[0]].shape[axis] if names else None
        if len(sizes) == 1 and None not in sizes and here not in sizes:
            excused |= dict.fromkeys(names, f"{layer} ({sizes.pop()} {what} in the file, {here} here)")
    return excused


def _size_along(axis: int, given: Tensor, target: Tensor) -> int | None:
    """The size of `given` along an axis, or None where it is empty or differs in anything else."""
    sides, expected = list(given.shape), list(target.shape)
    if len(sides) != len(expected):
        return None
    size = sides.pop(axis)
    del expected[axis]
    return size if sides == expected and size else None
