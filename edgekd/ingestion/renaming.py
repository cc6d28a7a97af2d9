"""Pair the names of a checkpoint with those of a network that differs from it in nothing else."""

from __future__ import annotations

from edgekd.models.shapes import Shapes


def rename(shapes: Shapes, template: Shapes) -> dict[str, str] | None:
    """Pair modules by order, each with the same roles of the same rank; None if that fails.

    Sorted names have no order: there equal names are pairs, and others must be the only ones of their shapes.

    Args:
        shapes: of the checkpoint's tensors.
        template: of the network's (see `matching`).

    Returns:
        The network's names by those of the checkpoint, where they differ.
    """
    left, right = _by_module(shapes), _by_module(template)
    if list(shapes) == sorted(shapes) and list(template) != sorted(template):
        everything = list(left.values())
        for module in [name for name, roles in left.items() if _ranks(roles) == _ranks(right.get(name, {}))]:
            del left[module], right[module]
        if any(everything.count(roles) > 1 for roles in left.values()):
            return None
    if len(left) != len(right):
        return None
    mapping: dict[str, str] = {}
    for (their_module, their_roles), (our_module, our_roles) in zip(left.items(), right.items(), strict=True):
        if _ranks(their_roles) != _ranks(our_roles):
            return None
        for role in their_roles:
            mapping[f"{their_module}.{role}".lstrip(".")] = f"{our_module}.{role}".lstrip(".")
    return {theirs: ours for theirs, ours in mapping.items() if theirs != ours}


def _by_module(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Module name -> role (weight, bias, running_mean ...) -> shape, in order."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, role = name.rpartition(".")
        modules.setdefault(module, {})[role] = shape
    return modules


def _ranks(roles: Shapes) -> dict[str, int]:
    return {role: len(shape) for role, shape in roles.items()}
