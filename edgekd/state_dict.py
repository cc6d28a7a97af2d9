"""Nested state as flat tensors and plain values, and the moments of optimizers in their parameters' memory layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from pydantic import JsonValue
from torch import Tensor

from edgekd.errors import InputFileError

Leaf: TypeAlias = Tensor | JsonValue
StateDict: TypeAlias = Mapping[str, "Leaf | StateDict"]
"""Tensors and plain values under names, nested."""


def flatten(state: StateDict, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, JsonValue]]:
    """Split nested dicts into tensors and plain values, keyed by paths joined with `/`."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, JsonValue] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, Mapping):
            inner_tensors, inner_plain = flatten(value, f"{path}/")
            tensors |= inner_tensors
            plain |= inner_plain
        else:
            plain[path] = value
    return tensors, plain


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, JsonValue]) -> StateDict:
    """Rebuild the nested state that `flatten` split."""
    return _nested({**tensors, **plain})


def _nested(leaves: Mapping[str, Leaf]) -> StateDict:
    state: dict[str, Leaf | StateDict] = {}
    branches: dict[str, dict[str, Leaf]] = {}
    for path, value in leaves.items():
        name, slash, rest = path.partition("/")
        if slash:
            branches.setdefault(name, {})[rest] = value
        else:
            state[name] = value
    return state | {name: _nested(branch) for name, branch in branches.items()}


def branch(state: StateDict, name: str) -> StateDict:
    """Return what is nested in a state under a name, nothing where nothing is; `InputFileError` for a leaf."""
    value = state.get(name, {})
    if not isinstance(value, Mapping):
        raise InputFileError(f"the state that was read is damaged: {name} holds no names.")
    return value


def tensors_of(state: StateDict, name: str) -> dict[str, Tensor]:
    """Return the tensors that a state holds under a name, as those of a network."""
    return flatten(branch(state, name))[0]


def tensor_of(state: StateDict, name: str) -> Tensor:
    """Return a tensor of a state; `InputFileError` where there is none."""
    value = state.get(name)
    if not isinstance(value, Tensor):
        raise InputFileError(f"the state that was read is damaged: it holds no tensor {name}.")
    return value


def number_of(state: StateDict, name: str) -> float:
    """Return a number of a state, true and false being 1 and 0; `InputFileError` where there is none."""
    value = state.get(name)
    if not isinstance(value, int | float):
        raise InputFileError(f"the state that was read is damaged: it holds no number {name}.")
    return value


def optimizer_state(optimizer: torch.optim.Optimizer) -> StateDict:
    """Return the moments of an optimiser by parameter position; hyper-parameters come from the recipe."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {str(i): dict(optimizer.state[p]) for i, p in enumerate(params) if p in optimizer.state}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: StateDict) -> None:
    """Restore moments into the memory layout of their parameters.

    Fused optimisers walk raw storage: a contiguous moment beside a channels-last weight would silently be
    paired element by element in the wrong order, so every tensor is copied into `empty_like(parameter)`.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    fused = bool(optimizer.defaults.get("fused"))
    optimizer.state.clear()
    for position in state:
        parameter = params[int(position)]
        restored: dict[str, Leaf | StateDict] = {}
        for name, value in branch(state, position).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, Tensor) and fused:  # the step counter, which the fused kernel reads on the device
                value = value.to(parameter.device)
            restored[name] = value
        optimizer.state[parameter] = restored
